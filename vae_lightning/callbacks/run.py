"""The files of a run's folder, and lines of progress for a log file."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from lightning.pytorch.loggers import WandbLogger

from vae_lightning import __version__
from vae_lightning.callbacks.checkpoint import own_checkpoints
from vae_lightning.data import DataModule
from vae_lightning.metrics import CollapseReport, Evaluation, MarginalLikelihood
from vae_lightning.metrics.evaluator import objects_from_all_ranks
from vae_lightning.metrics.examples import ExampleValues
from vae_lightning.metrics.formatting import in_words_of, number
from vae_lightning.models import LatentVariableModel
from vae_lightning.runs.machine import num_cores
from vae_lightning.runs.ownership import lock_run
from vae_lightning.runs.record import CONFIG, RESULTS, VALUES
from vae_lightning.runs.whole_files import remove_stale_parts, whole_file, write_whole
from vae_lightning.types import Batch

_UNITS = {
    "default": "nats per image, natural logarithm",
    "null": "not known, or not finite",
    "stderr": "standard error over the test images, in the unit of its number",
    "elbo_per_step": "nats per step of a sequence",
    "nll_bpd": "bits per dimension",
    "nll_ess": "samples, of nll.num_samples",
    "dead_dimensions": "dimensions",
    "mmd": "none: a squared maximum mean discrepancy",
    "sigma": "that of one number of x, such as a pixel, which is in [0, 1]",
}


class RunFolder(pl.Callback):
    """Writes `config.yaml` when a fit begins, and `results.json` when a test ends, to the trainer's root folder.

    A test also writes `test_values.npz`: `nll` and the objective's terms of each test example, [N], and a fingerprint
    of the example, by which `compare` pairs the examples of two runs.

    W&B also gets the configuration. If the data set has names of its classes, `classes.json` lists them by their
    numbers. During a fit no other process may use the folder.

    Args:
        config: The resolved configuration as YAML text, without settings of this run alone: a new run can start from
            this text.
        command: The command line that began the run, for its results; empty if there is none.
    """

    def __init__(self, config: str, command: str = "") -> None:
        self.config, self.command = config, command
        self._lock: IO[str] | None = None
        self._since = self._seconds_before = 0.0
        self._images = 0
        self._values = ExampleValues()
        self._seconds: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._fit_seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds_before = state_dict["seconds"]

    def _fit_seconds(self) -> float:
        """Return the seconds of this fit and of the fits that it was resumed from."""
        return round(self._seconds_before + time.monotonic() - self._since, 1)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._seconds["fit"] = self._fit_seconds()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since, self._images, self._values = time.monotonic(), 0, ExampleValues()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._images += len(batch["x"])
        self._values.add(batch["x"], outputs)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit" or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = Path(trainer.default_root_dir)
        self._lock = lock_run(folder)
        remove_stale_parts(folder / "checkpoints")

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files here, after the checks of a resumed run against its checkpoint."""
        self._since = time.monotonic()
        if self._lock is None:
            return
        write_whole(Path(trainer.default_root_dir) / CONFIG, self.config.encode())
        data = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, DataModule) and data.class_names:
            write_whole(Path(trainer.default_root_dir) / "classes.json", json.dumps(data.class_names).encode())
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(yaml.safe_load(self.config), allow_val_change=True)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._let_go()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._let_go()

    def _let_go(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._images = sum(
            objects_from_all_ranks(self._images)
        )  # fewer than the data set's if limit_test_batches is set
        self._seconds["test"] = round(time.monotonic() - self._since, 1)
        nll = next((c.nll_of_examples for c in trainer.callbacks if isinstance(c, MarginalLikelihood)), [])  # type: ignore[attr-defined]
        values = self._values.from_all_ranks({"nll": nll})
        self._values = ExampleValues()
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            folder = Path(trainer.default_root_dir)
            text = json.dumps(_with_nulls(self._results(trainer)), indent=2, allow_nan=False)
            with whole_file(folder / VALUES) as file:
                np.savez_compressed(file, **{name: value.numpy() for name, value in values.items()})  # type: ignore[arg-type]
            write_whole(folder / RESULTS, text.encode() + b"\n")

    def _results(self, trainer: pl.Trainer) -> dict[str, Any]:
        config = yaml.safe_load(self.config)
        data = trainer.datamodule  # type: ignore[attr-defined]
        model = trainer.lightning_module
        assert isinstance(data, DataModule)
        assert isinstance(model, LatentVariableModel)
        evaluation = next((c for c in trainer.callbacks if isinstance(c, Evaluation)), Evaluation()).results()  # type: ignore[attr-defined]
        no_nll = {} if config["nll"]["num_samples"] else {"nll": "nll.num_samples is 0"}
        return {
            "metrics": {name: value.item() for name, value in trainer.callback_metrics.items() if "test/" in name},
            "units": _in_words({**_UNITS, **evaluation["units"]}, trainer),
            "likelihood": model.likelihood_name or None,
            "objective": {
                "name": type(model.objective).__name__,
                "num_samples": model.objective.num_samples,
                "weights": model.objective.coefficients(model.objective_step),
            },
            "loss_note": model.bound_note or None,
            "untrained_kl": model.untrained_kl,
            "measures": [name for name in model.measures if f"test/{name}" in trainer.callback_metrics],
            "nll": config["nll"],
            "collapse": [in_words_of(line, _is_of_images(trainer)) for line in _findings(trainer)],
            "evaluation": config["evaluation"],
            "details": evaluation["details"],
            "left_out": _in_words({**no_nll, **evaluation["left_out"]}, trainer),
            "init_from": config.get("init_from"),
            "checkpoint": str(trainer.ckpt_path) if trainer.ckpt_path else None,
            "data": {**config["data"], "split": "test", "num_images": self._images},
            "binarisation": getattr(data, "binarisation", None),
            "model": config["model"],
            "trainer": {"limit_test_batches": config["trainer"].get("limit_test_batches")},
            "seed": config["seed_everything"],
            "command": self.command or None,
            "precision": str(trainer.precision),
            "devices": trainer.world_size,
            "machine": machine(trainer.strategy.root_device),
            "seconds": self._seconds,
            "versions": {"vae_lightning": __version__, "torch": torch.__version__, "lightning": pl.__version__},
        }


def _findings(trainer: pl.Trainer) -> list[str]:
    reports = [c for c in trainer.callbacks if isinstance(c, CollapseReport)]  # type: ignore[attr-defined]
    return [line for report in reports for line in report.findings]


def _is_of_images(trainer: pl.Trainer) -> bool:
    model = trainer.lightning_module
    return isinstance(model, LatentVariableModel) and model.is_of_images


def _in_words(texts: dict[str, str], trainer: pl.Trainer) -> dict[str, str]:
    return {name: in_words_of(text, _is_of_images(trainer)) for name, text in texts.items()}


def _with_nulls(value: Any) -> Any:
    """Replace each number that is not finite by None: JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {name: _with_nulls(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_with_nulls(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine(device: torch.device) -> str:
    """Return the name of the GPU or of the processor, and the number of cores."""
    cores = num_cores()
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {cores} CPU cores"
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in info.splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores} cores"


class ProgressLines(pl.Callback):
    """Prints a line at a validation; used in place of the progress bar if there is no terminal.

    Args:
        min_seconds: The least time between two lines; within an epoch a line comes after six times as long.
    """

    def __init__(self, min_seconds: float = 5.0) -> None:
        self.min_seconds = min_seconds
        self._last = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last = time.monotonic()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if time.monotonic() - self._last > 6 * self.min_seconds:
            self._say(trainer, f"batch {batch_idx + 1}/{trainer.num_training_batches}", self._names(trainer)[:1])

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            last = trainer.current_epoch + 1 == trainer.max_epochs
            if last or time.monotonic() - self._last > self.min_seconds:
                self._say(trainer, "", self._names(trainer)[1:])

    @staticmethod
    def _names(trainer: pl.Trainer) -> list[str]:
        """Return what a line shows: of training, and then of validation. Not a bound that has no meaning."""
        if not getattr(trainer.lightning_module, "untrained_kl", ()):
            return ["train/elbo", "val/elbo", "val/log_likelihood", "val/kl"]
        kept = own_checkpoints(trainer)
        monitored = [str(kept.monitor)] if kept is not None else []
        return ["train/loss", *dict.fromkeys([*monitored, "val/loss", "val/log_likelihood"])]

    def _say(self, trainer: pl.Trainer, where: str, names: Sequence[str]) -> None:
        self._last = time.monotonic()
        metrics = trainer.callback_metrics
        values = [f"{name} {number(metrics[name])}" for name in names if name in metrics]
        if "train/images_per_second" in metrics:
            rate = f"{metrics['train/images_per_second'].item():,.0f} images/s"
            values.append(in_words_of(rate, _is_of_images(trainer)))
        epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
        if trainer.is_global_zero:
            print("  ".join([epoch, *([where] if where else []), *values]), flush=True)
