"""The last lines of a run: its folder, its numbers, the next command."""

from __future__ import annotations

import math
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from vae_lightning.callbacks.checkpoint import own_checkpoints
from vae_lightning.data import ImageDataModule
from vae_lightning.metrics import CollapseReport, Evaluation, RateDistortion
from vae_lightning.metrics.formatting import in_words_of, number, value_and_error, with_error
from vae_lightning.models import LatentVariableModel
from vae_lightning.recipes import to_plain
from vae_lightning.runs.checkpoint_io import BEST, LAST
from vae_lightning.runs.record import is_of_bound
from vae_lightning.runs.trust import foreign_packages


def summary(trainer: pl.Trainer, folder: Path, config: str, report: Path | None = None) -> str:
    """Return the last lines of a run: its folder, its numbers with their conditions, W&B, files, the next command.

    Args:
        trainer: The trainer after its fit or test.
        folder: The run's folder.
        config: The run's configuration as YAML.
        report: The run's report; None if there is none.
    """
    model = trainer.lightning_module
    assert isinstance(model, LatentVariableModel)
    rows = [
        ("run", str(folder)),
        *((name, in_words_of(value, model.is_of_images)) for name, value in (*_numbers(trainer), *_latents(trainer))),
        *_conditions(trainer, config),
        *_wandb(trainer),
    ]
    checkpoints = (folder / "checkpoints" / name for name in (BEST, LAST))
    kept = next((path for path in checkpoints if path.is_file()), None)
    if (folder / "images").is_dir():  # not where pictures are off, or x has none
        rows.append(("pictures", str(folder / "images")))
    if report is not None:
        rows.append(("report", str(report)))
    if kept is not None:
        trust_flags = "".join(f" --trust {package}" for package in foreign_packages(to_plain(model.hparams)))
        command = f"{program('vae-lightning')} {model.next_verb} {shlex.quote(str(kept))}{trust_flags}"
        rows.append(("next", command))
    return "\n".join(["", *(f"{name:<12}{value}" for name, value in rows)])


def leave_out_of_tables(trainer: pl.Trainer) -> None:
    """Keep the numbers of a bound out of Lightning's tables of `validate` and `test` if the loss leaves a KL out.

    Args:
        trainer: The trainer, before it runs.
    """
    for loop in (trainer.validate_loop, trainer.test_loop):
        loop._print_results = partial(_print_table, trainer, loop._print_results)  # type: ignore[method-assign]


def _print_table(trainer: pl.Trainer, show: Callable[..., None], results: list[dict[str, Any]], stage: str) -> None:
    untrained = getattr(trainer.lightning_module, "untrained_kl", ())
    show([{name: row[name] for name in row if not (untrained and is_of_bound(name))} for row in results], stage)


def program(name: str) -> str:
    """Return a program's name as a user can type it: its path if the environment is not activated.

    Args:
        name: A program of this Python environment.
    """
    path = Path(sys.executable).parent / name
    if shutil.which(name) or not path.is_file():
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _numbers(trainer: pl.Trainer) -> list[tuple[str, str]]:
    rows = _validation(trainer)
    model, metrics = trainer.lightning_module, trainer.callback_metrics
    assert isinstance(model, LatentVariableModel)
    lines = []
    first = [name for name in model.measures if f"test/{name}" in metrics]
    if first:
        lines.append(", ".join(_measured(name, metrics) for name in first))
    if "test/nll" in metrics and not model.untrained_kl:
        nll = with_error(metrics["test/nll"], metrics.get("test/nll_stderr"))
        unit = "image" if model.is_of_images else "example"
        lines.append(f"nll {nll} nats/{unit} (an upper bound, by importance sampling)")
    if "test/elbo" in metrics:
        names = ("log_likelihood",) if model.untrained_kl else ("elbo", "log_likelihood", "kl")
        lines.append(", ".join(f"{name} {number(metrics[f'test/{name}'])}" for name in names))
    numbers = next((c.numbers for c in trainer.callbacks if isinstance(c, Evaluation)), {})  # type: ignore[attr-defined]
    elsewhere = {*RateDistortion.units, "mse"}  # kl, log_likelihood and psnr say the same
    shown = [name for name in numbers if not name.endswith("_stderr") and name not in elsewhere]
    shown = [name for name in shown if not name.startswith("rollout_") and name not in first]  # they have a table
    if shown:
        lines.append(", ".join(f"{name} {_short(numbers[name])}" for name in shown))
    return [*rows, *(("" if i else "test", line) for i, line in enumerate(lines))]


