"""Read what a run has left in its folder: settings, results, curves, values of each test example, and its state."""

from __future__ import annotations

import csv
import json
import os
import re
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from vae_lightning.runs.checkpoint_form import is_number, load_plain
from vae_lightning.runs.checkpoint_io import BEST, LAST, PREVIOUS
from vae_lightning.runs.differences import changes_of_a_test
from vae_lightning.runs.ownership import is_being_trained
from vae_lightning.runs.trust import refuse_address
from vae_lightning.types import UserError

CONFIG, METRICS, RESULTS, VALUES, REPORT = (
    "config.yaml",
    "metrics.csv",
    "results.json",
    "test_values.npz",
    "report.html",
)
_OF_THE_BOUND = {"nll", "nll_bpd", "nll_ess", "elbo", "elbo_per_step", "kl", "rate"}
"""Numbers that say nothing of a run whose loss left a KL out."""


@dataclass(frozen=True)
class Record:
    """What a run's folder says about the run. An entry whose file is missing or damaged is empty.

    Args:
        folder: the run's folder.
        config: the settings in config.yaml.
        results: the entries of results.json.
        faults: one line for each file that cannot be read.
    """

    folder: Path
    config: dict[str, Any]
    results: dict[str, Any]
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The experiment and the name of the run."""
        experiment = self.config.get("experiment")
        folder = Path(os.path.normpath(self.folder.absolute()))
        return f"{experiment}/{folder.name}" if isinstance(experiment, str) else f"{folder.parent.name}/{folder.name}"

    @property
    def leaves_a_kl_out(self) -> bool:
        """Whether the loss left a KL out, so that the numbers of the bound say nothing; of a fit, by its config."""
        if "untrained_kl" in self.results:
            return bool(self.results["untrained_kl"])
        objective = entry(self.config, "model", "init_args", "objective")
        beta = entry(objective, "init_args", "beta")
        return class_name(objective) in ("ELBO", "STL") and is_number(beta) and beta == 0

    @property
    def tested_otherwise(self) -> list[str]:
        """The settings of the test that its numbers depend on and that are not those of config.yaml."""
        if not self.config or not self.results.get("model") or not self.results.get("data"):
            return []  # one of the two is unknown
        return changes_of_a_test(self.config, self.results)

    @property
    def measures(self) -> list[str]:
        """The numbers of the test, without `test/`, that the model names as its first ones; those that it has."""
        named = self.results.get("measures")
        found = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
        return [name for name in found if self.number(name) is not None]

    def says_nothing(self, name: str) -> bool:
        """Whether a number is one of a bound that has no meaning.

        Args:
            name: the name without `test/`, or a column of metrics.csv.
        """
        return self.leaves_a_kl_out and is_of_bound(name)

    def number(self, name: str) -> float | None:
        """A number of the test, such as `elbo` or `nll_stderr`; None if there is none of this name, or no meaning.

        Args:
            name: the name without `test/`.
        """
        value = entry(self.results, "metrics", f"test/{name}")
        return float(value) if is_number(value) and not self.says_nothing(name) else None

    def numbers(self) -> dict[str, tuple[float | None, float | None]]:
        """Each number of the test and its standard error by name, without `test/`; None if unknown.

        Numbers of a bound that has no meaning are left out.
        """
        names = [name.removeprefix("test/") for name in mapping(self.results, "metrics")]
        names = [name for name in names if not self.says_nothing(name)]
        errors = {name for name in names if name.endswith("_stderr")}
        return {name: (self.number(name), self.number(f"{name}_stderr")) for name in names if name not in errors}


def is_of_bound(name: str) -> bool:
    """True if a number is one of the bound, which says nothing of a model whose loss leaves a KL out.

    Args:
        name: the name of a number of the test without or with `test/`, or a column of metrics.csv.
    """
    name = re.sub("^(train|val|test)/", "", name)
    return name.partition("/")[0].removesuffix("_stderr") in _OF_THE_BOUND


def entry(tree: Any, *names: str) -> Any:
    """The entry of nested dicts at the end of a path of names; None if there is none.

    Args:
        tree: the outermost dict.
        names: the names, from the outermost.
    """
    for name in names:
        tree = tree.get(name) if isinstance(tree, dict) else None
    return tree


def mapping(tree: Any, *names: str) -> dict[str, Any]:
    """The dict at the end of a path of names; empty if there is none, or something else.

    Args:
        tree: the outermost dict.
        names: the names, from the outermost.
    """
    found = entry(tree, *names)
    return found if isinstance(found, dict) else {}


def class_name(recipe: Any) -> str | None:
    """The name of the class of a recipe without its module; None if it names none.

    Args:
        recipe: a dict with `class_path`, or a class path.
    """
    path = recipe.get("class_path") if isinstance(recipe, dict) else recipe
    return path.rpartition(".")[2] if isinstance(path, str) else None


# -- which folder ------------------------------------------------------------------------------------------------------


def folder_of(run: str | Path) -> Path:
    """The folder of a run that is named by its folder or by one of its checkpoints.

    Args:
        run: a run's folder, or a checkpoint in it.

    Raises:
        UserError: if there is no such folder, or if it is not a run's.
    """
    refuse_address(run)
    path = Path(run)
    if path.is_file():
        path = path.absolute().parent.parent
    if not path.is_dir():
        raise UserError(f"{run}: no such run; name a run's folder, runs/<experiment>/<run id>, or a checkpoint in it")
    if not is_run(path):
        inside = next(find_runs(path), None)
        hint = f"; a run in it is {inside}" if inside else ""
        raise UserError(f"{path}: not a run's folder: it has none of {CONFIG}, {METRICS} and {RESULTS}{hint}")
    return path


def is_run(folder: Path) -> bool:
    """True if the folder is a run's: it has its lock file or one of the files that only a run writes.

    Args:
        folder: the folder.
    """
    try:
        has_config = (folder / CONFIG).is_file() and (folder / "checkpoints").is_dir()
        return has_config or any((folder / name).is_file() for name in (".owner.json", METRICS, RESULTS))
    except OSError:  # a folder that may not be read
        return False


def find_runs(place: Path) -> Iterator[Path]:
    """Yield the folders of runs in a folder, which may itself be a run's. Links are not followed.

    Args:
        place: the folder to search.
    """
    for path, folders, _ in os.walk(place):  # does not follow links to folders
        if is_run(Path(path)):
            folders.clear()  # a run has no runs in it
            yield Path(path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


# -- its files ---------------------------------------------------------------------------------------------------------


def read_run(folder: Path) -> Record:
    """Read config.yaml and results.json; a damaged file is a fault of the record, not an error.

    Args:
        folder: the run's folder.
    """
    faults: list[str] = []
    parts: list[dict[str, Any]] = []
    for name, load in ((CONFIG, yaml.safe_load), (RESULTS, json.loads)):
        contents: Any = {}
        try:
            contents = load((folder / name).read_text())
        except FileNotFoundError:
            pass
        except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
            faults.append(f"{folder / name}: cannot be read ({' '.join(str(error).split())[:100]})")
        if not isinstance(contents, dict):
            faults.append(f"{folder / name}: cannot be read (it holds no settings by name)")
        parts.append(contents if isinstance(contents, dict) else {})
    config, results = parts
    return Record(folder, config, results, faults)


def read_curves(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """The points (step, value) of each column of metrics.csv; empty if there is no such file.

    Args:
        folder: the run's folder.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    try:
        with (folder / METRICS).open(newline="", errors="replace") as file:
            for row in csv.DictReader(file):
                step = _number(row.pop("step", None))
                values = {name: _number(value) for name, value in row.items() if name and name != "epoch"}
                for name, value in values.items():
                    if step is not None and value is not None:
                        curves.setdefault(name, []).append((step, value))
    except (OSError, csv.Error):
        return curves
    return curves


