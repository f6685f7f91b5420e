"""Generated texts for semi-supervised models: questions with their logical forms, and two generated languages."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from vae_lightning.data.module import SPLITS, Split
from vae_lightning.data.texts import Pair, TextPairs, Words
from vae_lightning.noise import derive_seed
from vae_lightning.synthetic import queries, second_language
from vae_lightning.types import UserError

_DRAWS = 40  # draws for each example that is wanted, before there are too few
_MOST = 1_000_000
_UNLABELLED = len(SPLITS)  # the stream of unlabelled texts; those of pairs are 0, 1 and 2
_FORMS = 4  # the stream that puts forms into splits


class GeneratedTexts(TextPairs):
    """Pairs of texts that are drawn from the grammar of questions, within a second and without a download.

    Each query belongs to one split, by a draw: a tenth to val, two tenths to test. No x of val or test is in training,
    neither in a pair nor without a sentence. No pair comes twice in a split. A subclass defines x.

    Args:
        data_dir: Not used; nothing is read or written.
        num_pairs: The number of labelled pairs of training. The pairs of a smaller number are among those of a larger.
        num_unlabelled: The number of x of training without a sentence; 0 for none. An x may come several times.
        num_val: The number of pairs of val.
        num_test: The number of pairs of test.
        unlabelled_test: Whether the x without a sentence may be those of val and test. Results are then of another
            task, in which the test's x were seen.
        pool_seed: The seed of the labelled pairs alone; val, test and the x without a sentence do not depend on it.
        query_seed: The seed of everything.
        kwargs: Arguments of `TextPairs`.

    Raises:
        UserError: if a number is too small, or larger than the number of different pairs.
    """

    def __init__(
        self,
        data_dir: str = "data",
        *,
        num_pairs: int = 50,
        num_unlabelled: int = 2_000,
        num_val: int = 100,
        num_test: int = 400,
        unlabelled_test: bool = False,
        pool_seed: int = 0,
        query_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        least = {"num_pairs": (num_pairs, 1), "num_unlabelled": (num_unlabelled, 0), "num_val": (num_val, 1)}
        for name, (number, smallest) in {**least, "num_test": (num_test, 1)}.items():
            if not smallest <= number <= _MOST:
                raise UserError(f"{type(self).__name__}: {name} is {number:,}; it must be {smallest} to {_MOST:,}")
        self.num_unlabelled, self.unlabelled_test = num_unlabelled, unlabelled_test
        self.num_pairs = dict(zip(SPLITS, (num_pairs, num_val, num_test), strict=True))
        self.pool_seed, self.query_seed = pool_seed, query_seed
        self._pairs: dict[Split, list[Pair]] = {}

    @abstractmethod
    def target(self, query: queries.Query) -> str:
        """Return x of a query; two queries never have the same x.

        Args:
            query: The query.
        """

    def split_of(self, query: queries.Query) -> Split:
        """Return the split that a query belongs to.

        Args:
            query: The query.
        """
        tenth = derive_seed(self.query_seed, _FORMS, zlib.crc32(query.form.encode())) % 10
        return "train" if tenth > 2 else "val" if tenth == 2 else "test"

    def pairs(self, split: Split) -> Sequence[Pair]:
        if split not in self._pairs:
            seed = derive_seed(self.query_seed, SPLITS.index(split), self.pool_seed if split == "train" else 0)
            drawn = self._draw(self.num_pairs[split], seed, (split,), True)
            self._pairs[split] = [Pair(sentence, self.target(query)) for sentence, query in drawn]
        return self._pairs[split]

    def unlabelled(self) -> Sequence[str]:
        return self._unlabelled

    @cached_property
    def _unlabelled(self) -> list[str]:
        seed = derive_seed(self.query_seed, _UNLABELLED)
        splits = SPLITS if self.unlabelled_test else SPLITS[:1]
        drawn = [self.target(query) for _, query in self._draw(self.num_unlabelled, seed, splits, False)]
        held_out = {pair.x for split in SPLITS[1:] for pair in self.pairs(split)}
        assert self.unlabelled_test or not held_out & {*drawn, *(pair.x for pair in self.pairs("train"))}
        return drawn

    def _draw(self, count: int, seed: int, splits: Sequence[Split], differ: bool) -> list[tuple[str, queries.Query]]:
        """Draw `count` pairs whose queries belong to the splits; with `differ`, each pair once."""
        found: list[tuple[str, queries.Query]] = []
        seen: set[str] = set()
        for first in range(0, _DRAWS * count, max(1, count)):
            for sentence, query in queries.draw_pairs(torch.arange(first, first + count), seed):
                if len(found) < count and self.split_of(query) in splits and not (differ and sentence in seen):
                    found.append((sentence, query))
                    seen.add(sentence)
            if len(found) == count:
                return found
        if count:
            raise UserError(
                f"{type(self).__name__}: {_DRAWS * count:,} pairs were drawn; {len(found):,} of them are different and "
                f"of {' and '.join(splits)}, and {count:,} are wanted: ask for fewer"
            )
        return found

    def _check_counts(self) -> None:
        """Refuse more pairs than a split has, before a run has begun and millions are drawn."""
        for split, wanted in self.num_pairs.items():
            mine = [query for query in queries.all_queries().values() if self.split_of(query) == split]
            if wanted > len(mine) and wanted > (count := sum(len(queries.paraphrases(query)) for query in mine)):
                name = "num_pairs" if split == "train" else f"num_{split}"
                raise UserError(f"{type(self).__name__}: {name} is {wanted:,}; {split} has {count:,} different pairs")

    @cached_property
    def _query_of(self) -> dict[str, queries.Query]:
        return {self.target(query): query for query in queries.all_queries().values()}

    def find_words(self) -> Mapping[str, Words]:
        self._check_counts()
        words = sorted({word for x in self._query_of for word in x.split()})
        return {"x": Words(words), "sentence": Words(queries.sentence_words())}

    def find_longest(self) -> Mapping[str, int]:
        return {"x": max(len(x.split()) for x in self._query_of), "sentence": queries.LONGEST_SENTENCE}

    def references(self, forms: Sequence[str]) -> list[list[str]]:
        """Return every sentence of the grammar for each x; none for a text that is no x.

        Args:
            forms: Texts x as `decode` returns them.
        """
        found = [self._query_of.get(form) for form in forms]
        return [queries.paraphrases(query) if query else [] for query in found]


class ToyQueries(GeneratedTexts):
    """Questions about an invented geography with their logical forms, in the manner of GeoQuery; all are generated.

    Use it to measure what unlabelled forms add to a few labelled pairs. x is the form, such as `answer area largest
    state next_to stateid texas`, and the sentence a question, such as `how large is the biggest neighbour of texas`.
    The grammar and its size are those of `vae_lightning.synthetic.queries`.
    """

    def target(self, query: queries.Query) -> str:
        return query.form


class GeneratedTranslation(GeneratedTexts):
    """Translation between two generated languages: an English of 76 words, and a language with cases and the verb last.

    Use it to see a model of two languages at work without files; results say nothing about natural languages. x is a
    sentence of the second language, such as `lom teksa lar granda borgs li popula sagu`, some without a translation;
    the sentence is English. An English sentence has one translation, and a sentence of the second language several.
    """

    def target(self, query: queries.Query) -> str:
        return second_language(query)
