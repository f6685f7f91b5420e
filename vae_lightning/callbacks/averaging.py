"""Averages of the weights over the steps of a fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vae_lightning.types import UserError


class EMA(WeightAveraging):
    """w' <- decay w' + (1 - decay) w after every n-th step: validation, pictures, checkpoints and tests use w'.

    Use this for smoother samples and a steadier validation ELBO; on the command line: `--trainer.callbacks+=EMA`.
    The callback is Lightning's, with three changes. Checkpoints written while the averaged weights are swapped in (an
    interrupted validation, the end of the fit) also keep w, from which a fit is resumed. A test after a fit uses w', as
    a test in a new process does. Buffers of real numbers are averaged too, so that the running means of a BatchNorm fit
    the averaged weights; others, which may be counters, are copied, and so are masks of infinite numbers.

    Args:
        decay: The weight of the old average in one update, in [0, 1).
        update_every_n_steps: n; a multiple of --speed.steps_per_call.
    """

    def __init__(self, decay: float = 0.999, update_every_n_steps: int = 1) -> None:
        if not 0 <= decay < 1 or update_every_n_steps < 1:
            raise UserError(
                f"EMA: decay {decay} must be in [0, 1), update_every_n_steps {update_every_n_steps} positive"
            )
        super().__init__(use_buffers=True, multi_avg_fn=_of_numbers(get_ema_multi_avg_fn(decay)))
        self.update_every_n_steps = update_every_n_steps
        self._swapped = False
        self._masks: list[tuple[Tensor, Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        multi_step = getattr(pl_module, "multi_step", None)
        if multi_step is not None and self.update_every_n_steps % multi_step.steps_per_call:
            raise UserError(
                f"EMA: update_every_n_steps is {self.update_every_n_steps}; with --speed.steps_per_call="
                f"{multi_step.steps_per_call} the average sees the weights after each call only: choose a multiple"
            )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._swapped = False
            assert self._average_model is not None
            self._average_model.n_averaged = (
                self._average_model.n_averaged.cpu()
            )  # read at each step, without a wait for the GPU

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the buffers with infinite numbers, such as a mask of -inf; the average of -inf and -inf would be NaN."""
        assert self._average_model is not None
        pairs = zip(self._average_model.module.buffers(), pl_module.buffers(), strict=True)
        self._masks = [(average, value) for average, value in pairs if not value.isfinite().all()]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        for average, value in self._masks:
            average.copy_(value)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Return whether a multiple of n was reached or passed; the last call of an epoch may have fewer steps."""
        n = self.update_every_n_steps
        return step_idx is not None and (step_idx + 1) // n > self._latest_update_step // n

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap only within a fit: in `validate` the model already has the checkpoint's averaged weights."""
        if trainer.state.fn == "fit":
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            super().on_validation_epoch_end(trainer, pl_module)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore w only for a fit; Lightning also gives w to a test by a trainer that has fitted before."""
        if trainer.state.fn == "fit":
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def _swap_models(self, pl_module: pl.LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Swap instead of copying as Lightning does: w is kept, from which a longer run is resumed."""
        self._swap_models(pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        if self._swapped:
            names = ("current_model_state", "state_dict")
            checkpoint.update(zip(names, [checkpoint[name] for name in reversed(names)], strict=True))


_Update: TypeAlias = Callable[[list[Tensor], list[Tensor], Any], None]


def _of_numbers(update: _Update) -> _Update:
    """The update of the averages of one dtype, if these are real or complex; otherwise the values are copied."""

    def update_or_copy(averages: list[Tensor], values: list[Tensor], num_averaged: Any) -> None:
        if averages[0].is_floating_point() or averages[0].is_complex():
            update(averages, values, num_averaged)
        else:
            torch._foreach_copy_(averages, values)

    return update_or_copy
