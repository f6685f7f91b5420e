"""Which run a command is: a new one, or one that goes on; one folder for each, and one process that writes to it.

A run goes on where it was left, in its folder, under its W&B id, if it is named (`--run_id NAME`, or the variable
VAE_LIGHTNING_RUN_ID: a run of that name is begun where there is none), if it is the experiment's newest and
`--ckpt_path last` asks for it, or if the launcher has started this process again (torchrun and SLURM say so). Every
other command begins a new run.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from torch import distributed as dist

from vae_lightning.runs.checkpoint_io import BEST, LAST, PREVIOUS
from vae_lightning.runs.ownership import job, owner
from vae_lightning.runs.trust import read_checkpoint, refuse_address
from vae_lightning.types import UserError

RUN_ID = "VAE_LIGHTNING_RUN_ID"
_NAME = re.compile(r"\w([\w .+=@-]*[\w.+=@-])?")
_CHOSEN = "VAE_LIGHTNING_CHOSEN_RUN"  # for the processes that Lightning starts for the other devices


class Complete(Exception):  # noqa: N818 - not an error: there is nothing left to do
    """The run that was asked for has ended already."""


@dataclass(frozen=True)
class Run:
    """A run's folder; and, where it goes on, the checkpoint's path and contents."""

    folder: Path
    path: Path | None = None
    contents: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        return 0 if self.contents is None else int(self.contents["global_step"])


def is_started_by_lightning() -> bool:
    """Is this process one that the first rank of its machine has started, by the same command, for another device?"""
    return os.environ.get("LOCAL_RANK", "0") != "0" and _CHOSEN in os.environ and not dist.is_torchelastic_launched()


def choose_run(given: Namespace, experiment: str) -> Run:
    """See the module. Ranks that a launcher started choose alike, from the same files."""
    if is_started_by_lightning():
        folder, path = json.loads(os.environ[_CHOSEN])
        return Run(Path(folder), Path(path), read_checkpoint(path)) if path else Run(Path(folder))
    run = _choose(given, new_folder(given, experiment))
    os.environ[_CHOSEN] = json.dumps([str(run.folder), str(run.path) if run.path else None])
    return run


def new_folder(given: Namespace, experiment: str) -> Path:
    """Named as was asked for, else by the time.

    Raises:
        UserError: if the name could lead out of `runs_dir`, or W&B would not take it.
    """
    name = given.run_id or os.environ.get(RUN_ID) or time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)
    if not _NAME.fullmatch(name) or len(name.encode()) > 128:
        raise UserError(
            f"--run_id {name[:80]!r}: it names a folder and a W&B run: 128 letters, digits, spaces and . _ + = @ - at "
            "most, a letter, a digit or _ first"
        )
    if Path(experiment).is_absolute() or ".." in Path(experiment).parts:
        raise UserError(
            f"--experiment {experiment}: it names a folder below runs_dir; give a path without / first or .."
        )
    return Path(given.runs_dir).expanduser() / experiment / name


def _choose(given: Namespace, new: Path) -> Run:
    runs, has_name = new.parent, bool(given.run_id or os.environ.get(RUN_ID))
    if given.ckpt_path == "last":
        run = newest(new if has_name else runs)
        if run is None:
            raise UserError(f"--ckpt_path last: no run with a checkpoint in {runs}; leave it out to begin a new run")
        return run
    if given.ckpt_path is not None:
        return _named(Path(given.ckpt_path), new)
    if has_name:
        return newest(new) or Run(new)
    if _times_restarted() and job():  # without a name, another run could pass for this one
        return newest(runs, job()) or Run(new)
    return Run(new)


def _named(path: Path, new: Path) -> Run:
    """A folder's newest checkpoint, or this very file."""
    if path.is_dir():
        run = newest(path)
        if run is None:
            raise UserError(f"{path}: no checkpoint in {path / 'checkpoints'}")
        return run
    return of_checkpoint(path, new)


def of_checkpoint(path: Path, new: Path) -> Run:
    """The checkpoint's own run, where it lies in a run's folder; else it begins a new one."""
    folder = path.absolute().parent.parent
    return Run(folder if (folder / "config.yaml").is_file() else new, path, read_checkpoint(path))


def best(run: str | Path) -> Path:
    """A checkpoint as it is; of a run's folder the best one, or, aloud, the last one if no validation has chosen it."""
    refuse_address(run)
    path = Path(run)
    if not path.is_dir():
        return path
    found = [path / "checkpoints" / name for name in (BEST, LAST, PREVIOUS)]
    found = [file for file in found if file.is_file()]
    if not found:
        raise UserError(f"{path}: no checkpoint in {path / 'checkpoints'}")
    if found[0].name != BEST and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{path}: has no {BEST}, which a validation writes: {found[0].name} is used", file=sys.stderr, flush=True)
    return found[0]


def newest(place: Path, of_job: str | None = None) -> Run | None:
    """The newest run in `place` (a run's folder, or one of several), at the newest of its checkpoints that is whole."""
    folders = [place] if (place / "checkpoints").is_dir() else [path.parent for path in place.glob("*/checkpoints")]
    if of_job is not None:
        folders = [folder for folder in folders if owner(folder).get("job") == of_job]
    dated = [(path.stat().st_mtime_ns, folder) for folder in folders for path in _present(folder)]
    return _newest_whole(max(dated)[1]) if dated else None


def _newest_whole(folder: Path) -> Run:
    """`last`; where that is damaged, the later of the others, aloud."""
    refused = []
    found: list[Run] = []
    for path in _present(folder):
        try:
            found.append(Run(folder, path, read_checkpoint(path)))
        except UserError as error:
            refused.append(error)
            continue
        if path.name == LAST:
            break
    if not found:
        raise UserError(f"{folder}: none of its checkpoints can be read: {'; '.join(map(str, refused))}")
    run = max(found, key=lambda run: run.step)
    if refused and os.environ.get("LOCAL_RANK", "0") == "0":
        print(*refused, f"the run goes on from {run.path}, step {run.step}, instead", sep="\n", flush=True)
    return run


def _present(folder: Path) -> Iterator[Path]:
    paths = (folder / "checkpoints" / name for name in (LAST, PREVIOUS, BEST))
    return (path for path in paths if path.is_file())


def is_complete(contents: dict[str, Any], max_epochs: int | None, max_steps: int) -> bool:
    """Has the checkpoint's run ended, and would it also under the limits that are given now?"""
    if max_epochs is None:
        max_epochs = 1000 if max_steps == -1 else -1  # Lightning's default
    states = [state for state in contents.get("callbacks", {}).values() if isinstance(state, dict)]
    ended = next((state["complete"] for state in states if state.get("complete")), None)
    if ended is None:
        return False
    epochs = contents["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    done = -1 < max_epochs <= epochs or -1 < max_steps <= contents["global_step"]
    return done or ended == [max_epochs, max_steps]


def _times_restarted() -> int:
    """By torchrun, after a failure; by SLURM, after a requeue."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return max(int(count) if count.isdigit() else 0 for count in counts)
