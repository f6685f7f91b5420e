"""Translators: padding and soft ends, soft words against whole numbers, writing against predicting, bad sizes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning.networks import GRUTranslator, LanguageModel, TransformerTranslator
from vae_lightning.networks.attention import Attention, places
from vae_lightning.networks.symbols import alive_until_end, with_unknown, without_unknown
from vae_lightning.networks.translators import SoftGRU, TranslatorRecipe
from vae_lightning.types import END_TOKEN, PADDING, UNKNOWN_TOKEN, UserError

GRU = partial(GRUTranslator, embedding_size=6, hidden_size=8, dropout=0.0)
TRANSFORMER = partial(TransformerTranslator, embedding_size=8, num_heads=2, hidden_size=12, dropout=0.0)
both = pytest.mark.parametrize("recipe", [GRU, TRANSFORMER], ids=["gru", "transformer"])
SOURCE = torch.tensor([[4, 2, 3, 0, -1], [5, 0, -1, -1, -1], [2, 2, 3, 4, 0]])
TARGET = torch.tensor([[3, 2, 0, -1], [4, 4, 2, 0], [0, -1, -1, -1]])


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def logits(translator: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    return translator.predict(translator.read(source), target)[0]  # type: ignore[operator]


def test_a_text_is_alive_until_its_end() -> None:
    expected = torch.tensor([[1.0, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    assert torch.equal(alive_until_end(SOURCE), expected)
    behind = torch.where(SOURCE == PADDING, 3, SOURCE)  # words behind the end are dead, a second end too
    behind[1, 3] = END_TOKEN
    assert torch.equal(alive_until_end(behind), expected)
    assert torch.equal(alive_until_end(F.one_hot(behind, 6).float()), expected)
    shares = torch.tensor([[[0.25, 0.75], [0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]])
    torch.testing.assert_close(alive_until_end(shares), torch.tensor([[1.0, 0.75, 0.375, 0.0]]))


@both
def test_one_hot_words_are_read_as_their_numbers(recipe: TranslatorRecipe) -> None:
    translator = recipe(6, 5)
    soft = F.one_hot(SOURCE.clamp(min=0), 6).float()
    soft[SOURCE == PADDING] = torch.rand(4, 6).softmax(-1)  # what stands behind the end does not matter
    torch.testing.assert_close(logits(translator, soft, TARGET), logits(translator, SOURCE, TARGET), rtol=0, atol=1e-5)


@both
def test_padding_changes_nothing(recipe: TranslatorRecipe) -> None:
    translator = recipe(6, 5)
    longer = logits(translator, F.pad(SOURCE, (0, 5), value=PADDING), F.pad(TARGET, (0, 5), value=PADDING))
    torch.testing.assert_close(longer[:, :4], logits(translator, SOURCE, TARGET), rtol=0, atol=1e-5)
    attention = translator.predict(translator.read(SOURCE), TARGET)[1]
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 4))
    assert attention[1, :, 2:].max() < 1e-6


def test_padding_changes_nothing_with_large_weights() -> None:
    """The GRU keeps its state at padding, however sure its gate is of the opposite."""
    translator = GRUTranslator(6, 5, 32, 128, 0.0).double()
    with torch.no_grad():
        for parameter in translator.parameters():
            parameter.mul_(8)
    longer = logits(translator, F.pad(SOURCE, (0, 12), value=PADDING), TARGET)
    torch.testing.assert_close(longer, logits(translator, SOURCE, TARGET), rtol=0, atol=1e-8)


@both
def test_a_word_depends_on_those_before_it_and_on_the_whole_source(recipe: TranslatorRecipe) -> None:
    translator = recipe(6, 5)
    target, source = TARGET[1:2].clone(), SOURCE[:1].clone()
    before = logits(translator, source, target)
    target[0, 2] = 3
    changed = (logits(translator, source, target) - before).abs().amax(-1)[0] > 1e-6
    assert changed.tolist() == [False, False, False, True]
    for place in range(3):  # the order of the source counts, too
        source = SOURCE[:1].clone()
        source[0, place] = 5
        assert (logits(translator, source, TARGET[1:2]) - before).abs().max() > 1e-4
    assert (logits(translator, SOURCE[:1, [2, 1, 0, 3, 4]], TARGET[1:2]) - before).abs().max() > 1e-4


@both
def test_writing_takes_the_likeliest_words_that_predicting_gives(recipe: TranslatorRecipe) -> None:
    translator = recipe(6, 5)
    with torch.no_grad():
        translator.bias[UNKNOWN_TOKEN] = 9.0  # the unknown word would always win
        translator.bias[END_TOKEN] = -0.5
    text = translator.write(translator.read(SOURCE), 6)
    assert text.shape == (3, 6)
    assert not (text == UNKNOWN_TOKEN).any()
    likeliest = without_unknown(logits(translator, SOURCE, text)).argmax(-1)
    likeliest += (likeliest >= UNKNOWN_TOKEN).long()
    alive = alive_until_end(text) > 0
    assert torch.equal(text[alive], likeliest[alive])
    assert (text[~alive] == PADDING).all()


def test_each_text_is_written_up_to_its_own_end(monkeypatch: pytest.MonkeyPatch) -> None:
    translator, words = GRU(6, 5), torch.tensor([[3, 0, 4, 2], [2, 2, 0, 3], [4, 4, 4, 4]])

    def step(*arguments: Any) -> tuple[Tensor, int]:
        place = arguments[-1] or 0
        return F.one_hot(words[:, place], 5).float(), place + 1

    monkeypatch.setattr(translator, "step", step)
    text = translator.write(translator.read(SOURCE), 4)
    assert text.tolist() == [[3, 0, PADDING, PADDING], [2, 2, 0, PADDING], [4, 4, 4, 4]]


@both
def test_soft_words_are_written_as_one_hot_ones(recipe: TranslatorRecipe) -> None:
    """Steps fed with one-hot words give the logits of whole numbers."""
    translator = recipe(6, 5)
    memory, state = translator.read(SOURCE), None
    steps, symbol = [], None
    for word in TARGET.clamp(min=0).T:
        step, state = translator.step(memory, symbol, state)
        steps.append(step)
        symbol = F.one_hot(word, 5).float()
    torch.testing.assert_close(torch.stack(steps, 1), logits(translator, SOURCE, TARGET), rtol=0, atol=1e-5)


def test_the_soft_gru_is_torchs_where_all_is_alive_and_keeps_its_state_where_nothing_is() -> None:
    gru, x = SoftGRU(3, 4), torch.randn(2, 5, 3)
    torch.testing.assert_close(gru(x, torch.zeros(2, 5)), nn.GRU.forward(gru, x)[0])
    alive = torch.tensor([[1.0, 1, 0, 1, 0]] * 2)
    states, shorter = gru(x, alive.clamp(min=1e-9).log()), gru(x[:, [0, 1, 3]], torch.zeros(2, 3))
    torch.testing.assert_close(states[:, [0, 1, 3]], shorter)
    torch.testing.assert_close(states[:, 2, :4], states[:, 1, :4])
    half, full = (gru(x[:, :1], torch.full((2, 1), alive).log()) for alive in (0.5, 1.0))
    assert (half.abs() < full.abs()).all()  # from a state of 0, a half-dead word moves it less


def test_the_language_model_reads_what_is_before_and_soft_words_alike() -> None:
    model = LanguageModel(6, 4, 5, dropout=0.0)
    found = model(SOURCE)
    changed = SOURCE.clone()
    changed[0, 2] = 5
    assert ((model(changed) - found).abs().amax(-1)[0] > 1e-6).tolist() == [False, False, False, True, True]
    soft = F.one_hot(SOURCE.clamp(min=0), 6).float()
    torch.testing.assert_close(model(soft), found)


@both
def test_words_and_features_are_dropped_in_training(recipe: TranslatorRecipe) -> None:
    """With nearly all of them dropped nothing of the source is left, and logits are the bias."""
    translator = recipe(6, 5, dropout=1 - 1e-7)  # type: ignore[call-arg]
    words = torch.randint(2, 6, SOURCE.shape)
    other = torch.where(SOURCE > END_TOKEN, words, SOURCE)
    torch.testing.assert_close(translator.read(SOURCE).states, translator.read(other).states)
    torch.testing.assert_close(logits(translator, SOURCE, TARGET), translator.bias.expand(3, 4, -1))
    language, seen = LanguageModel(6, 4, 5, dropout=1 - 1e-7), []
    language.gru.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.testing.assert_close(language(SOURCE), language.output.bias.expand(3, 5, -1))
    assert not seen[0].any()


def test_shares_without_the_unknown_word() -> None:
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    assert torch.equal(without_unknown(values), torch.tensor([[0.1, 0.3, 0.4]]))
    assert torch.equal(with_unknown(without_unknown(values)), torch.tensor([[0.1, 0.0, 0.3, 0.4]]))


def test_attention_is_that_of_torch() -> None:
    attention, states, seen, bias = Attention(8, 2), torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 3, 5)
    q, k, v = (
        layer(of).view(2, -1, 2, 4).transpose(1, 2)
        for layer, of in ((attention.query, states), (attention.key, seen), (attention.value, seen))
    )
    heads = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[:, None])
    expected = attention.output(heads.transpose(1, 2).reshape(2, 3, 8))
    torch.testing.assert_close(attention(states, seen, bias)[0], expected)


def test_places_differ() -> None:
    vectors = places(torch.zeros(1, 50, 8))
    assert torch.cdist(vectors, vectors).fill_diagonal_(1).min() > 0.1
    angles = [3 * 10_000 ** (-2 * i / 8) for i in range(4)]  # of place 3
    expected = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
    torch.testing.assert_close(vectors[3], torch.tensor(expected))
    torch.testing.assert_close(vectors[:, 0::2] ** 2 + vectors[:, 1::2] ** 2, torch.ones(50, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GRUTranslator(5, 5, embedding_size=0), "GRUTranslator: embedding_size is 0; it must be at least 1"),
        (lambda: GRUTranslator(5, 5, hidden_size=7), "hidden_size is 7; it must be even"),
        (lambda: GRUTranslator(5, 5, dropout=1.0), "dropout is 1.0; it must be at least 0 and below 1"),
        (lambda: TransformerTranslator(5, 5, embedding_size=6), "embedding_size is 6; it must be even, and a multiple"),
        (lambda: TransformerTranslator(5, 5, num_layers=0), "num_layers and hidden_size must be at least 1"),
        (lambda: LanguageModel(5, hidden_size=0), "LanguageModel: hidden_size is 0"),
    ],
)
def test_bad_sizes(build: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()  # type: ignore[operator]
