"""SIGTERM, SIGINT and SIGUSR1: the run stops where it can go on from, within seconds, with exit code 128 + the signal.

The handler only notes the signal. In training, `BestAndLast` asks between steps, lets all ranks agree, saves and stops;
elsewhere there is nothing to save and the command ends at once, with the first rank of its machine. A thread keeps the
time: a process that is stuck (in a collective whose other ranks are gone, say) is ended by force, since no Python
handler runs while it waits.
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

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # SLURM's --signal=USR1@90 is the last
GRACE = 20.0
"""Seconds from the first signal to the forced end."""

_PR_SET_PDEATHSIG = 1
_FIRST_RANK = "VAE_LIGHTNING_FIRST_RANK"  # its process, to those that it starts for other devices
_first_rank = 0
_requested = 0
_polled = False


class Stopped(SystemExit):
    """The run was stopped by a signal; `code` is what a shell calls that: 128 + its number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


def install() -> None:
    """Take over the signals of this process: called once, from its main thread, by the command line alone."""
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    signal.set_wakeup_fd(sender, warn_on_full_buffer=False)
    for signum in SIGNALS:
        signal.signal(signum, _note)
    threading.Thread(target=_end_by_force, args=(receiver,), daemon=True, name="grace").start()
    if "LOCAL_RANK" in os.environ and sys.platform == "linux":
        # a rank whose launcher was killed would train on alone: it gets a SIGTERM of its own
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
    _find_first_rank()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _find_first_rank() -> None:
    global _first_rank
    if _FIRST_RANK in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
        _first_rank = int(os.environ[_FIRST_RANK])
        if os.getppid() != _first_rank:  # it was killed before we could ask to be told
            raise Stopped(signal.SIGTERM)
    else:
        os.environ[_FIRST_RANK] = str(os.getpid())


def is_started_by_first_rank() -> bool:
    """Is this process one that the first rank of its machine has started, by the same command, for another device?"""
    return _first_rank > 0


def requested() -> int:
    """The first signal that came, here or (once they have agreed) at another rank; 0 for none."""
    return _requested


def request(signum: int) -> None:
    """As if `signum` had come, without an exception."""
    global _requested
    _requested = _requested or signum


def poll(on: bool) -> None:
    """While on, somebody asks `requested()` between steps; while off, a signal raises `Stopped` where it finds us."""
    global _polled
    _polled = on


def reset() -> None:
    global _requested, _polled
    _requested, _polled = 0, False


def exit_code(stopped: Stopped) -> int:
    """That of a rank which the first one has started is 0: Lightning takes another for a failure, and kills all ranks.

    Nobody else reads it; the first rank ends with the signal's own.
    """
    return 0 if is_started_by_first_rank() else 128 + stopped.signum


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Processes started within begin with the signals blocked: one that comes before `install` waits for it there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _note(signum: int, _: FrameType | None) -> None:
    first = not _requested
    request(signum)
    if first and not _polled:
        _tell_first_rank(signum)
        raise Stopped(signum)


def _tell_first_rank(signum: int) -> None:
    """Ranks agree in training alone: elsewhere it would wait for this one, and be ended by force too late."""
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
