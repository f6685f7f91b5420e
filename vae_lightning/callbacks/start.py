"""Notes before the first step on settings that are allowed but seldom intended."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl

from vae_lightning.callbacks.checkpoint import own_checkpoints
from vae_lightning.data import DataModule
from vae_lightning.models import LatentVariableModel

_WEIGHTS_PER_IMAGE = 1000
"""A note is printed above this ratio; the shipped configs have up to 510 (drawn faces with CelebA's network)."""


class StartNotes(pl.Callback):
    """Prints a line before the first step if there are few images for the number of weights, if a batch is larger than
    the data set, or if the run ends before its first validation or trains on after its last. Prints one after the first
    step if best.ckpt is to be the best by a bound that the loss leaves out."""

    def __init__(self) -> None:
        self._was_monitor_checked = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        lines = list(_about_size(trainer, pl_module, data)) if isinstance(data, DataModule) else []
        for line in [*lines, *_about_validation(trainer, pl_module)]:
            print(line, flush=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._was_monitor_checked:
            return
        self._was_monitor_checked = True  # the first trace has told which latents there are
        untrained, kept = getattr(pl_module, "untrained_kl", ()), own_checkpoints(trainer)
        if trainer.is_global_zero and untrained and kept is not None and kept.monitor == "val/elbo":
            print(
                f"best.ckpt would be the best by val/elbo, but the loss leaves out the KL of {', '.join(untrained)}: "
                "choose what the run is for, such as --checkpoint.monitor=val/loss --checkpoint.mode=min",
                flush=True,
            )


def _about_size(trainer: pl.Trainer, model: pl.LightningModule, data: DataModule) -> Iterator[str]:
    num_examples = len(data.examples("train"))
    unit = "image" if isinstance(model, LatentVariableModel) and model.is_of_images else "example"
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if weights > _WEIGHTS_PER_IMAGE * num_examples:
        yield (
            f"{num_examples:,} training {unit}s for {weights / 1e6:.1f} M weights: the model may learn them by "
            f"heart; compare val/elbo with train/elbo, and use more {unit}s or smaller networks if the two differ"
        )
    examples_per_rank = num_examples // trainer.world_size
    if data.batch_size > examples_per_rank:
        ranks = f" for each of {trainer.world_size} ranks" if trainer.world_size > 1 else ""
        yield (
            f"data.batch_size is {data.batch_size} and there are {examples_per_rank} training {unit}s{ranks}: an "
            "epoch is one step on all of them; a smaller --data.batch_size makes more steps"
        )


def _about_validation(trainer: pl.Trainer, model: pl.LightningModule) -> Iterator[str]:
    every = trainer.check_val_every_n_epoch
    if every is None or not trainer.enable_validation or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    limits = [] if trainer.max_epochs in (None, -1) else [("max_epochs", trainer.max_epochs, every)]
    at_epochs_end = trainer.val_check_interval == 1.0 and math.isfinite(trainer.num_training_batches)
    if trainer.max_steps > -1 and at_epochs_end:
        limits.append(("max_steps", trainer.max_steps, every * _steps_per_epoch(trainer, model)))
    for name, limit, needed in limits:
        if limit is not None and limit < needed:
            yield (
                f"no validation in this run, and so no best.ckpt: trainer.{name} is {limit}, and the first one comes "
                f"after {needed} (trainer.check_val_every_n_epoch is {every}, in epochs)"
            )
            return
    rest = (trainer.max_epochs or 0) % every
    if limits and rest and trainer.max_steps == -1:
        yield (
            f"no validation after the last {rest} of {trainer.max_epochs} epochs: best.ckpt, which is tested, cannot "
            f"hold them; choose trainer.max_epochs as a multiple of trainer.check_val_every_n_epoch, which is {every}"
        )


def _steps_per_epoch(trainer: pl.Trainer, model: pl.LightningModule) -> int:
    multi_step = model.multi_step if isinstance(model, LatentVariableModel) else None
    batches = trainer.num_training_batches * (multi_step.steps_per_call if multi_step else 1)
    return math.ceil(batches / (multi_step.accumulate if multi_step else trainer.accumulate_grad_batches))
