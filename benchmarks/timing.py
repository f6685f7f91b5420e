"""The timing of every contender: the same marks, set by a plain loop or by Lightning's hooks."""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

OUT = "BENCHMARK_OUT"  # the file of a contender's record
START = "BENCHMARK_START"  # time.monotonic() at the start of the process; all processes of a machine share this clock


def record(**values: Any) -> None:
    """Add `values` to this process's record."""
    path = Path(os.environ[OUT])
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, **values}))


class Stopwatch:
    """The marks of one training run.

    `first_step_s` is the time in seconds from the start of the process to the end of the first training step. `epochs`
    has an entry for each epoch: the number of images; the seconds since the end of the previous epoch, without pauses;
    `exchange_us`, the larger of the values before and after the epoch; and `ended`, by the clock that all processes
    share. The first epoch contains the warm-up, so readers of the record leave it out.
    """

    def __init__(self) -> None:
        self.epochs: list[dict[str, float | None]] = []
        self.first_step_s: float | None = None
        self.images = 0
        self.paused_s = 0.0
        self.since = self.pause_since = time.perf_counter()

    def start(self) -> None:
        self.exchange_us = exchange_us()
        self.since, self.images, self.paused_s = time.perf_counter(), 0, 0.0

    def step(self, images: int) -> None:
        self.images += images
        if self.first_step_s is None:
            _wait_for_device()
            self.first_step_s = time.monotonic() - float(os.environ.get(START, "nan"))

    def pause(self) -> None:
        _wait_for_device()
        self.pause_since = time.perf_counter()

    def resume(self) -> None:
        _wait_for_device()
        self.paused_s += time.perf_counter() - self.pause_since

    def end_epoch(self) -> None:
        _wait_for_device()
        images = self.images
        seconds, before = time.perf_counter() - self.since - self.paused_s, self.exchange_us
        ended = time.monotonic()
        self.start()
        exchange = max(before, self.exchange_us) if before and self.exchange_us else None
        self.epochs.append({"images": images, "seconds": seconds, "exchange_us": exchange, "ended": ended})

    def write(self) -> None:
        unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes on macOS and in KiB elsewhere
        record(
            first_step_s=self.first_step_s,
            epochs=self.epochs,
            peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
            threads=torch.get_num_threads(),
            environment={
                name: value for name, value in os.environ.items() if name.startswith(("OMP_", "KMP_", "MKL_"))
            },
        )


def exchange_us(times: int = 40) -> float | None:
    """The time in microseconds in which two threads exchange 2 x 0.5 MB; None with a single thread or a GPU.

    The result is the lower quartile of `times` exchanges. A host may move the cores of a virtual machine. If two cores
    share no cache, the exchange takes four times as long, and a step of a small network on both takes half as long
    again. Runs are comparable only if their exchange times are alike.
    """
    if torch.cuda.is_available() or torch.get_num_threads() == 1:
        return None
    a, b = torch.zeros(2, 2**17)
    took = []
    for _ in range(times):
        since = time.perf_counter()
        torch.add(b.flip(0), 1, out=a)
        torch.add(a.flip(0), 1, out=b)
        took.append(time.perf_counter() - since)
    return sorted(took)[times // 4] * 1e6


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class EpochTimer(pl.Callback):
    """Set the marks of a Lightning run; on the CLI: --trainer.callbacks+=<the path of this class>.

    Validation does not count. Checkpoints and logging count, because a user waits for them too.
    """

    def __init__(self) -> None:
        self.watch = Stopwatch()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.watch.step(count_images(batch))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.resume()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.end_epoch()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.watch.write()


def count_images(batch: Any) -> int:
    """The number of images in {"x": [..., B, C, H, W]}, in several such batches, in (x, labels), or in x."""
    if isinstance(batch, (list, tuple)) and isinstance(batch[0], dict):
        return sum(map(count_images, batch))
    x = batch["x"] if isinstance(batch, dict) else batch[0] if isinstance(batch, (list, tuple)) else batch
    return math.prod(x.shape[:-3])
