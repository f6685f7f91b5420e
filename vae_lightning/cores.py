"""How many cores there are to work on: one answer for threads, for pools and for what is said of the machine."""

from __future__ import annotations

import math
import os

_QUOTA = "/sys/fs/cgroup/cpu.max"  # of the container, by cgroup v2: microseconds of work in each period of so many


def num_cores() -> int:
    """The cores that this process may use: no more than it has the time of (`docker run --cpus=2`), rounded up."""
    try:
        with open(_QUOTA, encoding="ascii") as file:  # noqa: PTH123 - pathlib is not imported for --help
            quota, period = file.read().split()
        return min(num_allowed(), math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no such container; "max": no quota
        return num_allowed()


def num_allowed() -> int:
    """The cores that this process may run on, which PyTorch starts as many threads as."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
