"""Comparison of recorded numbers: equal to the last bit on the machine type that recorded them, else to 1e-4.

A sum of floats depends on the order of its terms. torch and its libraries choose this order by version and processor.
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
    """Return what the last bits depend on: torch's version, the processor, and the instruction set that torch uses."""
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
    """Run the body on one thread, because the number of threads changes the last bits of a sum."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hex_of(value: float | str) -> str:
    """Return the float as text without losing a bit."""
    return float(value).hex()


def same(found: Any, recorded: Any, recorded_by: dict[str, str]) -> None:
    """Assert that two trees of hexadecimal floats are equal: to the last bit if `recorded_by` is this machine type."""
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