def _number(cell: Any) -> float | None:
    try:
        return float(cell) if isinstance(cell, str) and cell else None
    except ValueError:
        return None


def read_values(folder: Path) -> dict[str, npt.NDArray[np.float64]]:
    """The values of each test example, [N] by name, in the order of the test set; empty if the test kept none.

    Args:
        folder: the run's folder.
    """
    try:
        with np.load(folder / VALUES, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name], np.float64) for name in file.files}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile, EOFError):  # TypeError: a single array, or objects
        return {}
    lengths = {array.shape for array in arrays.values()}
    return arrays if len(lengths) == 1 and len(next(iter(lengths))) == 1 else {}


# -- its state ---------------------------------------------------------------------------------------------------------


def state_of(folder: Path) -> str:
    """The state of a run, one of these words.

    - running: a process trains the run now.
    - finished: the fit has ended, and the results are those of its last checkpoint.
    - trained: the fit has ended and was not tested since.
    - stopped: the fit has not ended, or its checkpoint cannot be read.
    - empty: there is neither a checkpoint nor a result.

    Args:
        folder: the run's folder.
    """
    if is_being_trained(folder):
        return "running"
    checkpoint, results = folder / "checkpoints" / LAST, folder / RESULTS
    if not has_checkpoint(folder):
        return "finished" if results.is_file() else "empty"
    if not checkpoint.is_file():
        return "finished" if results.is_file() else "stopped"
    if results.is_file() and results.stat().st_mtime_ns >= checkpoint.stat().st_mtime_ns:
        return "finished"
    return "trained" if _has_ended(checkpoint) else "stopped"


def has_checkpoint(folder: Path) -> bool:
    """True if there is any file among the run's checkpoints.

    Args:
        folder: the run's folder.
    """
    checkpoints = folder / "checkpoints"
    return checkpoints.is_dir() and any(not path.name.startswith(".") for path in checkpoints.iterdir())


def _has_ended(checkpoint: Path) -> bool:
    """True if the checkpoint records the limits up to which its fit is complete."""
    try:
        contents = load_plain(checkpoint)
    except UserError:
        return False
    return any(bool(entry(state, "complete")) for state in mapping(contents, "callbacks").values())


def last_change(folder: Path) -> str:
    """The date and the time, to the minute, at which a run last wrote one of its files.

    Args:
        folder: the run's folder.
    """
    names = (CONFIG, METRICS, RESULTS, ".owner.json", *(f"checkpoints/{name}" for name in (LAST, BEST, PREVIOUS)))
    times = [(folder / name).stat().st_mtime for name in names if (folder / name).is_file()]
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(max(times, default=folder.stat().st_mtime)))
