"""`vae-lightning` and `python -m vae_lightning`. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import os
import sys
import time

from vae_lightning.runs import container, signals
from vae_lightning.runs.machine import num_allowed, num_cores

_TICKS = "/proc/stat"


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for bad input, 1 for an error during a run, 128 + n for signal n.

    Args:
        argv: The command and its arguments; None for those of the process.
    """
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help", "help"):
        from vae_lightning.cli.help import help_text

        print(help_text(), end="")
        return 0
    if args[0] == "--version":
        from vae_lightning import __version__

        print(f"vae-lightning {__version__}")
        return 0
    try:
        return _run(args)
    except signals.Stopped as stopped:  # a signal may also come during the imports, which take seconds
        return signals.exit_code(stopped)


def _run(args: list[str]) -> int:
    _share_cores()
    keep_memory()
    container.give_home()
    if args[0] == "doctor":
        from vae_lightning.verbs.doctor import main as doctor  # without Lightning: the installation may be broken

        return doctor(args[1:])
    from vae_lightning.cli.dispatch import run  # imports torch and Lightning, which takes seconds

    return run(args)


def _share_cores() -> None:
    """Start no more OpenMP threads than cores, and let idle threads sleep if other programs use the cores.

    This must happen before torch is imported. Variables that the user has set are kept.

    Idle threads spin by default, and so occupy the core that the next operation waits for. Beside one busy process, a
    step on two cores took four times as long with spinning threads, and twice as long with sleeping ones. On an idle
    machine, spinning is 15 % faster. The ranks on one machine are busy processes for each other. torchrun tells every
    rank the number of ranks. Lightning (`--trainer.devices=2`) tells all ranks but the first, and gives each rank its
    own part of the cores, so the first rank may spin. If a container has a quota below its number of cores, Lightning
    gives no rank its own part: set OMP_NUM_THREADS yourself.
    """
    if num_cores() < num_allowed():
        os.environ.setdefault("OMP_NUM_THREADS", str(num_cores()))
    beside_another_rank = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1 or os.environ.get("LOCAL_RANK", "0") != "0"
    if beside_another_rank or _share_in_use() > 0.4:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_memory() -> None:
    """Let glibc keep the memory that a step frees, because the next step needs as much.

    Otherwise each step touches new pages, which is a sixth of a convolutional network's step on a CPU. glibc then keeps
    up to 1 GiB, in blocks below 32 MiB (glibc's limit). A user's setting in the environment has priority.
    """
    if sys.platform != "linux" or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have no such function
    if mallopt is not None:
        mmap_threshold, trim_threshold = -3, -1  # their numbers in glibc's malloc.h
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 2**30)


def _share_in_use(seconds: float = 0.1) -> float:
    """Return the share of the cores' time in use now; the load average would also count the past minute."""
    try:
        before = _jiffies()
        time.sleep(seconds)
        busy, idle = (now - then for now, then in zip(_jiffies(), before, strict=True))
    except OSError:  # no Linux
        return os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else 0.0
    return busy / max(busy + idle, 1)


def _jiffies() -> tuple[int, int]:
    """Return the busy and the idle ticks, since the system's start, of the cores that this process may use."""
    with open(_TICKS, encoding="ascii") as file:  # noqa: PTH123 - pathlib is not imported for --help
        ticks = {name: [int(word) for word in rest[:8]] for name, *rest in map(str.split, file) if name[:3] == "cpu"}
    mine = [ticks[f"cpu{core}"] for core in os.sched_getaffinity(0) if f"cpu{core}" in ticks]
    # a container may give its cores other numbers; then the ticks of all cores are taken
    user, nice, system, idle, waiting, *others = map(sum, zip(*(mine or [ticks["cpu"]]), strict=True))
    return user + nice + system + sum(others), idle + waiting


def console() -> None:
    """The console script's entry point."""
    try:
        signals.install()
        code = main()
        sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:  # the reader of our lines has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python flushes once more, and complains
        sys.exit(1)
    except signals.Stopped as stopped:  # the signal came before `main` could catch it
        sys.exit(signals.exit_code(stopped))


if __name__ == "__main__":
    console()
