"""Scores of two texts: known answers, ends and padding, paraphrases, and independence from batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent

from vae_lightning.data import Mazes, ToyQueries, Words
from vae_lightning.distributions import Masked
from vae_lightning.metrics.texts import TextScores, until_end
from vae_lightning.trace import Trace
from vae_lightning.types import Batch

MODEL: Any = SimpleNamespace(device=torch.device("cpu"))
X = ("a b c d", "b", "c d e <unk>")  # the third has a word that the data do not know
SENTENCES = ("one two three four", "two", "three one four two")


class Tiny(ToyQueries):
    """Two vocabularies of five words; x `b` has two sentences."""

    def find_words(self) -> dict[str, Words]:
        return {"x": Words("abcde"), "sentence": Words(["one", "two", "three", "four", "five"])}

    def references(self, forms: Sequence[str]) -> list[list[str]]:
        return [{"a b c d": [SENTENCES[0]], "b": ["two", "five four"]}.get(form, []) for form in forms]


DATA = Tiny()


def encode(field: str, lines: Sequence[str], length: int = 6) -> Tensor:
    return DATA.words[field].encode(lines, length)


def batch_of(x: Sequence[str] = X, sentences: Sequence[str] = SENTENCES) -> Batch:
    batch = {"x": encode("x", x), "sentence": encode("sentence", sentences)}
    lengths = {"length": (batch["x"] >= 0).sum(1), "sentence_length": (batch["sentence"] >= 0).sum(1)}
    return {**batch, **lengths, "known": torch.ones(len(x), dtype=torch.bool)}


def trace_of(batch: Batch, **found: Tensor) -> Trace:
    """A trace in which every word of x has 1 / 7."""
    seen = batch["x"] >= 0
    p = Independent(Categorical(logits=torch.zeros(1, *batch["x"].shape, 7), validate_args=False), 1)
    return Trace(batch["x"], Masked(p, seen), found=found)


def scores(*parts: tuple[Trace, Batch]) -> dict[str, Any]:
    metric = TextScores()
    metric.begin(MODEL, DATA)
    for trace, batch in parts:
        assert metric.why_not_applicable(trace, DATA) is None
        metric.update(trace, batch)
    return metric.compute()


def test_what_is_right_has_the_best_scores() -> None:
    batch = batch_of(X[:2], SENTENCES[:2])
    everything = {"tokens": batch["x"], "round_trip": batch["x"], "sentence_tokens": batch["sentence"]}
    found = scores((trace_of(batch, **everything, latent_tokens=batch["sentence"]), batch))
    for name in ("exact_match", "token_accuracy", "bleu/x", "bleu/sentence", "round_trip", "exact_match_any/sentence"):
        assert found[name] == 1
    assert found["edit_distance/x"] == found["edit_distance/sentence"] == 0
    assert found["length_ratio/latent"] == found["length_ratio/sentence"] == 1
    assert found["nats_per_token/reconstruction"] == pytest.approx(math.log(7))
    assert found.keys().isdisjoint({"nats_per_token/x", "nats_per_token/sentence"})


def test_each_score_has_its_known_answer() -> None:
    """One word of four is wrong; one x is right; one has a word that is not known, which no answer can hit."""
    batch = batch_of()
    tokens = encode("x", ["a b e d", "b", "c d e <unk>"])
    found = scores((trace_of(batch, tokens=tokens, round_trip=encode("x", ["a b c d", "b b", "c"])), batch))
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["token_accuracy"] == pytest.approx((4 / 5 + 1 + 4 / 5) / 3)
    assert found["edit_distance/x"] == pytest.approx(1 / 3)
    assert found["round_trip"] == pytest.approx(1 / 3)
    precisions = [8 / 9, 4 / 6, 2 / 4, 1 / 2]  # of one to four words in a row: a b e d, b, c d e <unk>
    assert found["bleu/x"] == pytest.approx(math.prod(precisions) ** 0.25)


def test_a_sentence_may_be_any_paraphrase() -> None:
    batch = batch_of()
    tokens = encode("sentence", ["one two three four", "five four", "three one four"])
    found = scores((trace_of(batch, sentence_tokens=tokens), batch))
    assert found["exact_match_any/sentence"] == pytest.approx(2 / 3)  # the third is compared with the batch's own
    assert found["edit_distance/sentence"] == pytest.approx(1 / 3)
    assert found["length_ratio/sentence"] == 1
    assert found["bleu/sentence"] == pytest.approx(math.exp(1 - 10 / 9))  # all is right, but one word of ten is missing


def test_the_empty_sentence_is_seen() -> None:
    batch = batch_of()
    empty = torch.zeros(3, 6, dtype=torch.long)
    found = scores((trace_of(batch, latent_tokens=empty, sentence_tokens=empty), batch))
    assert found["length_ratio/latent"] == found["length_ratio/sentence"] == found["bleu/sentence"] == 0
    assert found["edit_distance/sentence"] == pytest.approx((4 + 1 + 4) / 3)


@pytest.mark.parametrize("behind", [-1, 0, 3])
@pytest.mark.parametrize("width", [5, 9])
def test_what_is_behind_the_end_is_ignored(width: int, behind: int) -> None:
    batch = batch_of(X[:2], SENTENCES[:2])
    tokens = encode("x", X[:2], 9)
    tokens = torch.where(until_end(tokens) < 0, behind, tokens)[:, :width]
    found = scores((trace_of(batch, tokens=tokens), batch))
    assert found["exact_match"] == found["token_accuracy"] == found["bleu/x"] == 1


def test_a_text_without_an_end_is_not_the_truth() -> None:
    batch = batch_of(X[:2], SENTENCES[:2])
    found = scores((trace_of(batch, tokens=encode("x", ["a b c d e", "b"])[:, :5]), batch))
    assert found["exact_match"] == 0.5
    found = scores((trace_of(batch, tokens=encode("x", ["a b c d", "b"])[:, :4]), batch))
    assert found["exact_match"] == 0.5
    assert found["edit_distance/x"] == 0  # the end is no word to insert


def test_nats_are_divided_by_the_words_of_the_set() -> None:
    batch = batch_of()
    nats = {"x_nats": torch.tensor([1.0, 2.0, 3.0]), "sentence_nats": torch.tensor([0.0, 6.0, 0.0])}
    found = scores((trace_of(batch, **nats), batch))
    assert found["nats_per_token/x"] == pytest.approx(6 / (5 + 2 + 5))
    assert found["nats_per_token/sentence"] == pytest.approx(6 / (5 + 2 + 5))


def test_scores_do_not_depend_on_the_batches() -> None:
    """BLEU of the set is not the mean of batches; unknown sentences are left out."""
    batch = batch_of((*X, "e e"), (*SENTENCES, "one"))
    batch["known"][3], batch["sentence"][3], batch["sentence_length"][3] = False, -1, 0
    found = {"tokens": encode("x", ["a b c d", "a", "c d e a", "d"]), "x_nats": torch.tensor([1.0, 2.0, 3.0, 9.0])}
    found |= {"sentence_tokens": encode("sentence", ["one two", "two", "three one four two", "five"])}
    found |= {"round_trip": encode("x", ["a b c d", "a", "c", "e e"])}

    def part(rows: slice) -> tuple[Trace, Batch]:
        some = {name: values[rows] for name, values in batch.items()}
        return trace_of(some, **{name: values[rows] for name, values in found.items()}), some

    whole = scores(part(slice(None)))
    assert scores(part(slice(0, 1)), part(slice(1, 4))) == pytest.approx(whole)
    assert whole["exact_match"] == pytest.approx(1 / 3)
    assert whole["round_trip"] == 0.5
    assert whole["nats_per_token/x"] == pytest.approx(6 / 12)


def test_it_applies_to_texts_that_a_model_reads() -> None:
    batch, metric = batch_of(), TextScores()
    assert metric.why_not_applicable(trace_of(batch, tokens=batch["x"]), Mazes()) == "the data are no pairs of texts"
    assert "the model reads no text" in str(metric.why_not_applicable(trace_of(batch), DATA))
    units = {
        name.partition("/")[0].removesuffix("_stderr")
        for name in scores((trace_of(batch, **{"tokens": batch["x"]}), batch))
    }
    assert units <= metric.units.keys()
