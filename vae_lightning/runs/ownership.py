"""Let one process at a time write to a run's folder, by a lock that the system releases when the process ends."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from vae_lightning.runs.whole_files import try_lock
from vae_lightning.types import UserError

_NAME = ".owner.json"


def lock_run(folder: Path) -> IO[str]:
    """Lock a run's folder until the returned file is closed.

    Args:
        folder: the run's folder; made if it does not exist.

    Raises:
        UserError: if another process holds the lock, because that process is still training this run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / _NAME).open("a+")
    if try_lock(file) is False:  # None: the file system has no locks, so nobody is kept out
        file.close()
        who = ", ".join(f"{name} {value}" for name, value in owner(folder).items() if value)
        raise UserError(
            f"{folder}: another process is training this run ({who}); wait until the process ends, or end it"
        )
    file.truncate(0)
    json.dump({"host": socket.gethostname(), "pid": os.getpid(), "job": job()}, file)
    file.flush()
    return file


@contextmanager
def others_kept_out(folder: Path) -> Iterator[bool]:
    """Let no process begin to train a run in the block. Yields False if one trains it now. Nothing is written.

    Args:
        folder: the run's folder.
    """
    if not (folder / _NAME).is_file():
        yield True
        return
    with (folder / _NAME).open() as file:
        yield try_lock(file) is not False


def is_being_trained(folder: Path) -> bool:
    """True if a process holds the lock of a run's folder; nothing is written.

    Args:
        folder: the run's folder.
    """
    try:
        with (folder / _NAME).open() as file:
            return try_lock(file, shared=True) is False
    except OSError:
        return False


def owner(folder: Path) -> dict[str, Any]:
    """The host, pid and job of the process that trains a run, or trained it last; empty if unknown.

    Args:
        folder: the run's folder.
    """
    try:
        return dict(json.loads((folder / _NAME).read_text()))
    except (OSError, ValueError):
        return {}


def job() -> str | None:
    """The id that SLURM or torchrun gives to the job of this process; None without a launcher."""
    names = ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID")
    words = [os.environ[name] for name in names if name in os.environ]
    return "/".join(word for word in words if word != "none") or None  # torchrun writes "none" if the user gave no id
