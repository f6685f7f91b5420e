"""`train --seeds 0 1 2`: one run for each seed, in a process of its own, then the mean and its error over the seeds.

A process of its own, because a run must not depend on the runs before it, and because Lightning starts the processes of
further devices by the command line of the first.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vae_lightning.cli.lightning import DataCLI
from vae_lightning.cli.run_settings import experiment_of, make_init_from_absolute
from vae_lightning.metrics.formatting import number
from vae_lightning.runs import signals
from vae_lightning.runs.checkpoint_io import LAST
from vae_lightning.runs.differences import differing_settings
from vae_lightning.runs.folder import new_folder
from vae_lightning.runs.record import Record
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.types import UserError

_FLAG = "--seeds"
_OF_ONE_RUN = ("seed_everything", "experiment", "runs_dir")  # differ between seeds, or by how a path is written
_STDERR = "of the mean over the seeds: standard deviation (n - 1) / sqrt(n); null for one seed"


def asks_for_seeds(args: Sequence[str]) -> bool:
    """Return whether `--seeds` is among the arguments of `train`.

    Args:
        args: The arguments after `train`.
    """
    return any(arg == _FLAG or arg.startswith(f"{_FLAG}=") for arg in args)


class _SeedsCLI(DataCLI):
    """Reads the command line of `train --seeds` and checks it; nothing is built or run."""

    def before_instantiate_classes(self) -> None:
        self.settings = self.config.fit
        self.settings.experiment = self.settings.experiment or experiment_of(self.settings.config)
        make_init_from_absolute(self.settings)
        self.text = self._dump(self.settings)


def train_seeds(args: Sequence[str], trusted: Sequence[str]) -> None:
    """Train and test one run for each seed that is missing, print mean and error, and write `seeds.json`.

    Args:
        args: The arguments after `train`, `--seeds` among them.
        trusted: The packages that `--trust` names.

    Raises:
        UserError: if the arguments are wrong (exit code 2), or if a run has failed (the run's exit code).
    """
    cli = _SeedsCLI(["fit", *args], then_test=True)
    _check(cli.settings)
    seeds: list[int] = cli.settings.seeds
    cli.settings.run_id = cli.settings.run_id or os.environ.get("VAE_LIGHTNING_RUN_ID") or f"seeds-{_digest(cli.text)}"
    group = new_folder(cli.settings, cli.settings.experiment)
    experiment = f"{cli.settings.experiment}/{group.name}"
    failed = []
    for seed in seeds:
        folder = group / f"seed-{seed}"
        print(f"seed {seed}    {folder}{': already complete' if _is_done(folder, cli.text) else ''}", flush=True)
        if not _is_done(folder, cli.text):
            own = (f"--experiment={experiment}", f"--run_id={folder.name}", f"--seed_everything={seed}")
            code = _run(["train", *without_seeds(args), *own, *(f"--trust={name}" for name in trusted)])
            if code not in (0, 1):  # 1: this run has failed, which another seed may not
                raise _ended(seed, code)
            failed += [seed] if code else []
        if seed not in failed:
            _check_config(folder, cli.text)
        write_seeds(group, seeds)
    print("\n".join(_lines(group)), flush=True)
    if failed:
        raise _ended(failed[0], 1)


def _check(settings: Any) -> None:
    """Raise UserError if the seeds are no seeds, or if `train` could not start a new run for each of them."""
    seeds = settings.seeds or []
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise UserError(f"{_FLAG} {' '.join(map(str, seeds))}: give different numbers, each at least 0")
    if settings.ckpt_path is not None:
        raise UserError(f"{_FLAG} begins a run for each seed, or goes on with it by itself: leave out --ckpt_path")
    is_one_of_many = os.environ.get("WORLD_SIZE", "1") != "1" or (
        "SLURM_PROCID" in os.environ and os.environ.get("SLURM_NTASKS", "1") != "1"
    )
    if is_one_of_many:
        raise UserError(f"{_FLAG} starts its runs itself; under torchrun or srun start a job for each seed")


def _digest(config: str) -> str:
    """Return eight digits for the settings: the same command finds its runs, another one does not."""
    settings = {name: value for name, value in yaml.safe_load(config).items() if name not in _OF_ONE_RUN}
    if settings.get("init_from") is None:  # so that a group without it keeps its digits, whatever flags are added
        settings.pop("init_from", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def without_seeds(args: Sequence[str]) -> list[str]:
    """Return the arguments without `--seeds` and its numbers.

    Args:
        args: The arguments after `train`.
    """
    rest: list[str] = []
    is_seed = False
    for arg in args:
        is_flag = arg == _FLAG or arg.startswith(f"{_FLAG}=")
        is_seed = is_flag or (is_seed and not arg.startswith("-"))
        rest += [] if is_seed else [arg]
    return rest


# -- one run ----------------------------------------------------------------------------------------------------------


def _run(args: Sequence[str]) -> int:
    """Run a command of this program in a process of its own, pass signals on to it, and return its exit code."""
    own = Path(sys.argv[0])
    program = [str(own)] if own.name.startswith("vae-lightning") and own.is_file() else ["-m", "vae_lightning"]
    with signals.with_signals_blocked():  # a signal then waits until the run can save
        process = subprocess.Popen([sys.executable, *program, *args])
    try:
        return process.wait()
    except signals.Stopped as stopped:
        process.send_signal(stopped.signum)
        process.wait()
        raise


def _ended(seed: int, code: int) -> BaseException:
    if code > 128:
        return signals.Stopped(code - 128)
    error = UserError(f"{_FLAG}: the run of seed {seed} ended with exit code {code}; the same command goes on with it")
    error.exit_code = code if code > 0 else 1
    return error


def _is_done(folder: Path, config: str) -> bool:
    """Return whether a run of these settings was tested after its last checkpoint."""
    results, last = folder / "results.json", folder / "checkpoints" / LAST
    is_tested = results.is_file() and last.is_file() and results.stat().st_mtime_ns >= last.stat().st_mtime_ns
    return is_tested and not _changes(folder, config)


def _changes(folder: Path, config: str) -> list[str]:
    path = folder / "config.yaml"
    saved = yaml.safe_load(path.read_text()) if path.is_file() else {}
    return differing_settings(saved, yaml.safe_load(config), hidden=_OF_ONE_RUN)


def _check_config(folder: Path, config: str) -> None:
    """Raise if the run is an older one of other settings, because no mean may be taken over both."""
    if changes := _changes(folder, config):
        raise UserError(
            f"{folder}: a complete run of other settings (there -> here): {'; '.join(changes)}; give another --run_id"
        )


# -- all runs ---------------------------------------------------------------------------------------------------------


def write_seeds(group: Path, seeds: Sequence[int]) -> None:
    """Write `seeds.json` from the `results.json` of the runs that have one.

    Args:
        group: The folder that holds a folder `seed-<seed>` for each run.
        seeds: The seeds.
    """
    paths = {seed: group / f"seed-{seed}" / "results.json" for seed in seeds}
    results = {seed: json.loads(path.read_text()) for seed, path in paths.items() if path.is_file()}
    first: dict[str, Any] = next(iter(results.values()), {})
    contents: dict[str, Any] = {
        "seeds": list(results),
        "missing": [seed for seed in seeds if seed not in results],
        "metrics": over_seeds([found["metrics"] for found in results.values()]),
        "units": {**first.get("units", {}), "stderr": _STDERR},
        **{name: first[name] for name in ("loss_note", "untrained_kl", "measures") if name in first},
        "runs": {seed: path.parent.name for seed, path in paths.items()},
    }
    write_whole(group / "seeds.json", json.dumps(contents, indent=2, allow_nan=False).encode() + b"\n")


def over_seeds(metrics: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, Any]]:
    """Return `mean`, `stderr` and the `values` of each metric; the standard errors of single runs are left out.

    The standard error is s / sqrt(n), where s^2 = sum (x - mean)^2 / (n - 1). A mean of values of which one is unknown
    is unknown.

    Args:
        metrics: The metrics of each run by name.
    """
    names = [name for name in (metrics[0] if metrics else {}) if not name.endswith("_stderr")]
    found = {}
    for name in names:
        values = [one.get(name) for one in metrics]
        known = [value for value in values if value is not None]
        is_whole, n = len(known) == len(values), len(values)
        mean = statistics.fmean(known) if is_whole else None
        stderr = statistics.stdev(known) / n**0.5 if is_whole and n > 1 else None
        found[name] = {"mean": mean, "stderr": stderr, "values": values}
    return found


def _lines(group: Path) -> list[str]:
    contents = json.loads((group / "seeds.json").read_text())
    seeds = ", ".join(map(str, contents["seeds"]))
    missing = f"; missing: {', '.join(map(str, contents['missing']))}" if contents["missing"] else ""
    lines = ["", f"{'seeds':<12}{seeds}{missing}", f"{'given':<12}mean +- standard error over the seeds"]
    shown = _shown(group, contents)
    width = 1 + max([27, *map(len, shown)])
    for name, entry in shown.items():
        mean, stderr = entry["mean"], entry["stderr"]
        places = 2 if mean is not None and abs(mean) >= 10 else 4
        value, error = (("?" if one is None else number(one, places)) for one in (mean, stderr))
        lines.append(f"{name:<{width}}{value} +- {error}")
    lines += [f"{'loss':<12}{contents['loss_note']}"] if contents.get("loss_note") else []
    return [*lines, f"{'written':<12}{group / 'seeds.json'}"]


def _shown(group: Path, contents: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The numbers of `seeds.json` by name, the model's first ones first; none of a bound that has no meaning."""
    metrics = {name.removeprefix("test/"): entry for name, entry in contents["metrics"].items()}
    names = dict.fromkeys([*contents.get("measures", ()), *metrics])
    record = Record(group, {}, contents)
    return {name: metrics[name] for name in names if name in metrics and not record.says_nothing(name)}
