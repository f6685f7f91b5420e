"""The benchmark compares equal settings, and its claims follow from its measurements."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gpu, loops, ours
from benchmarks.rounds import Claim, Suite, measured
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
    """A second thread halves the time by the clock, not the processor time."""
    one = {"data_jpeg": {"image_us": 400.0, "image_cpu_us": 400.0}, "data_ours": {"image_us": 4.0, "image_cpu_us": 8.0}}
    found = suite(tmp_path, "cpu")
    assert claim(found, "data alone").value(one) == 50
    assert {400.0, 4.0, 8.0} <= {column.value(values) for column in found.columns for values in one.values()}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ours_is_held_against_the_ceiling_of_its_own_setting(device: str, tmp_path: Path) -> None:
    """Compiled is compared with compiled, and uncompiled with uncompiled; float32 has no TF32, like the bare loop."""
    found = suite(tmp_path, device)
    compiled = [each.name for each in found.contenders if any("compiled" in word for word in each.command)]
    is_compiled = ours.COMPILED in ours.FASTEST["celeba", device]
    value = claim(found, "ceiling of the same setting").value
    for each in found.contenders:
        if each.name.startswith("ceiling") and "bf16" in str(each.command):
            one = {"ours_fast": {"images_per_second": 2.0}, each.name: {"images_per_second": 1.0}}
            assert (value(one) is not None) == ((each.name in compiled) == is_compiled)
    (float32,) = (each for each in found.contenders if each.name == "ours")
    assert f"--matmul_precision={loops.Setting().matmul_precision}" in float32.command


@pytest.mark.parametrize(
    ("line", "expected"),
    [("97\n", 97), (" 0\n", 0), ("100 %\n", 100), ("[N/A]\n", None), ("\n", None), ("No devices", None)],
)
def test_the_drivers_lines_are_read(line: str, expected: float | None) -> None:
    assert gpu.parse(line) == expected


def test_the_gpu_counts_after_the_first_epoch_alone() -> None:
    """Samples during start-up and after the last step do not count."""
    samples = [(0.5, 0.0), (1.5, 90.0), (2.5, 100.0), (3.5, 0.0)]
    epochs = [{"ended": 1.0}, {"ended": 2.0}, {"ended": 3.0}]
    assert gpu.busy(samples, epochs) == {"gpu_busy": 95}
    assert gpu.busy(samples, epochs[:1]) == gpu.busy([], epochs) == {}


_DRIVER = """#!/bin/sh
while :; do echo 42; sleep 0.01; done
"""


def test_samples_come_while_the_contender_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu.watch_gpu() as samples:  # with the driver or without
        pass
    (tmp_path / "nvidia-smi").write_text(_DRIVER)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with gpu.watch_gpu() as samples:
        deadline = time.monotonic() + 10
        while len(samples) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert {value for _, value in samples} == {42}


def test_the_rate_is_that_of_epochs_with_near_cores() -> None:
    """The first epoch (warm-up) never counts. Without an epoch of near cores, or on a GPU, all others count."""
    epochs = [
        {"images": 10, "seconds": s, "exchange_us": us} for s, us in ((9, 60.0), (1, 70.0), (2, 300.0), (5, 280.0))
    ]
    near = measured({"epochs": epochs}, nearest=60.0)
    assert (near["images_per_second"], near["near_epochs"], near["far_images_per_second"]) == (10, 1, 3.5)
    far = measured({"epochs": [epochs[0], *epochs[2:]]}, nearest=60.0)
    assert (far["images_per_second"], far["near_epochs"]) == (3.5, 0)
    on_gpu = measured({"epochs": [{**epoch, "exchange_us": None} for epoch in epochs]})
    assert (on_gpu["images_per_second"], on_gpu["near_epochs"]) == (5, 3)
