"""One process writes to a run's folder: a lock that the system lets go of when its owner ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import IO, Any

from vae_lightning.runs.whole_files import try_lock
from vae_lightning.types import UserError

_NAME = ".owner.json"


def own(folder: Path) -> IO[str]:
    """Lock a run's folder for as long as the file that is returned stays open.

    Raises:
        UserError: where another process has it: that one is still training this run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / _NAME).open("a+")
    if try_lock(file) is False:  # None, a file system without locks, keeps nobody out
        file.close()
        who = ", ".join(f"{name} {value}" for name, value in owner(folder).items() if value)
        raise UserError(f"{folder}: another process is training this run ({who}); wait for it, or end it")
    file.truncate(0)
    json.dump({"host": socket.gethostname(), "pid": os.getpid(), "job": job()}, file)
    file.flush()
    return file


def owner(folder: Path) -> dict[str, Any]:
    """Who trains the run of this folder, or did so last; nothing where that is not known."""
    try:
        return dict(json.loads((folder / _NAME).read_text()))
    except (OSError, ValueError):
        return {}


def job() -> str | None:
    """What the launcher of this process calls the work that it may start again."""
    names = ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID")
    words = [os.environ[name] for name in names if name in os.environ]
    return "/".join(word for word in words if word != "none") or None  # torchrun's, where it was given no id
