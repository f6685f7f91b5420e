"""Scores of models of two texts: whole forms and sentences against the truth, over the whole test set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchmetrics.functional.text import edit_distance
from torchmetrics.text import BLEUScore

from vae_lightning.data import DataModule, TextPairs
from vae_lightning.metrics.evaluator import Evaluator, Finding
from vae_lightning.metrics.latents import update_mean, with_stderr
from vae_lightning.metrics.likelihood import MeanAndError
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Trace
from vae_lightning.types import END_TOKEN, PADDING, UNKNOWN_TOKEN, Batch

_READ = ("tokens", "sentence_tokens", "round_trip", "latent_tokens", "x_nats", "sentence_nats")
_FIRST_LETTER = 0x4E00  # the letter of word 0; Unicode's surrogates, which are no letters, begin 35,000 later


class TextScores(Evaluator):
    """Scores of what a model reads and writes: x from its sentence, a sentence from x, and back.

    Use it for data that are `TextPairs`. The model gives whole numbers [B, L] in `Trace.found`, of which those behind
    the first end are ignored: `tokens`, x as read from the sentence; `sentence_tokens`, a sentence of x; `round_trip`,
    x as read from that sentence; `latent_tokens`, the latent sentence of x. It may also give nats [B]: `x_nats`,
    -log p(x|sentence), and `sentence_nats`, -log p(sentence|x). Scores of fields that it does not give are left out.

    - `exact_match`: the share of sentences whose whole x is read right. A word that the data do not know is never
      right.
    - `token_accuracy`: the share of the words of x, the end counted, that are right at their place, averaged over
      examples.
    - `bleu/x`, `edit_distance/x`: BLEU-4 of the set, between 0 and 1 (papers print it times 100); the mean number of
      words to replace, insert or delete.
    - `bleu/sentence`, `exact_match_any/sentence`, `edit_distance/sentence`: those of `sentence_tokens` against all
      known sentences of x; the edit distance is that from the nearest one. A sentence has many paraphrases, so that a
      match with the one of the batch says little.
    - `round_trip`: the share of x that are read back whole.
    - `length_ratio/latent`, `length_ratio/sentence`: the mean number of words of latent sentences and of
      `sentence_tokens`, divided by that of the true ones: 0 if a model has learnt the empty sentence.
    - `nats_per_token/x`, `nats_per_token/sentence`: of `x_nats` and `sentence_nats`; `nats_per_token/reconstruction`:
      -log p(x|z). The sum over the set is divided by the number of words in the set, ends counted.
    """

    units: ClassVar[Mapping[str, str]] = {
        "exact_match": "share, 1 at best",
        "token_accuracy": "share, 1 at best",
        "bleu": "0 to 1, 1 at best",
        "edit_distance": "words",
        "exact_match_any": "share, 1 at best",
        "round_trip": "share, 1 at best",
        "length_ratio": "share of the true length",
        "nats_per_token": "nats per word",
    }

    def why_not_applicable(self, trace: Trace, data: DataModule | None) -> str | None:
        if not isinstance(data, TextPairs):
            return "the data are no pairs of texts"
        if not trace.found.keys() & set(_READ):
            return f"the model reads no text (Trace.found has none of {', '.join(_READ)})"
        return None

    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        assert isinstance(data, TextPairs)
        self._data = data
        self._means: dict[str, MeanAndError] = {}
        self._bleu: dict[str, BLEUScore] = {}

    def update(self, trace: Trace, batch: Batch) -> None:
        known, found = batch["known"], trace.found
        labelled = {name: values[known] for name, values in batch.items()}
        read = {name: found[name][known] for name in _READ if name in found}
        self._update_nats("reconstruction", -trace.mean(trace.log_likelihoods()["x"]), batch["length"])
        if "round_trip" in found:
            update_mean(self._means, "round_trip", _matches(found["round_trip"], batch["x"])[0].all(1).float())
        if "tokens" in read:
            self._update_x(read["tokens"], labelled["x"])
        if "sentence_tokens" in read:
            self._update_sentence(read["sentence_tokens"], labelled)
        for name, field in (("latent", "latent_tokens"), ("sentence", "sentence_tokens")):
            if field in read:
                update_mean(self._means, f"words_found/{name}", _num_words(read[field]))
                update_mean(self._means, f"words_true/{name}", _num_words(labelled["sentence"]))
        for name, length in (("x", "length"), ("sentence", "sentence_length")):
            if f"{name}_nats" in read:
                self._update_nats(name, read[f"{name}_nats"], labelled[length])

    def _update_nats(self, name: str, nats: Tensor, length: Tensor) -> None:
        update_mean(self._means, f"nats/{name}", nats)
        update_mean(self._means, f"tokens/{name}", length.float())

    def _update_x(self, found: Tensor, truth: Tensor) -> None:
        right, counted = _matches(found, truth)
        update_mean(self._means, "exact_match", right.all(1).float())
        update_mean(self._means, "token_accuracy", (right & counted).sum(1) / counted.sum(1))
        texts = self._data.decode("x", truth)
        self._update_bleu("x", found, [[text] for text in texts])
        self._update_distance("x", found, _letters(truth), [1] * len(truth))

    def _update_sentence(self, found: Tensor, batch: Batch) -> None:
        own = self._data.decode("sentence", batch["sentence"])
        references = self._data.references(self._data.decode("x", batch["x"]))
        references = [known or [text] for known, text in zip(references, own, strict=True)]
        self._update_bleu("sentence", found, references)
        texts = self._data.decode("sentence", found)
        hits = [text in known for text, known in zip(texts, references, strict=True)]
        update_mean(self._means, "exact_match_any/sentence", torch.tensor(hits, device=found.device).float())
        flat, words = [text for known in references for text in known], self._data.words["sentence"]
        numbers = words.encode(flat, 1 + max((len(text.split()) for text in flat), default=0))
        self._update_distance("sentence", found, _letters(numbers), list(map(len, references)))

    def _update_bleu(self, field: str, found: Tensor, references: Sequence[Sequence[str]]) -> None:
        bleu = self._bleu.setdefault(field, BLEUScore().to(found.device))
        bleu.update(self._data.decode(field, found), references)

    def _update_distance(self, field: str, found: Tensor, references: list[str], counts: list[int]) -> None:
        """Add the distance of each text from the nearest of its references, of which there are `counts`."""
        texts = [text for text, count in zip(_letters(found), counts, strict=True) for _ in range(count)]
        distances = edit_distance(texts, references, reduction="none").split(counts) if texts else ()
        nearest = torch.tensor([int(each.min()) for each in distances], device=found.device).float()
        update_mean(self._means, f"edit_distance/{field}", nearest)

    def compute(self) -> dict[str, Finding]:
        found: dict[str, Finding] = {}
        for name, mean in self._means.items():
            if name.partition("/")[0] in self.units:
                found |= with_stderr(name, mean)
        found |= {f"bleu/{field}": float(bleu.compute()) for field, bleu in self._bleu.items()}
        ratios = (("length_ratio", "words_found", "words_true"), ("nats_per_token", "nats", "tokens"))
        for name, above, below in ratios:
            for field in ("latent", "sentence", "x", "reconstruction"):
                if f"{above}/{field}" in self._means:
                    parts = [self._means[f"{part}/{field}"].compute()[0] for part in (above, below)]
                    found[f"{name}/{field}"] = float(parts[0] / parts[1])
        return found


def until_end(tokens: Tensor) -> Tensor:
    """Replace what stands behind the first end of each row by padding: [B, L].

    Args:
        tokens: Numbers of words, [B, L].
    """
    ends = tokens == END_TOKEN
    return tokens.masked_fill(ends.cumsum(1) - ends.long() > 0, PADDING)


def _matches(found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Which places agree up to both ends, padding with padding, and which hold a true word: bool [B, L] each."""
    length = max(found.shape[1], truth.shape[1])
    found, truth = (
        pad(until_end(tokens), (0, length - tokens.shape[1]), value=PADDING) for tokens in (found.long(), truth.long())
    )
    return (found == truth) & (truth != UNKNOWN_TOKEN), truth != PADDING


def _num_words(tokens: Tensor) -> Tensor:
    """The number of words before the end: float32 [B]."""
    return (until_end(tokens) > END_TOKEN).sum(1).float()


def _letters(tokens: Tensor) -> list[str]:
    """A text with one letter for each word before the end, because `edit_distance` counts letters."""
    rows = until_end(tokens).tolist()
    return ["".join(chr(_FIRST_LETTER + number) for number in row if number > END_TOKEN) for row in rows]
