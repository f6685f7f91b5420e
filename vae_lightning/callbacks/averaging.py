"""Averages of the weights over the steps of a fit."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vae_lightning.types import UserError


class EMA(WeightAveraging):
    """w' <- decay w' + (1 - decay) w after every n-th step: validation, pictures, checkpoints and tests use w'.

    n = `update_every_n_steps`, and `decay` is that of one update; with `--speed.steps_per_call` n is a multiple of it.
    Lightning's callback, with three changes. A checkpoint written while w' stands in the model (a validation that is
    left, the end of the fit) also keeps w, with which a fit goes on. A test after a fit gets w', as a test without one
    does. Buffers are copied from w's model, not averaged: they may be counters.
    On the command line: `--trainer.callbacks+=EMA`.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1 or update_every_n_steps < 1:
            raise UserError(
                f"EMA: decay {decay} must be in [0, 1), update_every_n_steps {update_every_n_steps} positive"
            )
        super().__init__(use_buffers=False, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.update_every_n_steps = update_every_n_steps
        self._swapped = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        multi_step = getattr(pl_module, "multi_step", None)
        if multi_step is not None and self.update_every_n_steps % multi_step.steps_per_call:
            raise UserError(
                f"EMA: update_every_n_steps is {self.update_every_n_steps}; with --speed.steps_per_call="
                f"{multi_step.steps_per_call} it sees the weights after so many steps: choose a multiple"
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._swapped = False
            assert self._average_model is not None
            self._average_model.n_averaged = self._average_model.n_averaged.cpu()  # it is looked at in each step

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """A multiple of n was reached or passed: the last call of an epoch may be of fewer steps."""
        n = self.update_every_n_steps
        return step_idx is not None and (step_idx + 1) // n > self._latest_update_step // n

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a fit the model holds the weights of the checkpoint that is validated."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Lightning's gives w to a test as well, if the same trainer has fitted before."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _swap_models(self, pl_module: pl.LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning's forgets w here, with which a run that is made longer goes on."""
        self._swap_models(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            names = ("current_model_state", "state_dict")
            checkpoint.update(zip(names, [checkpoint[name] for name in reversed(names)], strict=True))
