"""The GPU's utilisation while a contender runs, as the driver reports it. This file does not import torch."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

EVERY_MS = 100

Samples: TypeAlias = list[tuple[float, float]]
"""Pairs of `time.monotonic()` and the percentage of the driver's last interval in which a kernel ran."""


@contextlib.contextmanager
def watch_gpu() -> Iterator[Samples]:
    """Collect samples of the first visible GPU while the body runs; without nvidia-smi the list stays empty."""
    samples: Samples = []
    if shutil.which("nvidia-smi") is None:
        yield samples
        return
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0] or "0"
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", f"--id={first}", f"--loop-ms={EVERY_MS}"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(["nvidia-smi", *query], text=True, stdin=null, stdout=pipe, stderr=null) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=_read, args=(process.stdout, samples), daemon=True)
        reader.start()
        try:
            yield samples
        finally:
            process.terminate()
            reader.join()


def _read(lines: Iterable[str], samples: Samples) -> None:
    for line in lines:
        busy = parse(line)
        if busy is not None:
            samples.append((time.monotonic(), busy))


def parse(line: str) -> float | None:
    """The number in a line such as `97`; None if the line has no number, such as `[N/A]`."""
    word = line.strip().removesuffix("%").strip()
    return float(word) if word.isdecimal() else None


def busy(samples: Samples, epochs: list[dict[str, Any]]) -> dict[str, float]:
    """`gpu_busy`, the mean utilisation after the first epoch; empty if no sample lies between the epochs' ends."""
    if len(epochs) < 2:
        return {}
    begin, end = epochs[0]["ended"], epochs[-1]["ended"]
    during = [value for at, value in samples if begin <= at <= end]
    return {"gpu_busy": statistics.mean(during)} if during else {}
