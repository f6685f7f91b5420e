"""SEQ4: what is in its bound, padding, soft words, gradients, weights of examples, reading and writing, bad input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.data import ToyQueries
from vae_lightning.distributions import DiagonalNormal
from vae_lightning.metrics import log_marginal_likelihood
from vae_lightning.models import Seq4
from vae_lightning.models.trace_checks import check_trace, describe_bound
from vae_lightning.networks import GRUTranslator, LanguageModel, TransformerTranslator
from vae_lightning.networks.symbols import without_unknown
from vae_lightning.objectives import ELBO, LinearWarmup
from vae_lightning.trace import Trace, drawing
from vae_lightning.types import END_TOKEN, PADDING, UNKNOWN_TOKEN, UserError

GRU = partial(GRUTranslator, embedding_size=6, hidden_size=8, dropout=0.0)
TRANSFORMER = partial(TransformerTranslator, embedding_size=8, num_heads=2, hidden_size=12, dropout=0.0)
both = pytest.mark.parametrize("network", [GRU, TRANSFORMER], ids=["gru", "transformer"])
NOT_KNOWN = [PADDING] * 5
SENTENCES = [[4, 2, 3, 0, PADDING], [5, 0, PADDING, PADDING, PADDING], [2, 2, 3, 4, 0], [6, 3, 0, PADDING, PADDING]]
FORMS = [[3, 2, 0, PADDING], [4, 4, 2, 0], [0, PADDING, PADDING, PADDING], [2, 0, PADDING, PADDING]]
VOCABULARY, LENGTHS = {"x": 5, "sentence": 7}, {"x": 4, "sentence": 5}


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def model_of(network: Any = GRU, **settings: Any) -> Seq4:
    language = partial(LanguageModel, embedding_size=4, hidden_size=6, dropout=0.0)
    networks = {"reader": network, "writer": network, "language_model": language}
    return Seq4((4,), VOCABULARY, LENGTHS, **{**networks, "latent_length": 3, **settings})


def batch_of(*known: bool) -> dict[str, Tensor]:
    """Texts of which some sentences are known."""
    sentences = [sentence if is_known else NOT_KNOWN for sentence, is_known in zip(SENTENCES, known, strict=False)]
    x, sentence = torch.tensor(FORMS[: len(known)]), torch.tensor(sentences)
    lengths = {"length": (x != PADDING).sum(1), "sentence_length": (sentence != PADDING).sum(1)}
    return {"x": x, "sentence": sentence, "known": torch.tensor(known), **lengths}


MIXED = (True, False, True, False)


def at_means(model: Seq4, batch: dict[str, Tensor], step: int = 0) -> Trace:
    with drawing(lambda q: q.mean):
        return model.trace(batch, 1, step)


def terms_of(model: Seq4, batch: dict[str, Tensor], objective: ELBO | None = None) -> dict[str, Tensor]:
    return (objective or ELBO())(at_means(model, batch), 0)


# -- what is in the bound ----------------------------------------------------------------------------------------------


@both
def test_a_known_sentence_has_no_latent_and_its_bound_is_the_exact_likelihood(network: Any) -> None:
    """log p(x, sentence) = log f(x|sentence) + log LM(sentence), ends counted, by a loop over words."""
    model, batch = model_of(network), batch_of(*MIXED)
    terms = ELBO()(model.trace(batch, 2, 0), 0)
    f, _ = model.reader.predict(model.reader.read(batch["sentence"]), batch["x"])
    b, _ = model.writer.predict(model.writer.read(batch["x"]), batch["sentence"])
    prior = model.language_model(batch["sentence"])
    for row in (0, 2):
        nats = dict.fromkeys(("f", "b", "lm"), 0.0)
        for name, logits, text in (("f", f, "x"), ("b", b, "sentence"), ("lm", prior, "sentence")):
            for place, word in enumerate(batch[text][row].tolist()):
                if word != PADDING:
                    nats[name] += logits[row, place].log_softmax(-1)[word].item()
        assert terms["kl"][row] == 0
        assert terms["elbo"][row].item() == pytest.approx(nats["f"] + nats["lm"], abs=1e-5)
        assert terms["cost/inverse"][row].item() == pytest.approx(-nats["b"], abs=1e-5)
    assert (terms["kl"][[1, 3]] > 0).all()
    assert (terms["log_likelihood/sentence"][[1, 3]] == 0).all()
    assert (terms["cost/inverse"][[1, 3]] == 0).all()
    assert (terms["cost/language"][[0, 2]] == 0).all()


def test_an_unknown_sentence_has_the_closed_form_kl_to_the_language_model() -> None:
    """KL = 1/2 sum ((mean - log LM)^2 + s^2) / S^2 - 1 + 2 log(S / s), over all T words, whatever is alive."""
    model, batch = model_of(prior_sigma=2.0), batch_of(False)
    trace = at_means(model, batch)
    latent = trace.latents["sentence"]
    soft = latent.z.softmax(-1)[0]  # [B, T, 6]
    symbols = torch.cat((soft[..., :1], torch.zeros(1, 3, 1), soft[..., 1:]), -1)
    log_prior = without_unknown(model.language_model(symbols)).log_softmax(-1)
    sigma = torch.tensor(0.37)
    kl = ((latent.z[0] - log_prior) ** 2 + sigma**2) / 4 - 1 + 2 * (2 / sigma).log()
    torch.testing.assert_close(trace.kl()["sentence"], kl.sum((1, 2)) / 2, rtol=1e-4, atol=1e-4)
    words = (soft * (soft.log() - log_prior)).sum((1, 2))
    torch.testing.assert_close(trace.costs["language"][0], words)
    assert (words > 0).all()  # a sum of KLs of categories


@both
def test_one_hot_soft_words_give_the_loss_of_whole_numbers(network: Any) -> None:
    model, batch = model_of(network, latent_length=5), batch_of(True, True, True, True)
    told = at_means(model, batch).log_likelihoods()["x"]
    words = iter(F.one_hot(batch["sentence"].clamp(min=0), 7).double().transpose(0, 1))

    def sharp(_: Any) -> Tensor:
        return 100 * without_unknown(next(words)).float()

    hidden = {**batch, "known": torch.zeros(4, dtype=torch.bool)}
    with drawing(sharp):
        soft = model.trace(hidden, 1, 0)
    torch.testing.assert_close(soft.log_likelihoods()["x"], told, rtol=0, atol=1e-5)


@both
def test_padding_changes_nothing(network: Any) -> None:
    model, batch = model_of(network), batch_of(*MIXED)
    longer = {**batch, **{name: F.pad(batch[name], (0, 5), value=PADDING) for name in ("x", "sentence")}}
    terms, padded = terms_of(model, batch), terms_of(model, longer)
    assert terms.keys() == padded.keys()
    for name, value in terms.items():
        torch.testing.assert_close(padded[name], value, rtol=1e-5, atol=1e-5, msg=name)


def test_each_sample_of_several_is_one_of_its_own_text() -> None:
    """At the means of q, every one of three samples of a text has the nats and the words of a single one."""
    model, batch = model_of(), batch_of(*MIXED)
    with drawing(lambda q: q.mean):
        one, three = (model.trace(batch, count, 0) for count in (1, 3))
    for name, value in three.log_likelihoods().items():
        torch.testing.assert_close(value, one.log_likelihoods()[name].expand(3, -1), msg=name)
    latent, alone = three.latents["sentence"], one.latents["sentence"]
    torch.testing.assert_close(latent.z, alone.z.expand_as(latent.z))
    torch.testing.assert_close(latent.kl(), alone.kl().expand(3, -1))
    torch.testing.assert_close(three.costs["language"], one.costs["language"].expand(3, -1))


def test_a_sentence_that_is_there_but_not_known_is_not_used() -> None:
    model, batch = model_of(), batch_of(True, True, True, True)
    hidden = {**batch, "known": torch.tensor(MIXED)}
    terms, expected = terms_of(model, hidden), terms_of(model, batch_of(*MIXED))
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)


def test_examples_do_not_see_each_other() -> None:
    model, batch = model_of(), batch_of(*MIXED)
    terms = terms_of(model, batch)
    order = torch.tensor([3, 0, 2, 1])
    moved = terms_of(model, {name: value[order] for name, value in batch.items()})
    for name in terms:
        torch.testing.assert_close(moved[name], terms[name][order], rtol=1e-5, atol=1e-5, msg=name)


# -- gradients ---------------------------------------------------------------------------------------------------------


def gradient(model: Seq4, value: Tensor, part: str) -> list[Tensor | None]:
    weights = list(getattr(model, part).parameters())
    return list(torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True))


@both
def test_the_gradient_of_x_reaches_the_writer_through_the_soft_sentence(network: Any) -> None:
    model, batch = model_of(network), batch_of(False, False)
    nats = model.trace(batch, 2, 0).log_likelihoods()["x"].sum()
    (embedding, *_) = gradient(model, nats, "writer")
    assert embedding is not None
    assert embedding.abs().max() > 0


def test_without_noise_the_gradient_is_that_of_the_path_of_means() -> None:
    sharp = partial(DiagonalNormal, sigma=1e-6, min_sigma=0.0)
    model, batch = model_of(posterior=sharp), batch_of(False, False)
    noisy = gradient(model, model.trace(batch, 1, 0).log_likelihoods()["x"].sum(), "writer")
    exact = gradient(model, at_means(model, batch).log_likelihoods()["x"].sum(), "writer")
    for one, other in zip(noisy, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_the_slope_of_the_kl_is_that_of_differences() -> None:
    """By every path: the means, and the soft words that the language model reads before the next one."""
    model, batch = model_of().double(), batch_of(False, False)

    def terms() -> tuple[Tensor, Tensor]:
        trace = at_means(model, batch)
        return trace.kl()["sentence"].sum(), trace.costs["language"].sum()

    bias, size = model.writer.bias, 1e-5
    slopes = [torch.autograd.grad(value, bias, retain_graph=True)[0] for value in terms()]
    for word in (END_TOKEN, 4):
        values = []
        for change in (size, -size):
            with torch.no_grad():
                bias[word] += change
                values.append(terms())
                bias[word] -= change
        for slope, above, below in zip(slopes, *values, strict=True):
            torch.testing.assert_close(slope[word], (above - below) / (2 * size), rtol=1e-5, atol=1e-7)


def test_the_language_model_gets_no_gradient_from_unknown_sentences() -> None:
    model = model_of()
    trace = model.trace(batch_of(False, False), 1, 0)
    unlabelled = trace.kl()["sentence"].sum() + trace.costs["language"].sum() - trace.log_likelihoods()["x"].sum()
    assert all(slope is None for slope in gradient(model, unlabelled, "language_model"))
    assert any(slope is not None and slope.abs().max() > 0 for slope in gradient(model, unlabelled, "writer"))
    known = model.trace(batch_of(True), 1, 0).log_likelihoods()["sentence"].sum()
    assert all(slope is not None and slope.abs().max() > 0 for slope in gradient(model, known, "language_model"))


@pytest.mark.parametrize("known", [(True, True), (False, False), (True, False)], ids=["all", "none", "some"])
def test_every_weight_has_a_gradient_in_every_batch(known: tuple[bool, ...]) -> None:
    """Also the weights without work: several devices wait for the gradient of each weight."""
    model = model_of(posterior=partial(DiagonalNormal, sigma=0.37, learn_sigma=True))
    trace = model.trace(batch_of(*known), 1, 0)
    check_trace("Seq4", model.state_dict(), trace)
    ELBO()(trace, 0)["loss"].mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []
    assert all(weight.grad.isfinite().all() for weight in model.parameters())
    idle = {(True, True): "raw_sigma", (False, False): "language_model"}.get(known, "nothing")
    for name, weight in model.named_parameters():
        if idle in name:
            assert weight.grad.abs().max() == 0, name


# -- weights of examples -----------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_of_known_plus_w_times_the_mean_of_unknown() -> None:
    model = model_of(unlabelled_weight=LinearWarmup(10, end=0.5))
    batch = batch_of(True, False, False, False)
    for step, weight in ((0, 0.0), (5, 0.25), (10, 0.5), (None, 0.5)):
        with drawing(lambda q: q.mean):
            trace = model.trace(batch, 1, step)
        plain = ELBO()(Trace(trace.x, trace.p_x, trace.latents, observed=trace.observed, costs=trace.costs), 0)["loss"]
        expected = plain[0] + weight * plain[1:].mean()
        torch.testing.assert_close(ELBO()(trace, 0)["loss"].mean(), expected)


def test_what_is_read_and_written_may_be_as_long_as_the_data() -> None:
    model = model_of()
    with torch.no_grad():
        for network in (model.reader, model.writer):
            network.bias[END_TOKEN] = -99.0
    batch = batch_of(True, True)
    assert model.read(batch["sentence"]).shape == (2, 4)
    assert model.write(batch["x"]).shape == (2, 5)
    assert (model.write(batch["x"]) > END_TOKEN).all()


def test_a_latent_sentence_may_be_as_long_as_the_true_ones() -> None:
    model = model_of(latent_length=None)
    assert model.trace(batch_of(False), 1, 0).latents["sentence"].z.shape == (1, 1, 5, 6)


def test_both_arms_give_known_sentences_the_same_loss() -> None:
    """The labelled rows alone, as the supervised arm has them, and beside unlabelled rows of weight 0."""
    model = model_of(unlabelled_weight=0.0)
    alone = batch_of(True, True)
    beside = {name: torch.cat((alone[name], batch_of(False, False)[name])) for name in alone}
    losses = [terms_of(model, batch)["loss"].mean() for batch in (alone, beside)]
    torch.testing.assert_close(*losses)


# -- evaluation --------------------------------------------------------------------------------------------------------


def test_evaluation_hides_the_sentence_from_the_bound_and_reads_it_beside() -> None:
    model, batch = model_of().eval(), batch_of(True, True, True, True)
    trace = at_means(model, batch)
    check_trace("Seq4", model.state_dict(), trace)
    assert (trace.kl()["sentence"] > 0).all()
    assert not trace.observed
    assert trace.example_weight is None
    other = {**batch, "sentence": batch["sentence"].flip(0)}
    torch.testing.assert_close(at_means(model, other).log_likelihoods()["x"], trace.log_likelihoods()["x"])
    found = trace.found
    told = model.train().trace(batch, 1, 0)
    torch.testing.assert_close(found["x_nats"], -told.log_likelihoods()["x"][0])
    torch.testing.assert_close(found["sentence_nats"], told.costs["inverse"])
    torch.testing.assert_close(trace.costs["reading"], found["x_nats"])
    model.eval()
    assert torch.equal(found["tokens"], model.read(batch["sentence"]))
    assert torch.equal(found["sentence_tokens"], model.write(batch["x"]))
    assert torch.equal(found["round_trip"], model.read(found["sentence_tokens"]))
    assert "elbo and nll are of" not in describe_bound("Classes", trace)


def test_the_latent_sentence_found_is_the_likeliest_words_up_to_the_end() -> None:
    """Those of the first sample of each text."""
    model, batch = model_of().eval(), batch_of(True, True)
    words = iter(torch.tensor([[5, 4, 2, 3], [0, 6, 2, 3], [3, 0, 2, 3]]))  # the second ends at its last place
    with drawing(lambda _: 50 * without_unknown(F.one_hot(next(words), 7).float())):
        found = model.trace(batch, 2).found["latent_tokens"]
    assert found.tolist() == [[5, 0, PADDING], [4, 6, 0]]


def test_the_importance_estimate_is_above_the_bound() -> None:
    model, batch = model_of(prior_sigma=0.5).eval(), batch_of(True, True)
    with torch.no_grad():
        elbo = ELBO(num_samples=1)(model.trace(batch, 50), 0)["elbo"]
        assert (log_marginal_likelihood(model, batch, 100) > elbo).all()


def test_samples_are_texts_read_from_sentences_of_the_language_model() -> None:
    model = model_of().eval()
    sentences = model.sample_sentences(300)
    assert sentences.shape == (300, 5)
    assert not (sentences == UNKNOWN_TOKEN).any()
    behind = (sentences == END_TOKEN).cumsum(1) - (sentences == END_TOKEN).long() > 0
    assert torch.equal(behind, sentences == PADDING)
    assert model.sample(3).shape == (3, 4)


def test_sentences_are_drawn_with_the_probabilities_of_the_language_model() -> None:
    """The shares of the first two words, of 20,000 sentences, against the product of both conditionals."""
    model = model_of().eval()
    with torch.no_grad():
        for weight in model.language_model.parameters():
            weight.mul_(6)  # far from uniform
        firsts = torch.tensor([[word, PADDING] for word in range(7)])
        logits = model.language_model(firsts)  # [7, 2, 7]
        logits[..., UNKNOWN_TOKEN] = -torch.inf
        shares = logits.softmax(-1)
    expected = shares[0, 0, :, None] * shares[:, 1]  # [7, 7]
    expected[END_TOKEN] = 0.0  # nothing follows the end
    sentences = model.sample_sentences(20_000)
    pairs = sentences[sentences[:, 0] != END_TOKEN, :2]
    found = torch.bincount(7 * pairs[:, 0] + pairs[:, 1], minlength=49).view(7, 7) / 20_000
    assert (expected - 1 / 36).abs().max() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


def test_attention_looks_at_the_sentence_alone() -> None:
    model, batch = model_of(), batch_of(True, True)
    maps = model.attention(batch["sentence"], batch["x"])
    assert maps.shape == (2, 4, 5)
    torch.testing.assert_close(maps.sum(-1), torch.ones(2, 4))
    assert maps[1, :, 2:].max() < 1e-6


def test_tables_and_maps_of_attention() -> None:
    data = ToyQueries(num_pairs=6, num_unlabelled=0, num_val=3, num_test=3)
    language = partial(LanguageModel, embedding_size=4, hidden_size=6)
    networks = {"reader": GRU, "writer": GRU, "language_model": language}
    model = Seq4(data.x_shape, dict(data.vocabulary), dict(data.max_length), **networks, latent_length=3).eval()
    scenes = model.scenes(data)
    assert isinstance(scenes["attention"], Tensor)
    assert scenes["attention"].shape == (3, 1, 8 * 10, 8 * 20)
    lengths = data.examples("val").select(torch.arange(3))["length"]
    for picture, length in zip(scenes["attention"][:, 0], lengths.tolist(), strict=True):
        assert picture[: 8 * length].amax(1).min() > 0
        assert picture[8 * length :].count_nonzero() == 0  # no row of padding
    assert all(" => " in line for line in scenes["samples"])
    batch = {name: value.long() for name, value in data.examples("val").select(torch.arange(3)).items()}
    panes = model.panes(model.trace({**batch, "known": batch["known"].bool()}, 1))
    shown = {caption: data.show_field(*pane) for caption, pane in panes.items() if isinstance(pane, tuple)}
    assert shown["sentence"] == [pair.sentence for pair in data.pairs("val")]
    assert all(len(texts) == 3 for texts in shown.values())
    assert all(len(text.split()) <= 3 for text in shown["latent sentence"])
    assert model.scenes(None) == {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's warnings
def test_a_compiled_step_is_the_same_step_whatever_number_of_sentences_is_known() -> None:
    """The rows of unknown sentences are a shape that depends on the data: the compiler splits the function there."""
    model = model_of(GRU, objective=partial(ELBO, beta=0.1))
    compiled = torch.compile(model.loss_and_terms, backend="eager")
    for known in ((True, False, True, False), (True, True, True, False), (True,) * 4, (False,) * 4):
        losses, gradients = [], []
        for is_compiled in (True, False):
            model.zero_grad()
            torch.manual_seed(3)
            batch = batch_of(*known)
            loss = compiled(batch, 0)[0] if is_compiled else ELBO(beta=0.1)(model.trace(batch, 1, 0), 0)["loss"].mean()
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
            gradients.append(torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None]))
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*gradients)


# -- bad input ---------------------------------------------------------------------------------------------------------


def without(name: str) -> Callable[[], object]:
    return lambda: model_of().trace({key: value for key, value in batch_of(True).items() if key != name})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: model_of(posterior=DiagonalNormal), "the posterior takes one number for each word; choose one of"),
        (lambda: model_of(prior_sigma=0.0), "prior_sigma is 0.0; it must be above 0"),
        (lambda: model_of(latent_length=0), "latent_length is 0; it must be at least 1"),
        (lambda: model_of(unlabelled_weight=-1.0), "unlabelled_weight is -1.0; it must be at least 0"),
        (lambda: Seq4((4,), {"x": 5}, LENGTHS), "vocabulary has x; it must have x and sentence"),
        (without("sentence"), "Seq4 needs sentence of each example, and the batch has x, known"),
        (without("known"), "Seq4 needs known of each example"),
        (lambda: model_of().sample(0), "it must be a whole number of at least 1"),
    ],
)
def test_bad_input(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
