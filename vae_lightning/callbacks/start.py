"""What is worth a line before the first step: settings that are allowed, and seldom meant."""

from __future__ import annotations

import math
from collections.abc import Iterator

import lightning.pytorch as pl

from vae_lightning.data import ImageDataModule
from vae_lightning.models import LatentVariableModel

_WEIGHTS_PER_IMAGE = 1000
"""The shipped configs have up to 510: drawn faces under CelebA's network."""


class StartNotes(pl.Callback):
    """Prints a line, before the first step, on few images for the weights, a batch larger than the set, and a
    validation that the run ends before."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        lines = list(_about_size(trainer, pl_module, data)) if isinstance(data, ImageDataModule) else []
        for line in [*lines, *_about_validation(trainer, pl_module)]:
            print(line, flush=True)


def _about_size(trainer: pl.Trainer, model: pl.LightningModule, data: ImageDataModule) -> Iterator[str]:
    num_images = len(data.images("train").pixels)
    weights = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if weights > _WEIGHTS_PER_IMAGE * num_images:
        yield (
            f"{num_images:,} training images for {weights / 1e6:.1f} M weights: the model may learn them by heart; "
            "compare val/elbo with train/elbo, and take more images or smaller networks where they part"
        )
    own = num_images // trainer.world_size
    if data.batch_size > own:
        ranks = f" for each of {trainer.world_size} ranks" if trainer.world_size > 1 else ""
        yield (
            f"data.batch_size is {data.batch_size} and there are {own} training images{ranks}: an epoch is one step of "
            "them all; a smaller --data.batch_size makes more steps"
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


def _steps_per_epoch(trainer: pl.Trainer, model: pl.LightningModule) -> int:
    multi_step = model.multi_step if isinstance(model, LatentVariableModel) else None
    batches = trainer.num_training_batches * (multi_step.steps_per_call if multi_step else 1)
    return math.ceil(batches / (multi_step.accumulate if multi_step else trainer.accumulate_grad_batches))
