"""The values of each example of a test, by which two runs on the same examples are compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from vae_lightning.metrics.evaluator import objects_from_all_ranks


class ExampleValues:
    """Collects one number an example by name, over batches and ranks, in the order of the test set.

    Rank r of W evaluates the batches r, r + W, r + 2 W, ... A process holds 8 bytes for each number of each example.
    """

    def __init__(self) -> None:
        self._batches: list[dict[str, Tensor]] = []

    def add(self, x: Tensor, terms: Any) -> None:
        """Add a batch.

        Args:
            x: The examples, [B, ...]; only their fingerprints are kept.
            terms: What the model's test step returned: the terms of each example, [B] by name. Other entries are left
                out, also `loss`, which is a term of training.
        """
        named = terms.items() if isinstance(terms, Mapping) else ()
        kept = {
            name: value.detach().double().cpu()
            for name, value in named
            if isinstance(value, Tensor) and value.shape == (len(x),) and name != "loss"
        }
        self._batches.append({**kept, "fingerprint": fingerprint(x).cpu()})

    def from_all_ranks(self, more: Mapping[str, list[Tensor]]) -> dict[str, Tensor]:
        """Return the values of all examples, float64 [N] by name: those that every batch has.

        Args:
            more: Values that someone else has collected: a list of [B] by name, a tensor for each batch of this rank.
        """
        batches = [dict(batch) for batch in self._batches]
        for name, values in more.items():
            for batch, value in zip(batches, values, strict=False):
                batch[name] = value.double().cpu()
        turns = zip_longest(*objects_from_all_ranks(batches))
        in_order = [batch for batch in chain.from_iterable(turns) if batch is not None]
        names = set.intersection(*(set(batch) for batch in in_order)) if in_order else set()
        return {name: torch.cat([batch[name] for batch in in_order]) for name in sorted(names)}


def fingerprint(x: Tensor) -> Tensor:
    """sum_d sin(1.618 d + 1) x_d: a number that tells the examples of a set apart, float64 [B].

    Two runs that tested the same examples have the same fingerprints, up to rounding. The number says nothing else
    about an example.

    Args:
        x: The examples, [B, ...] of any type.
    """
    flat = x.detach().reshape(len(x), -1).double()
    weights = torch.sin(1.618 * torch.arange(flat.shape[1], dtype=torch.float64, device=flat.device) + 1)
    return flat @ weights