def _measured(name: str, metrics: Mapping[str, Tensor]) -> str:
    """Return a number that the model names as one of its first, with its error where there is one."""
    error = metrics.get(f"test/{name}_stderr")
    return f"{name} {value_and_error(metrics[f'test/{name}'].item(), None if error is None else error.item())}"


def _short(value: float | str) -> str:
    """Return three digits, or a question mark for an unknown number."""
    return value if isinstance(value, str) else "?" if math.isnan(value) else f"{value:.3g}"


def _validation(trainer: pl.Trainer) -> list[tuple[str, str]]:
    """Return the row of the best validation value, or of the kept checkpoint if no value was finite."""
    kept = own_checkpoints(trainer)
    if kept is None:
        return []
    if kept.best_model_score is not None and kept.best_model_score.isfinite():
        return [("validation", f"{kept.monitor} {number(kept.best_model_score)} at best")]
    if not kept.has_refused:
        return []
    last = f"last.ckpt has step {trainer.global_step}" if kept.last_model_path else "nor was last.ckpt written"
    return [("validation", f"{kept.monitor} was never finite: there is no best.ckpt; {last}")]


def _latents(trainer: pl.Trainer) -> list[tuple[str, str]]:
    """Return the rows on the latents: how many the model uses, and each problem with its remedy."""
    report = next((c for c in trainer.callbacks if isinstance(c, CollapseReport)), None)  # type: ignore[attr-defined]
    verdict = report.verdict if report else None
    lines = [line for line in (verdict.summary, *verdict.findings) if line] if verdict else []
    return [("latents" if line is lines[0] else "", line) for line in lines]


def _conditions(trainer: pl.Trainer, config: str) -> list[tuple[str, str]]:
    """Return the row of the settings that a number in nats depends on."""
    settings = yaml.safe_load(config)
    model, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(model, LatentVariableModel)
    conditions = [f"likelihood {model.likelihood_name}"] if model.likelihood_name else []
    conditions += [f"objective {type(model.objective).__name__} with K = {model.objective.num_samples}"]
    conditions += [f"{name} {value:.4g}" for name, value in model.objective.coefficients(model.objective_step).items()]
    logged = {name.rpartition("/")[2]: value.item() for name, value in trainer.callback_metrics.items()}
    conditions += [f"{name} {value:.4g}" for name, value in logged.items() if re.fullmatch(r"sigma(_\w+)?", name)]
    binarisation = f", binarisation {data.binarisation}" if isinstance(data, ImageDataModule) else ""
    conditions += [f"{type(data).__name__}{binarisation}"]
    if settings["nll"]["num_samples"] and not model.untrained_kl:
        conditions += [f"{settings['nll']['num_samples']} importance samples"]
        ess = trainer.callback_metrics.get("test/nll_ess")
        conditions += [] if ess is None else [f"{ess.item():.1f} of them effective"]
    return [("given", ", ".join(conditions)), *([("loss", model.bound_note)] if model.bound_note else [])]


def _wandb(trainer: pl.Trainer) -> list[tuple[str, str]]:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            if logger._offline:
                folder = shlex.quote(str(Path(logger.experiment.dir).parent))
                return [("W&B", f"recorded offline; to upload it: {program('wandb')} sync {folder}")]
            return [("W&B", str(logger.experiment.url))]
    return []
