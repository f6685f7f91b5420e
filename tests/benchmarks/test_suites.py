"""What the benchmark compares is alike, and what it claims follows from what it measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import loops
from benchmarks.rounds import Claim, Suite
from benchmarks.suites import Options, celeba


def test_a_bare_loop_has_the_allocator_that_ours_has(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(loops, "keep_memory", lambda: kept.append(True))
    network = nn.Linear(2, 1)
    pixels = torch.zeros(4, 2, dtype=torch.uint8)
    loops.bare_loop(lambda x: network(x).sum(), network, pixels, torch.Tensor.float, 2, 1, 1e-3)
    assert kept


def suite(tmp_path: Path, device: str) -> Suite:
    return celeba(Options(tmp_path, real=False, scratch=tmp_path, device=device, smoke=False))


def claim(suite: Suite, words: str) -> Claim:
    (found,) = (each for each in suite.claims if words in each.what)
    return found


def test_data_alone_is_judged_by_the_time_of_all_threads(tmp_path: Path) -> None:
    """A second thread halves the clock's time, and not the work."""
    one = {"data_jpeg": {"image_us": 400.0, "image_cpu_us": 400.0}, "data_ours": {"image_us": 4.0, "image_cpu_us": 8.0}}
    found = suite(tmp_path, "cpu")
    assert claim(found, "data alone").value(one) == 50
    assert {400.0, 4.0, 8.0} <= {column.value(values) for column in found.columns for values in one.values()}
