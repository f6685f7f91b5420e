"""What the benchmark compares is alike, and what it claims follows from what it measured."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import loops


def test_a_bare_loop_has_the_allocator_that_ours_has(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(loops, "keep_memory", lambda: kept.append(True))
    network = nn.Linear(2, 1)
    pixels = torch.zeros(4, 2, dtype=torch.uint8)
    loops.bare_loop(lambda x: network(x).sum(), network, pixels, torch.Tensor.float, 2, 1, 1e-3)
    assert kept
