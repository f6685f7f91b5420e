"""The last lines of a run: where it is, what it found, what to type next."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import lightning.pytorch as pl
import yaml
from lightning.pytorch.loggers import WandbLogger

from vae_lightning.metrics import CollapseReport, Evaluation, RateDistortion
from vae_lightning.models import LatentVariableModel


def summary(trainer: pl.Trainer, folder: Path, config: str) -> str:
    """Folder, headline numbers in nats per image with what they are numbers of, the W&B line, the next command."""
    rows = [
        ("run", str(folder)),
        *_numbers(trainer),
        *_latents(trainer),
        *_conditions(trainer, config),
        *_wandb(trainer),
    ]
    kept = (folder / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    best = next((path for path in kept if path.is_file()), None)
    if best is not None:
        rows.append(("pictures", str(folder / "images")))
        rows.append(("next", f"{program('vae-lightning')} sample {shlex.quote(str(best))}"))
    return "\n".join(["", *(f"{name:<12}{value}" for name, value in rows)])


def program(name: str) -> str:
    """How a shell finds a program of this environment: by its name, or by its path where .venv is not activated."""
    path = Path(sys.executable).parent / name
    if shutil.which(name) or not path.is_file():
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _numbers(trainer: pl.Trainer) -> list[tuple[str, str]]:
    rows = []
    best = getattr(trainer.checkpoint_callback, "best_model_score", None)
    metrics = trainer.callback_metrics
    if best is not None:
        rows.append(("validation", f"{trainer.checkpoint_callback.monitor} {best.item():.2f} at best"))  # type: ignore[union-attr]
    if "test/nll" in metrics:
        nll, error = metrics["test/nll"].item(), metrics["test/nll_stderr"].item()
        rows.append(("test", f"nll {nll:.2f} +- {error:.2f} nats/image (an upper bound, by importance sampling)"))
    if "test/elbo" in metrics:
        names = ("elbo", "log_likelihood", "kl")
        rows.append(("", ", ".join(f"{name} {metrics[f'test/{name}'].item():.2f}" for name in names)))
    numbers = next((c.numbers for c in trainer.callbacks if isinstance(c, Evaluation)), {})  # type: ignore[attr-defined]
    shown = [name for name in numbers if not name.endswith("_stderr") and name not in RateDistortion.units]
    if shown:  # rate and distortion stand above, as kl and log_likelihood
        rows.append(("", ", ".join(f"{name} {numbers[name]:.3g}" for name in shown)))
    return rows


def _latents(trainer: pl.Trainer) -> list[tuple[str, str]]:
    """Whether the latents are used: what is wrong with them, each with its remedy, or that nothing is."""
    cost = trainer.callback_metrics.get("test/swap_cost")
    if cost is None:
        return []
    found = [line for c in trainer.callbacks if isinstance(c, CollapseReport) for line in c.findings]  # type: ignore[attr-defined]
    said = found or [f"all in use; another image's z costs {cost.item():.1f} nats of log p(x|z)"]
    return [("latents" if line is said[0] else "", line) for line in said]


def _conditions(trainer: pl.Trainer, config: str) -> list[tuple[str, str]]:
    """What a number in nats means nothing without."""
    settings = yaml.safe_load(config)
    model, data = trainer.lightning_module, trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(model, LatentVariableModel)
    likelihood = settings["model"].get("init_args", {}).get("likelihood", {}).get("class_path", "")
    said = [f"likelihood {likelihood.rpartition('.')[2]}"]
    said += [f"trained by {type(model.objective).__name__} with K = {model.objective.num_samples}"]
    said += [f"{name} {value:.4g}" for name, value in model.objective.coefficients(model.objective_step).items()]
    sigma = next((v for k, v in trainer.callback_metrics.items() if k.endswith("/sigma")), None)
    said += [] if sigma is None else [f"sigma {sigma.item():.4g}"]
    said += [f"{type(data).__name__}, binarisation {data.binarisation}"]
    said += [f"{settings['nll']['num_samples']} importance samples"]
    ess = trainer.callback_metrics.get("test/nll_ess")
    said += [] if ess is None else [f"{ess.item():.1f} of them effective"]
    return [("given", ", ".join(said))]


def _wandb(trainer: pl.Trainer) -> list[tuple[str, str]]:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            if logger._offline:
                folder = shlex.quote(str(Path(logger.experiment.dir).parent))
                return [("W&B", f"recorded offline; to upload it: {program('wandb')} sync {folder}")]
            return [("W&B", str(logger.experiment.url))]
    return []
