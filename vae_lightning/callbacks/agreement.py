"""Let all ranks stop or save at the same step if one of them is asked to."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import distributed

from vae_lightning.runs import signals

_SECONDS = 0.2  # between two comparisons
_MOST = 100  # steps between two comparisons


class Agreement:
    """Compares the signals that the ranks have received, on the CPU, so that no GPU waits.

    The ranks compare every few steps: as many as take a fifth of a second, a number on which they agree, too. A single
    process looks at its signals at each step.

    Args:
        world_size: The number of ranks.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.batches = 0
        self._left = self._every = 1
        self._since = time.monotonic()
        self._group: Any = None
        if world_size > 1 and distributed.get_backend() != "gloo":
            self._group = distributed.new_group(backend="gloo")

    def is_due(self) -> bool:
        """Return whether the ranks compare at this step; call this once at each step, on every rank."""
        self._left -= 1
        return self._left <= 0

    def any_rank(self, save: bool) -> tuple[bool, bool]:
        """Return (stop, save): whether any rank has a signal to stop, and whether any rank wants to save.

        Afterwards a signal of one rank counts as a signal of every rank.

        Args:
            save: Whether this rank wants to save.
        """
        if self.world_size == 1:
            return signals.requested() > 0, save
        values = torch.tensor([signals.requested(), int(save), self._suggestion()])
        distributed.all_reduce(values, distributed.ReduceOp.MAX, group=self._group)
        stop, saves, self._every = values.tolist()
        self._left, self._since = self._every, time.monotonic()
        signals.request(stop)
        return stop > 0, saves > 0

    def minimum(self, count: int) -> int:
        """Return the smallest `count` of all ranks."""
        if self.world_size == 1:
            return count
        value = torch.tensor(count)
        distributed.all_reduce(value, distributed.ReduceOp.MIN, group=self._group)
        return int(value)

    def _suggestion(self) -> int:
        step = (time.monotonic() - self._since) / max(1, self._every)
        return max(1, min(_MOST, 2 * self._every, int(_SECONDS / max(step, 1e-6))))
