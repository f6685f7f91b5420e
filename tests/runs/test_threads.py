"""No more threads than cores, idle threads sleep under load, freed memory is kept, the user's variables win."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vae_lightning import __main__ as program
from vae_lightning.runs import machine as cores


@pytest.mark.parametrize(
    ("busy", "ranks", "set_by_user", "expected"),
    [
        (5, None, None, None),
        (15, None, None, "PASSIVE"),
        (15, None, "ACTIVE", "ACTIVE"),
        (0, ("LOCAL_WORLD_SIZE", "2"), None, "PASSIVE"),
        (0, ("LOCAL_RANK", "1"), None, "PASSIVE"),  # the only variable that Lightning gives to the ranks that it starts
        (0, ("LOCAL_RANK", "0"), None, None),
    ],
)
def test_the_wait_policy_follows_what_others_do_now(
    monkeypatch: pytest.MonkeyPatch,
    busy: int,
    ranks: tuple[str, str] | None,
    set_by_user: str | None,
    expected: str | None,
) -> None:
    ticks = iter([(1000, 1000), (1000 + busy, 1000 + 20 - busy)])
    monkeypatch.setattr(program, "_jiffies", lambda: next(ticks))
    monkeypatch.setattr(
        os, "getloadavg", lambda: (9.0, 9.0, 9.0)
    )  # the load average counts work that has ended, so it must not be used
    for name in ("OMP_WAIT_POLICY", "LOCAL_WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in filter(None, [set_by_user and ("OMP_WAIT_POLICY", set_by_user), ranks]):
        monkeypatch.setenv(name, value)
    program._share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == expected
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)


_STAT = """\
cpu  1000 0 0 9000 0 0 0 0 0 0
cpu0 10 1 2 30 4 5 6 7 0 0
cpu1 0 0 0 100 0 0 0 0 0 0
cpu2 100 0 0 20 0 0 0 0 0 0
intr 1 2 3
"""


@pytest.mark.parametrize(
    ("mine", "expected"), [({0}, (31, 34)), ({1}, (0, 100)), ({0, 2}, (131, 54)), ({7}, (1000, 9000))]
)
def test_the_work_of_others_counts_on_the_cores_that_are_ours(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mine: set[int], expected: tuple[int, int]
) -> None:
    (tmp_path / "stat").write_text(_STAT)
    monkeypatch.setattr(program, "_TICKS", str(tmp_path / "stat"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: mine, raising=False)
    assert program._jiffies() == expected


@pytest.mark.parametrize(
    ("quota", "set_by_user", "num_cores", "threads"),
    [
        ("200000 100000", None, 2, "2"),
        ("150000 100000", None, 2, "2"),
        ("200000 100000", "5", 2, "5"),
        ("900000 100000", None, 8, None),
        ("max 100000", None, 8, None),
        (None, None, 8, None),
    ],
)
def test_a_containers_quota_bounds_the_threads(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    quota: str | None,
    set_by_user: str | None,
    num_cores: int,
    threads: str | None,
) -> None:
    """8 cores, with a quota of the container on their time. PyTorch by default would start 8 threads."""
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(cores, "_QUOTA", str(tmp_path / "cpu.max"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(program, "_share_in_use", lambda: 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", set_by_user or "")
    if set_by_user is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores.num_cores() == num_cores
    program._share_cores()
    assert os.environ.get("OMP_NUM_THREADS") == threads
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


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
@pytest.mark.parametrize(("variables", "touched_anew"), [({}, False), ({"MALLOC_ARENA_MAX": "2"}, True)])
def test_freed_memory_is_kept_unless_the_user_says_how(variables: dict[str, str], touched_anew: bool) -> None:
    """The share of a block's pages that fault again when the block is allocated a second time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", _ALLOCATE_TWICE]
    process = subprocess.run(command, env={**environment, **variables}, capture_output=True, text=True, check=True)
    assert (float(process.stdout) > 0.5) == touched_anew
