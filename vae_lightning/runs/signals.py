"""Stop a run within seconds at SIGTERM, SIGINT or SIGUSR1, so that it can resume; exit code 128 + the signal.

In training the handler only records the signal. Between steps, the callback `BestAndLast` reads the record, lets all
ranks agree, saves a checkpoint and stops the run. Outside training there is nothing to save: the handler ends the
command at once and passes the signal on to the first rank of the machine. A thread ends the process by force after
`GRACE` seconds, because Python handlers do not run while the process is stuck, for example in a collective operation
whose other ranks are gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1 is for --signal=USR1@90 of SLURM
GRACE = 20.0
"""Seconds from the first signal to the forced end of the process."""

_PR_SET_PDEATHSIG = 1
_FIRST_RANK = "VAE_LIGHTNING_FIRST_RANK"  # the id of its process, for the processes that it starts for other devices
_first_rank = 0
_requested = 0
_polled = False


class Stopped(SystemExit):
    """The run was stopped by a signal. The exit code is 128 + the signal, as in a shell.

    Args:
        signum: the number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def install() -> None:
    """Install the handlers and the thread. The command line calls this function once, from the main thread."""
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    for signum in SIGNALS:
        signal.signal(signum, _handle_signal)
    threading.Thread(target=_end_by_force, args=(receiver,), daemon=True, name="grace").start()
    if "LOCAL_RANK" in os.environ and sys.platform == "linux":
        # the system sends SIGTERM to a rank whose launcher was killed; otherwise the rank would train on alone
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    _share_first_rank_pid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _share_first_rank_pid() -> None:
    global _first_rank
    if _FIRST_RANK in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        _first_rank = int(os.environ[_FIRST_RANK])
        if os.getppid() != _first_rank:  # the first rank was killed before prctl was called
            raise Stopped(signal.SIGTERM)
    else:
        os.environ[_FIRST_RANK] = str(os.getpid())


def is_started_by_first_rank() -> bool:
    """True if the first rank of this machine has started this process for another device."""
    return _first_rank > 0


def requested() -> int:
    """The first signal that this process received, or another rank once the ranks have agreed; 0 for none."""
    return _requested


def request(signum: int) -> None:
    """Record a signal that another rank has received.

    Args:
        signum: the number of the signal.
    """
    global _requested
    _requested = _requested or signum


def set_polled(on: bool) -> None:
    """Choose what a signal does: wait until the loop calls `requested()`, or raise `Stopped` at once.

    Args:
        on: True while a loop calls `requested()` between steps.
    """
    global _polled
    _polled = on


def reset() -> None:
    """Forget a recorded signal. For several commands in one process."""
    global _requested, _polled
    _requested, _polled = 0, False


def exit_code(stopped: Stopped) -> int:
    """The exit code of a stopped process: 128 + the signal, but 0 in a rank that the first rank has started.

    Lightning takes any other code of such a rank for a failure and kills all ranks. Only Lightning reads this code.

    Args:
        stopped: the exception that ended the run.
    """
    return 0 if is_started_by_first_rank() else 128 + stopped.signum


@contextlib.contextmanager
def with_signals_blocked() -> Iterator[None]:
    """Start processes inside this context with the signals blocked, so that a signal waits there until `install`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handle_signal(signum: int, _: FrameType | None) -> None:
    first = not _requested
    request(signum)
    if first and not _polled:
        _tell_first_rank(signum)
        raise Stopped(signum)


def _tell_first_rank(signum: int) -> None:
    """Pass the signal on, because outside training the ranks do not agree and the first rank would wait until GRACE."""
    if _first_rank and os.getppid() == _first_rank:
        os.kill(_first_rank, signum)


def _end_by_force(receiver: int) -> None:
    while True:
        signum = os.read(receiver, 1)[0]
        if signum in SIGNALS:
            break
    _tell_first_rank(signum)
    time.sleep(GRACE)
    name = signal.Signals(signum).name
    os.write(2, f"vae-lightning: {name}: no clean end within {GRACE:.0f} s; ended by force\n".encode())
    os._exit(exit_code(Stopped(signum)))
