"""The evaluation at test: choose the metrics that apply, run them, and collect their results."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl

from vae_lightning.data import DataModule
from vae_lightning.metrics.disentanglement import Disentanglement
from vae_lightning.metrics.evaluator import Evaluator, Finding, log_numbers
from vae_lightning.metrics.found import FoundAccuracy
from vae_lightning.metrics.information import Information
from vae_lightning.metrics.latents import LatentUnits, RateDistortion, update_mean
from vae_lightning.metrics.likelihood import MeanAndError
from vae_lightning.metrics.reconstruction import Reconstruction
from vae_lightning.metrics.rollouts import RolloutScores
from vae_lightning.metrics.scenes import SceneScores
from vae_lightning.metrics.texts import TextScores
from vae_lightning.metrics.transitions import TransitionScores
from vae_lightning.models import LatentVariableModel
from vae_lightning.types import Batch, UserError

DEFAULT: tuple[type[Evaluator], ...] = (
    RateDistortion,
    LatentUnits,
    Information,
    Reconstruction,
    Disentanglement,
    FoundAccuracy,
    SceneScores,
    TransitionScores,
    RolloutScores,
    TextScores,
)


class Evaluation(pl.Callback):
    """Compute further metrics at test, beside the ELBO and the NLL, from the model's traces and samples.

    The callback also logs the standard errors over images of the terms that every objective logs at test:
    `test/elbo_stderr` and those of `log_likelihood`, `kl` and `kl/<latent>`. A metric that the user names and that does
    not apply to the model or the data ends the test with an error.

    Args:
        metrics: The metrics to compute. null: each of RateDistortion, LatentUnits, Information, Reconstruction,
            Disentanglement, FoundAccuracy, SceneScores, TransitionScores, RolloutScores and TextScores that applies to
            the model and the data.
        also: Metrics to compute in addition to `metrics`, such as FrechetDistance.
        num_samples: The number of latent samples for each image.
    """

    def __init__(
        self, metrics: list[Evaluator] | None = None, also: list[Evaluator] | None = None, num_samples: int = 4
    ) -> None:
        if num_samples < 1:
            raise UserError(f"evaluation: num_samples is {num_samples}; it must be at least 1")
        self.metrics, self.also, self.num_samples = metrics, also or [], num_samples
        self.found: dict[str, Finding] = {}
        self.left_out: dict[str, str] = {}
        self._running: list[Evaluator] = []
        self._terms: dict[str, MeanAndError] = {}

    @property
    def numbers(self) -> dict[str, float]:
        """The results of the last test that are numbers."""
        return {name: value for name, value in self.found.items() if isinstance(value, (int, float))}

    def results(self) -> dict[str, Any]:
        """The entries of results.json: lists and texts, the units, and the metrics left out with the reason."""
        units = {name: unit for metric in self._running for name, unit in metric.units.items()}
        details = {name: value for name, value in self.found.items() if name not in self.numbers}
        return {"details": details, "units": units, "left_out": self.left_out}

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            assert isinstance(pl_module, LatentVariableModel)
            self._begin(pl_module, getattr(trainer, "datamodule", None), batch)

    def _begin(self, model: LatentVariableModel, data: DataModule | None, batch: Batch) -> None:
        """Choose the metrics that apply, by a trace of two images, before any work is done."""
        self.found, self.left_out, self._running, self._terms = {}, {}, [], {}
        two = {name: value[:2] for name, value in batch.items()}
        trace = model.trace(two, self.num_samples)
        wanted = [metric() for metric in DEFAULT] if self.metrics is None else self.metrics
        for metric in [*wanted, *self.also]:
            name = type(metric).__name__
            reasons = (metric.why_not_applicable(trace, data), metric.why_not_of_model(model))
            reason = next(filter(None, reasons), None) or metric.why_not_of_batch(trace, two)
            if reason is None:
                metric.begin(model, data)
                self._running.append(metric)
            elif self.metrics is None and metric not in self.also:
                self.left_out[name] = reason
            else:
                raise UserError(f"evaluation: {name} does not apply: {reason}")

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for name, term in outputs.items():
            update_mean(self._terms, name, term)
        if self._running:
            assert isinstance(pl_module, LatentVariableModel)
            trace = pl_module.trace(batch, self.num_samples)
            for metric in self._running:
                metric.update(trace, batch)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for metric in self._running:
            self.found |= metric.compute()
        numbers = {f"test/{name}": float(value) for name, value in self.numbers.items()}
        numbers |= {f"test/{name}_stderr": term.compute()[1].item() for name, term in self._terms.items()}
        log_numbers(pl_module, numbers)
