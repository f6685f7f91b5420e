"""A sample of rows, spread over the whole set. The first rows of a sorted file would all be of one class."""

from __future__ import annotations

import heapq
import math
from itertools import chain
from operator import itemgetter

import torch

from vae_lightning.metrics.evaluator import objects_from_all_ranks
from vae_lightning.noise import derive_seed
from vae_lightning.types import Batch


class SpreadRows:
    """A shuffled sample of a set that comes in batches: the `num_rows` rows whose index has the smallest hash.

    One pass over the set suffices, and at most `num_rows` rows are held, on the CPU. The sample depends only on the
    rows' indices in the whole set, so the batch size and the number of ranks do not change it.

    Args:
        num_rows: the number of rows to keep.
    """

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self._rows: list[tuple[int, Batch]] = []  # hash and row, by increasing hash

    def add(self, batch: Batch, first: int) -> None:
        """Add a batch whose rows have the indices `first`, `first` + 1, ... in the whole set."""
        bound = self._rows[-1][0] if len(self._rows) == self.num_rows else math.inf
        hashes = [derive_seed(first + row) for row in range(len(batch["x"]))]
        new = [
            (order, {name: values[row].cpu().clone() for name, values in batch.items()})
            for row, order in enumerate(hashes)
            if order < bound
        ]
        self._rows = heapq.nsmallest(self.num_rows, [*self._rows, *new], key=itemgetter(0))

    def from_all_ranks(self) -> Batch:
        """The kept rows of all ranks, [n, ...] by name, equal on every rank; an empty batch if there are none."""
        hashes = sorted(chain.from_iterable(objects_from_all_ranks([order for order, _ in self._rows])))
        kept = set(hashes[: self.num_rows])
        mine = [row for row in self._rows if row[0] in kept]  # send only rows that are kept
        rows = sorted(chain.from_iterable(objects_from_all_ranks(mine)), key=itemgetter(0))
        return {name: torch.stack([row[name] for _, row in rows]) for name in (rows[0][1] if rows else ())}
