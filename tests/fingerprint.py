"""Comparison of recorded numbers: to the last bit on the kind of machine that recorded them, to 1e-4 elsewhere.

A sum of floats depends on the order of its terms, which torch and its libraries choose by version and processor.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


def fingerprint() -> dict[str, str]:
    """What the last bits depend on: torch's version, the processor, and the instructions that torch uses."""
    return {
        "torch": torch.__version__,
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums are split over threads: their number changes the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hex_of(value: float | str) -> str:
    """A float as text that loses no bit."""
    return float(value).hex()


def same(found: Any, recorded: Any, recorded_by: dict[str, str]) -> None:
    """Assert that trees of hexadecimal floats are equal: to the last bit where `recorded_by` is this machine."""
    if recorded_by == fingerprint():
        assert found == recorded
        return
    one, other = dict(_leaves(found)), dict(_leaves(recorded))
    assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def _leaves(tree: Any, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(tree, str):
        yield place, float.fromhex(tree)
    else:
        for name, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _leaves(value, f"{place}/{name}")
