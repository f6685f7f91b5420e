"""Pictures of a run: reconstructions beside their originals, and samples from the prior."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from vae_lightning.models import LatentVariableModel
from vae_lightning.pictures import reconstruction_grid, sample_grid, save_png
from vae_lightning.storage.loader import first_images
from vae_lightning.types import UserError


class Pictures(pl.Callback):
    """Writes `images/{reconstructions,samples}-<epoch>.png` and gives the pictures to W&B, TensorBoard and MLflow.

    The validation images and the prior noise are the same each time, so that pictures of two epochs can be compared.
    Originals are above their reconstructions, the mean of p(x|z) at one z ~ q(z|x); samples are means of p(x|z) at
    z ~ p(z).

    Args:
        every_n_epochs: The epochs between two pictures; 0 for pictures at the end of the fit only.
        num_images: The number of originals, and of samples.
        seed: The seed of the noise.
    """

    def __init__(self, every_n_epochs: int = 10, num_images: int = 50, seed: int = 0) -> None:
        if every_n_epochs < 0 or num_images < 1:
            raise UserError(
                f"pictures: every_n_epochs {every_n_epochs} and num_images {num_images} must not be negative"
            )
        self.every_n_epochs, self.num_images, self.seed = every_n_epochs, num_images, seed
        self._drawn_at = -1

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0
        if due and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._draw(trainer, pl_module, trainer.current_epoch + 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._drawn_at != trainer.global_step and not trainer.interrupted:
            self._draw(trainer, pl_module, trainer.current_epoch)

    def _draw(self, trainer: pl.Trainer, model: pl.LightningModule, epoch: int) -> None:
        assert isinstance(model, LatentVariableModel)
        self._drawn_at = trainer.global_step
        loaders = trainer.val_dataloaders
        if not trainer.is_global_zero or loaders is None or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        batch = first_images(loaders, self.num_images)
        grids = {
            "reconstructions": reconstruction_grid(model, batch, self.seed),
            "samples": sample_grid(model, self.num_images, self.seed),
        }
        for name, grid in grids.items():
            save_png(grid, Path(trainer.default_root_dir) / "images" / f"{name}-{epoch:04d}.png")
            for logger in trainer.loggers:
                _send(grid, name, logger, trainer.global_step)


def _send(grid: Tensor, name: str, logger: Logger, step: int) -> None:
    """Give a picture to the logger, if it is one that stores pictures."""
    pixels = grid.permute(1, 2, 0).numpy()  # [H, W, 3]
    if isinstance(logger, WandbLogger):
        logger.log_image(name, [pixels])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, grid, step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, pixels, f"{name}/{step:08d}.png")
