"""The optimizer and the scheduler of a model: construction, steps, gradient clipping and resume."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from vae_lightning.models.multi_step import MultiStepTraining
from vae_lightning.models.restoring import check_training_state
from vae_lightning.recipes import without_instantiator
from vae_lightning.types import UserError

OptimizerRecipe: TypeAlias = Callable[[Iterable], Optimizer]
SchedulerRecipe: TypeAlias = Callable[[Optimizer], LRScheduler | ReduceLROnPlateau]


class Optimized(pl.LightningModule):
    """A module with one optimizer and at most one scheduler, made from recipes.

    A ReduceLROnPlateau scheduler with the interval "epoch" steps when the next epoch begins.

    Args:
        optimizer: The optimizer, called with the module's parameters that require a gradient.
        scheduler: The schedule of the learning rate, called with the optimizer; None for a constant rate.
        scheduler_interval: "epoch" or "step".
    """

    def __init__(self, optimizer: OptimizerRecipe, scheduler: SchedulerRecipe | None, scheduler_interval: str) -> None:
        super().__init__()
        self.optimizer, self.scheduler = without_instantiator(optimizer), without_instantiator(scheduler)
        self.scheduler_interval = scheduler_interval
        self._loaded_values: dict[str, float] = {}
        self._epochs_scheduled = 0
        self.multi_step: MultiStepTraining | None = None  # set by `speed.steps_per_call` > 1

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self._trainer is not None:  # a model without a trainer can be saved, too
            checkpoint["plateau"] = {"values": self._monitored(), "epochs": self._epochs_scheduled}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        plateau = checkpoint.get("plateau", {})
        self._loaded_values, self._epochs_scheduled = plateau.get("values", {}), plateau.get("epochs", 0)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        try:
            optimizer = fused(self.optimizer(trained))
            scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        except (TypeError, ValueError) as error:  # torch raises these for a setting out of range
            raise UserError(f"optimizer or scheduler: {error}") from error
        if scheduler is None:
            return optimizer
        monitor = getattr(scheduler, "monitor", None)
        config = {"scheduler": scheduler, "interval": self.scheduler_interval, "monitor": monitor}
        if monitor and monitor.startswith("val/") and self.scheduler_interval == "epoch":
            config["frequency"] = self.trainer.check_val_every_n_epoch or 1  # the epochs between two new values
        return {"optimizer": optimizer, "lr_scheduler": config}  # type: ignore[return-value]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step as Lightning does, except for a plateau by epoch: see `_schedule_on_plateau`."""
        if metric is None or self.scheduler_interval == "step":
            super().lr_scheduler_step(scheduler, metric)

    def _schedule_on_plateau(self) -> None:
        """Take ReduceLROnPlateau's step of the past epoch when the next epoch begins.

        Lightning takes this step after the epoch's last checkpoint is written, and skips the step at the end of the
        epoch in which a run was resumed. In both cases a resumed run would lose the step.
        """
        values, epochs = self._monitored(), self.trainer.current_epoch
        is_new, self._epochs_scheduled = epochs > self._epochs_scheduled, epochs
        for config in self.trainer.lr_scheduler_configs:
            by_epoch = config.interval == "epoch" or self.multi_step is not None
            due = is_new and epochs % config.frequency == 0
            if config.reduce_on_plateau and by_epoch and due and config.monitor in values:
                config.scheduler.step(values[config.monitor])  # type: ignore[arg-type]

    def _monitored(self) -> dict[str, float]:
        """Return the last value of each metric that a scheduler monitors, from the checkpoint if not logged since."""
        monitors = {config.monitor for config in self.trainer.lr_scheduler_configs if config.monitor}
        metrics: dict[str, Any] = {**self._loaded_values, **(self.trainer.callback_metrics if monitors else {})}
        return {name: float(metrics[name]) for name in sorted(monitors & metrics.keys())}

    def on_fit_start(self) -> None:
        """Let the scaler of 16-mixed unscale the gradient before clipping and logging, with any optimizer.

        A fused optimizer would unscale the gradient in its own step, after clipping; Lightning refuses to clip then.
        """
        # Lightning warns before `LogInterval` lowers the interval
        warnings.filterwarnings("ignore", message="The number of training batches .* smaller than the logging")
        saved = self.trainer._checkpoint_connector._loaded_checkpoint
        if saved:
            check_training_state(saved, self.trainer)
        if self.trainer.precision == "16-mixed":
            for optimizer in self.trainer.optimizers:
                optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.multi_step is not None:  # without multi-step training Lightning clips
            clip = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
            self.configure_gradient_clipping(optimizer, *clip)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as Lightning does, and with a fused optimizer under bf16-mixed, too, which Lightning refuses."""
        if not gradient_clip_val:
            return  # 0 means no clipping: a norm of 0 would remove the whole gradient
        if self.trainer.precision == "16-mixed":
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(self.parameters(), gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


def fused(optimizer: Optimizer) -> Optimizer:
    """Set `fused=True` where the user left `fused` and `foreach` None and the parameters allow it.

    PyTorch's default launches one kernel per operation on a GPU, and per operation and parameter on a CPU.
    """
    for group in optimizer.param_groups if isinstance(optimizer, (torch.optim.Adam, torch.optim.SGD)) else ():
        is_unset = group["fused"] is None and group["foreach"] is None and not group["differentiable"]
        if is_unset and all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in group["params"]):
            group["fused"] = True
    return optimizer
