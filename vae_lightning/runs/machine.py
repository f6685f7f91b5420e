"""What the machine offers a process: cores, memory, the C++ compiler. Only the standard library is imported."""

from __future__ import annotations

import math
import os
import shutil
import sys
from contextlib import suppress

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


def available_memory() -> int | None:
    """Bytes that can still be had: of the machine, or of the container where that is less; None where nobody says."""
    found = []
    with suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
        found += [1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # no container, or `max`
        limit, used = (_read_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        found.append(limit - used)
    return min(found, default=None)


def _read_number(path: str) -> int:
    with open(path, encoding="ascii") as file:  # noqa: PTH123
        return int(file.read())


def compiler_name() -> str:
    """What torch calls: the first word of CXX, else the system's."""
    named = os.environ.get("CXX", "").split()
    return named[0] if named else "clang++" if sys.platform == "darwin" else "g++"


def find_compiler() -> str | None:
    """Its path; None where there is none."""
    return shutil.which(compiler_name())
