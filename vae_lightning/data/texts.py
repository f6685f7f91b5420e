"""Pairs of texts as whole numbers: words, ends, padding, and labelled and unlabelled examples in one training set."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from vae_lightning.data.module import SPLITS, DataModule, Split
from vae_lightning.runs.suggestions import hint
from vae_lightning.storage.examples import Examples
from vae_lightning.storage.loader import check_share
from vae_lightning.storage.transforms import BatchTransform, Draw
from vae_lightning.types import END_TOKEN, PADDING, UNKNOWN_TOKEN, Batch, Shape, UserError

END, UNKNOWN = "<end>", "<unk>"
FIELDS = ("sentence", "x")
_FIELDS_OF_BATCH = frozenset({"x", "length", "sentence", "sentence_length", "known"})


class Pair(NamedTuple):
    """A sentence and its x; both are words with spaces between them.

    Args:
        sentence: The sentence; in a translation, the source text.
        x: The logical form; in a translation, the target text.
    """

    sentence: str
    x: str


class Words:
    """The words of a field by their numbers; 0 is the end of a text and 1 a word that is not known.

    Args:
        words: The other words, without repeats.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = (END, UNKNOWN, *(word for word in words if word not in (END, UNKNOWN)))
        self._numbers = {word: number for number, word in enumerate(self.words) if word != END}

    def __len__(self) -> int:
        return len(self.words)

    @property
    def fingerprint(self) -> str:
        """A number of 16 letters that differs between other words, or words in another order."""
        return hashlib.sha256("\n".join(self.words).encode()).hexdigest()[:16]

    def __contains__(self, word: str) -> bool:
        return self._numbers.get(word, UNKNOWN_TOKEN) != UNKNOWN_TOKEN

    def encode(self, lines: Sequence[str], length: int) -> Tensor:
        """Return the numbers of the words of each line, the end, and padding: int64 [N, length].

        Args:
            lines: N texts of fewer than `length` words.
            length: The number of columns.
        """
        rows = []
        for line in lines:
            numbers = [*(self._numbers.get(word, UNKNOWN_TOKEN) for word in line.split()), END_TOKEN]
            rows.append(numbers + [PADDING] * (length - len(numbers)))
        return torch.tensor(rows, dtype=torch.long).view(len(rows), length)

    def decode(self, tokens: Tensor) -> list[str]:
        """Return the text before the first end of each row, without padding.

        Args:
            tokens: Whole numbers, [N, L].
        """
        rows = [row[: row.index(END_TOKEN)] if END_TOKEN in row else row for row in tokens.tolist()]
        return [" ".join(self.words[number] for number in row if number >= 0) for row in rows]


class AsTokens(BatchTransform):
    """Turn stored numbers of words into int64: `x` and `sentence`."""

    changes = frozenset(FIELDS)

    def apply(self, batch: Batch, draw: Draw) -> Batch:
        return {name: batch[name].long() for name in FIELDS}


class LabelledAlone(AsTokens):
    """Leave the unlabelled examples out of each batch; if none is left, take one labelled example instead.

    Args:
        examples: The training examples; the labelled ones come first.
        num_pairs: The number of labelled examples.
    """

    changes = _FIELDS_OF_BATCH

    def __init__(self, examples: Examples, num_pairs: int) -> None:
        self.examples, self.num_pairs = examples, num_pairs

    def apply(self, batch: Batch, draw: Draw) -> Batch:
        rows = batch["known"].nonzero().flatten()
        if len(rows):
            batch = {name: values[rows] for name, values in batch.items()}
        else:  # a short last batch of an epoch
            index = (draw.index[:1] % self.num_pairs).to(self.examples.device)
            batch = {name: row.to(batch["x"].device) for name, row in self.examples.select(index).items()}
        return {**batch, **super().apply(batch, draw)}


