"""Choose the run of a command: a new run, or an earlier run that is resumed. Each run has one folder.

A command resumes a run, in the run's folder and under its W&B id, in three cases:
- `--run_id NAME`, or the variable VAE_LIGHTNING_RUN_ID, names the run (without such a run, a new one gets the name);
- `--ckpt_path last` asks for the newest run of the experiment, or `--ckpt_path` names a run or its checkpoint;
- torchrun or SLURM has restarted this process.
Every other command begins a new run.
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
_CHOSEN = "VAE_LIGHTNING_CHOSEN_RUN"  # tells the choice to the processes that Lightning starts for the other devices


class Complete(Exception):  # noqa: N818 - not an error: there is nothing left to do
    """The chosen run has already ended."""


@dataclass(frozen=True)
class Run:
    """A run's folder and, if the run is resumed, its checkpoint.

    Args:
        folder: the run's folder.
        path: the checkpoint that the run resumes from; None for a new run.
        contents: the contents of that checkpoint; None for a new run.
    """

    folder: Path
    path: Path | None = None
    contents: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        return 0 if self.contents is None else int(self.contents["global_step"])


def is_started_by_lightning() -> bool:
    """True if Lightning, in the first rank of this machine, has started this process for another device."""
    return os.environ.get("LOCAL_RANK", "0") != "0" and _CHOSEN in os.environ and not dist.is_torchelastic_launched()


def choose_run(settings: Namespace, experiment: str) -> Run:
    """Choose the run as the module describes. Ranks that a launcher started read the same files and choose alike.

    Args:
        settings: the parsed command line, with `run_id`, `runs_dir` and `ckpt_path`.
        experiment: the name of the experiment, a folder below `runs_dir`.

    Raises:
        UserError: if the run has no checkpoint that can be read, or its name is refused.
    """
    if is_started_by_lightning():
        folder, path = json.loads(os.environ[_CHOSEN])
        return Run(Path(folder), Path(path), read_checkpoint(path)) if path else Run(Path(folder))
    run = _choose(settings, new_folder(settings, experiment))
    os.environ[_CHOSEN] = json.dumps([str(run.folder), str(run.path) if run.path else None])
    return run


def new_folder(settings: Namespace, experiment: str) -> Path:
    """The folder for a new run, with the name that the user gave, else with the time as its name.

    Args:
        settings: the parsed command line, with `run_id` and `runs_dir`.
        experiment: the name of the experiment, a folder below `runs_dir`.

    Raises:
        UserError: if the name leads out of `runs_dir`, or W&B would refuse the name.
    """
    name = settings.run_id or os.environ.get(RUN_ID) or time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(2)
    if not _NAME.fullmatch(name) or len(name.encode()) > 128:
        raise UserError(
            f"--run_id {name[:80]!r}: it names a folder and a W&B run: give at most 128 letters, digits, spaces and "
            ". _ + = @ -, with a letter, a digit or _ first"
        )
    if Path(experiment).is_absolute() or ".." in Path(experiment).parts:
        raise UserError(
            f"--experiment {experiment}: it names a folder below runs_dir; give a path without / first or .."
        )
    return Path(settings.runs_dir).expanduser() / experiment / name


def _choose(settings: Namespace, new: Path) -> Run:
    runs, has_name = new.parent, bool(settings.run_id or os.environ.get(RUN_ID))
    if settings.ckpt_path == "last":
        run = newest_run(new if has_name else runs)
        if run is None:
            raise UserError(f"--ckpt_path last: no run with a checkpoint in {runs}; omit the flag to begin a new run")
        return run
    if settings.ckpt_path is not None:
        return _run_of_path(Path(settings.ckpt_path), new)
    if has_name:
        return newest_run(new) or Run(new)
    if _times_restarted() and job():  # without a name, another run could pass for this one
        return newest_run(runs, job()) or Run(new)
    return Run(new)


def _run_of_path(path: Path, new: Path) -> Run:
    """The run at the newest checkpoint of the folder `path`, or at the file `path`."""
    if path.is_dir():
        run = newest_run(path)
        if run is None:
            raise UserError(f"{path}: no checkpoint in {path / 'checkpoints'}")
        return run
    return run_of_checkpoint(path, new)


def run_of_checkpoint(path: Path, new: Path) -> Run:
    """The run to which a checkpoint belongs: its own run if the file lies in a run's folder, else a new run.

    Args:
        path: the checkpoint.
        new: the folder of the new run.

    Raises:
        UserError: if the checkpoint cannot be read.
    """
    folder = path.absolute().parent.parent
    return Run(folder if (folder / "config.yaml").is_file() else new, path, read_checkpoint(path))


def best_checkpoint(run: str | Path) -> Path:
    """The best checkpoint of a run; if no validation has written one, the last checkpoint, with a line on stderr.

    Args:
        run: a run's folder, or a checkpoint, whose path is returned unchanged.

    Raises:
        UserError: if the folder has no checkpoint, or the path is an address.
    """
    refuse_address(run)
    path = Path(run)
    if not path.is_dir():
        return path
    files = [path / "checkpoints" / name for name in (BEST, LAST, PREVIOUS)]
    files = [file for file in files if file.is_file()]
    if not files:
        raise UserError(f"{path}: no checkpoint in {path / 'checkpoints'}")
    if files[0].name != BEST and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{path}: has no {BEST}, which a validation writes: {files[0].name} is used", file=sys.stderr, flush=True)
    return files[0]


def newest_run(place: Path, of_job: str | None = None) -> Run | None:
    """The newest run in a folder, at its newest checkpoint that is not damaged; None if there is no checkpoint.

    Args:
        place: a run's folder, or a folder of runs.
        of_job: consider only runs that this job of a launcher has trained; None for all runs.

    Raises:
        UserError: if all checkpoints of the newest run are damaged.
    """
    folders = [place] if (place / "checkpoints").is_dir() else [path.parent for path in place.glob("*/checkpoints")]
    if of_job is not None:
        folders = [folder for folder in folders if owner(folder).get("job") == of_job]
    dated = [(path.stat().st_mtime_ns, folder) for folder in folders for path in _present(folder)]
    return _newest_whole(max(dated)[1]) if dated else None


def _newest_whole(folder: Path) -> Run:
    """The run at `last.ckpt`. If that file is damaged, print its fault and use the later of the other checkpoints."""
    refused = []
    runs: list[Run] = []
    for path in _present(folder):
        try:
            runs.append(Run(folder, path, read_checkpoint(path)))
        except UserError as error:
            refused.append(error)
            continue
        if path.name == LAST:
            break
    if not runs:
        raise UserError(f"{folder}: none of its checkpoints can be read: {'; '.join(map(str, refused))}")
    run = max(runs, key=lambda run: run.step)
    if refused and os.environ.get("LOCAL_RANK", "0") == "0":
        print(*refused, f"the run resumes from {run.path}, step {run.step}, instead", sep="\n", flush=True)
    return run


def _present(folder: Path) -> Iterator[Path]:
    paths = (folder / "checkpoints" / name for name in (LAST, PREVIOUS, BEST))
    return (path for path in paths if path.is_file())


def is_complete(contents: dict[str, Any], max_epochs: int | None, max_steps: int) -> bool:
    """True if the checkpoint's run has ended, and the present limits would not let it continue.

    Args:
        contents: the contents of the checkpoint.
        max_epochs: the present limit of epochs; None for the default of Lightning.
        max_steps: the present limit of steps; -1 for no limit.
    """
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
    """How often torchrun (after a failure) or SLURM (after a requeue) has restarted this process."""
    counts = (os.environ.get(name, "0") for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))
    return max(int(count) if count.isdigit() else 0 for count in counts)
