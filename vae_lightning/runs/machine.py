"""The cores, memory and C++ compiler that a process may use. Imports the standard library alone."""

from __future__ import annotations

import math
import os
import shutil
import sys
from contextlib import suppress

_QUOTA = "/sys/fs/cgroup/cpu.max"  # cgroup v2 of a container: "quota period", both in microseconds


def num_cores() -> int:
    """The number of cores that this process may use, limited by a container's quota (`docker run --cpus=2`)."""
    try:
        with open(_QUOTA, encoding="ascii") as file:  # noqa: PTH123 - pathlib is not imported for --help
            quota, period = file.read().split()
        return min(num_allowed(), math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no container, or a quota of "max"
        return num_allowed()


def num_allowed() -> int:
    """The number of cores that this process may run on. By default PyTorch starts this many threads."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory() -> int | None:
    """The free memory in bytes, of the machine or of the container, whichever is less; None if neither is known."""
    available = []
    with suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
        available += [1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):  # no container, or a limit of "max"
        limit, used = (_read_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        available.append(limit - used)
    return min(available, default=None)


def _read_number(path: str) -> int:
    with open(path, encoding="ascii") as file:  # noqa: PTH123
        return int(file.read())


def compiler_name() -> str:
    """The C++ compiler that torch calls: the first word of the variable CXX, else the compiler of the system."""
    words = os.environ.get("CXX", "").split()
    return words[0] if words else "clang++" if sys.platform == "darwin" else "g++"


def find_compiler() -> str | None:
    """The path of the C++ compiler; None if there is none."""
    return shutil.which(compiler_name())
