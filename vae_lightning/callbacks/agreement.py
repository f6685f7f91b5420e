"""What all ranks do at the same step: they stop, or they save, where one of them is asked to."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import distributed

from vae_lightning.runs import signals

_SECONDS = 0.2  # between two questions
_MOST = 100  # steps between two questions


class Agreement:
    """Every few steps the ranks compare, on the CPU, what signals they have had: no device waits for it.

    How many steps, they agree on as well: as many as take a fifth of a second. One process asks at each step.
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
        """Called once at each step, on every rank alike."""
        self._left -= 1
        return self._left <= 0

    def reach(self, save: bool) -> tuple[bool, bool]:
        """(stop, save): whether any rank is to. A signal of another rank is this one's from here on."""
        if self.world_size == 1:
            return signals.requested() > 0, save
        values = torch.tensor([signals.requested(), int(save), self._suggestion()])
        distributed.all_reduce(values, distributed.ReduceOp.MAX, group=self._group)
        stop, saves, self._every = values.tolist()
        self._left, self._since = self._every, time.monotonic()
        signals.request(stop)
        return stop > 0, saves > 0

    def least(self, count: int) -> int:
        """The smallest of the ranks' counts."""
        if self.world_size == 1:
            return count
        value = torch.tensor(count)
        distributed.all_reduce(value, distributed.ReduceOp.MIN, group=self._group)
        return int(value)

    def _suggestion(self) -> int:
        step = (time.monotonic() - self._since) / max(1, self._every)
        return max(1, min(_MOST, 2 * self._every, int(_SECONDS / max(step, 1e-6))))
