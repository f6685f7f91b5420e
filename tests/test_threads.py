"""Idle OpenMP threads sleep where the machine is busy, freed memory is kept, and what the user has set stays."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from vae_lightning import __main__ as program


@pytest.mark.parametrize(
    ("busy", "ranks", "given", "expected"),
    [
        (5, None, None, None),
        (15, None, None, "PASSIVE"),
        (15, None, "ACTIVE", "ACTIVE"),
        (0, "2", None, "PASSIVE"),
    ],
)
def test_the_wait_policy_follows_what_others_do_now(
    monkeypatch: pytest.MonkeyPatch, busy: int, ranks: str | None, given: str | None, expected: str | None
) -> None:
    ticks = iter([(1000, 1000), (1000 + busy, 1000 + 20 - busy)])
    monkeypatch.setattr(program, "_jiffies", lambda: next(ticks))
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))  # of what ended a moment ago: not asked
    for name, value in (("OMP_WAIT_POLICY", given), ("LOCAL_WORLD_SIZE", ranks)):
        monkeypatch.delenv(name, raising=False)
        if value:
            monkeypatch.setenv(name, value)
    program._share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


def test_a_system_without_ticks_is_asked_for_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> tuple[int, int]:
        raise FileNotFoundError

    monkeypatch.setattr(program, "_jiffies", missing)
    monkeypatch.setattr(os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert program._share_in_use() == 1.5


_ALLOCATE_TWICE = """
import ctypes, resource
from vae_lightning.__main__ import keep_memory

keep_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size = 16 * 2**20
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize() / size)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("given", "touched_anew"), [({}, False), ({"MALLOC_ARENA_MAX": "2"}, True)])
def test_freed_memory_is_kept_unless_the_user_says_how(given: dict[str, str], touched_anew: bool) -> None:
    """The share of a block's pages that are touched for the first time again when it is wanted a second time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _ALLOCATE_TWICE]
    found = subprocess.run(command, env={**environment, **given}, capture_output=True, text=True, check=True)
    assert (float(found.stdout) > 0.5) == touched_anew