class TextPairs(DataModule):
    """Texts x, some of them with a sentence: the base class of data for semi-supervised models of two texts.

    A batch holds `x`, int64 [B, T_x], the numbers of the words of the form, or of the target of a translation, which
    the model explains; `sentence`, int64 [B, T_sentence]; `length` and `sentence_length`, int64 [B], with the end
    counted; `known`, bool [B], whether the sentence is known. Each text ends with the number 0; -1 is padding, and a
    row of -1 a sentence that is not known. Validation and test know every sentence.

    A share of each training batch is drawn from the labelled pairs, whatever their number. With `use_unlabelled` false,
    the batches hold these pairs alone: the same pairs at the same steps, so that both ways of training can be compared.

    Args:
        data_dir: Folder of the data set's files.
        labelled_share: The share of each training batch that is drawn from the labelled pairs, if there are others.
        use_unlabelled: Whether training batches hold the unlabelled x. False: training is supervised.
        kwargs: Arguments of `DataModule`.

    Raises:
        UserError: if the share is not between 0 and 1.
    """

    def __init__(
        self, data_dir: str = "data", *, labelled_share: float = 0.5, use_unlabelled: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        if not 0 < labelled_share < 1:
            raise UserError(
                f"{type(self).__name__}: labelled_share is {labelled_share}; it must be above 0 and below 1"
            )
        self.labelled_share, self.use_unlabelled = labelled_share, use_unlabelled

    @abstractmethod
    def pairs(self, split: Split) -> Sequence[Pair]:
        """Return the labelled pairs of a split.

        Args:
            split: `train`, `val` or `test`.
        """

    @abstractmethod
    def unlabelled(self) -> Sequence[str]:
        """Return the texts x of training that have no sentence."""

    @abstractmethod
    def find_words(self) -> Mapping[str, Words]:
        """Return the words of the fields `x` and `sentence`."""

    @abstractmethod
    def find_longest(self) -> Mapping[str, int]:
        """Return the largest number of words of the fields `x` and `sentence`, the end not counted."""

    @cached_property
    def words(self) -> Mapping[str, Words]:
        """The words of the fields `x` and `sentence`."""
        return self.find_words()

    # a cached_property can be set, but mypy thinks that it cannot
    @cached_property
    def vocabulary(self) -> Mapping[str, int]:  # type: ignore[override]
        """The number of words of the fields `x` and `sentence`, with the end and the unknown word."""
        return {field: len(words) for field, words in self.words.items()}

    @cached_property
    def max_length(self) -> Mapping[str, int]:  # type: ignore[override]
        """The number of columns of the fields `x` and `sentence`."""
        return {field: longest + 1 for field, longest in self.find_longest().items()}

    @cached_property
    def x_shape(self) -> Shape:  # type: ignore[override]
        """(T_x,)."""
        return (self.max_length["x"],)

    @cached_property
    def sentences_of(self) -> Mapping[str, list[str]]:
        """The sentences of each x in the pairs of all splits."""
        found: dict[str, list[str]] = {}
        for split in SPLITS:
            for sentence, x in self.pairs(split):
                if sentence not in found.setdefault(x, []):
                    found[x].append(sentence)
        return found

    def references(self, forms: Sequence[str]) -> list[list[str]]:
        """Return all known sentences of each x, for scores that accept any known sentence.

        Args:
            forms: Texts x as `decode` returns them.
        """
        return [self.sentences_of.get(form, []) for form in forms]

    def encode(self, field: str, lines: Sequence[str]) -> tuple[Tensor, int]:
        """Return lines as the field of a batch, int64 [n, T], and the number of words that are not known.

        Args:
            field: `x` or `sentence`.
            lines: The texts.

        Raises:
            UserError: if there is no such field, or if a line is empty or too long.
        """
        words, longest = self._words_of(field), self.max_length[field] - 1
        for number, line in enumerate(lines, 1):
            if not 0 < (count := len(line.split())) <= longest:
                raise UserError(
                    f"line {number} has {count} words; a text of {field} has 1 to {longest}, as in the data"
                )
        return words.encode(lines, longest + 1), sum(word not in words for line in lines for word in line.split())

    def decode(self, field: str, tokens: Tensor) -> list[str]:
        """Return the text of each row, up to its end.

        Args:
            field: `x` or `sentence`.
            tokens: Numbers of words, [n, L].

        Raises:
            UserError: if there is no such field.
        """
        return self._words_of(field).decode(tokens)

    def show(self, x: Tensor) -> list[str]:
        """Return the text of each x.

        Args:
            x: Numbers of words, [n, L].
        """
        return self.decode("x", x)

    def show_field(self, field: str, values: Tensor) -> list[str]:
        """Return the text of each row of a field, which tables show for the rows of a model's `panes`.

        Args:
            field: `x` or `sentence`.
            values: Numbers of words, [n, L].
        """
        return self.decode(field, values)

    def _words_of(self, field: str) -> Words:
        if field not in self.words:
            raise UserError(f"{type(self).__name__} has the fields x and sentence, and no {field}{hint(field, FIELDS)}")
        return self.words[field]

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprints of the words, which a checkpoint keeps: the numbers of words mean nothing alone."""
        return {"words": {field: words.fingerprint for field, words in self.words.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse words that are not those of the checkpoint's training.

        Args:
            state_dict: What `state_dict` returned then; nothing of a checkpoint that has no such entry.

        Raises:
            UserError: if a word was added, left out or moved.
        """
        saved = _saved_words(state_dict)
        for field, words in self.words.items():
            if saved.get(field, words.fingerprint) != words.fingerprint:
                raise UserError(
                    f"{type(self).__name__}: the words of {field} are not those that the model was trained on, whose "
                    f"numbers it knows; put the files back as they were (data_dir is {self.data_dir}), or train again"
                )

    def check_batch_size(self) -> None:
        if self.unlabelled():
            check_share(f"{type(self).__name__}: labelled_share", self.labelled_share, self.batch_size)

    def check_start(self, checkpoint: Mapping[str, Any], path: object) -> None:
        """Refuse the weights of another run if a field has other words there, but as many as here.

        Weights that are read by the number of a word would then be taken in silence for those of another word. Where
        the numbers of words differ, these weights do not fit, and are listed as not loaded.

        Args:
            checkpoint: The contents of the other run's checkpoint.
            path: The checkpoint's file, for the message.

        Raises:
            UserError: if this is so.
        """
        saved = next(filter(None, map(_saved_words, checkpoint.values())), {})  # of data of any class
        counts = checkpoint.get("hyper_parameters", {}).get("vocabulary")
        for field, words in self.words.items():
            count = counts.get(field) if isinstance(counts, Mapping) else None  # None: the model does not say
            if saved.get(field, words.fingerprint) != words.fingerprint and count in (None, len(words)):
                raise UserError(
                    f"{path}: its model knows other words of {field} than {type(self).__name__} (data_dir is "
                    f"{self.data_dir}), but as many, so its weights would be taken for those of other words; use the "
                    "texts of that run, or train without --init_from"
                )

    def load(self, split: Split) -> Examples:
        pairs, others = self.pairs(split), self.unlabelled() if split == "train" else ()
        known = torch.arange(len(pairs) + len(others)) < len(pairs)
        columns = self.max_length
        x = self.words["x"].encode([*(pair.x for pair in pairs), *others], columns["x"])
        sentence = torch.full((len(known), columns["sentence"]), PADDING)
        sentence[: len(pairs)] = self.words["sentence"].encode([pair.sentence for pair in pairs], columns["sentence"])
        fields = {"x": x.int(), "length": (x != PADDING).sum(1)}
        fields |= {"sentence": sentence.int(), "sentence_length": (sentence != PADDING).sum(1), "known": known}
        return Examples(fields, group=known if len(others) else None, group_share=self.labelled_share)

    def batch_transform(self, split: Split) -> BatchTransform:
        examples = self.examples(split)
        if split != "train" or self.use_unlabelled or examples.group is None:
            return AsTokens()
        return LabelledAlone(examples, int(examples.group.sum()))

    def facts(self) -> list[str]:
        others, longest = self.unlabelled(), self.max_length
        counts = {field: f"{len(self.words[field]):,} words, {longest[field]} tokens at most" for field in FIELDS}
        use = "" if self.use_unlabelled or not others else ", which are not used"
        lines = [
            f"sentence: {counts['sentence']}; x: {counts['x']}; both with {END} and {UNKNOWN}",
            f"train: {len(self.pairs('train')):,} pairs, {len(others):,} x without a sentence "
            f"({len(set(others)):,} different){use}",
        ]
        known = {*(pair.x for pair in self.pairs("train")), *others}
        for split in SPLITS[1:]:
            held_out = [pair.x for pair in self.pairs(split)]
            lines.append(f"{split}: {sum(x in known for x in held_out):,} of {len(held_out):,} x stand in train, too")
        return lines

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            rank_zero_only(print)(f"{type(self).__name__}:", *self.facts(), sep="\n    ", flush=True)


def _saved_words(state: object) -> Mapping[str, object]:
    """Return the fingerprints of the words in the state of a data module; {} if the value is no such state."""
    words = state.get("words") if isinstance(state, Mapping) else None
    return words if isinstance(words, Mapping) else {}
