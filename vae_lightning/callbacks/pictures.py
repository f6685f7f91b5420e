"""Pictures of a run: reconstructions beside their originals, and samples from the prior."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.data.files import write_whole
from vae_lightning.data.loader import first_images
from vae_lightning.models import LatentVariableModel
from vae_lightning.noise import reseed
from vae_lightning.types import Batch, UserError

_COLUMNS = 10
_MIN_HEIGHT = 56  # pixels of one image on the screen
_GAP = 6  # below a row of reconstructions


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


def reconstruction_grid(model: LatentVariableModel, batch: Batch, seed: int) -> Tensor:
    """Rows of originals, each above a row of their reconstructions: uint8 [3, H, W]."""
    with _quiet(model, seed):
        mean = model.trace(batch).p_x.mean[0]
    return stack(batch["x"], mean)


def stack(*rows: Tensor) -> Tensor:
    """The n-th image of each of `rows`, one below the other, ten beside each other: uint8 [3, H, W]."""
    parts = zip(*(row.split(_COLUMNS) for row in rows), strict=True)
    strips = [torch.cat([to_grid(row) for row in part], dim=1) for part in parts]
    width = strips[0].shape[-1]  # the last strip may be shorter
    return torch.cat([F.pad(strip, (0, width - strip.shape[-1], 0, _GAP), value=255) for strip in strips], dim=1)


def sample_grid(model: LatentVariableModel, n: int, seed: int) -> Tensor:
    """n prior samples: uint8 [3, H, W]."""
    with _quiet(model, seed):
        return to_grid(model.sample(n))


def to_grid(images: Tensor) -> Tensor:
    """[N, C, H, W] in [0, 1] -> one picture, uint8 [3, H', W']; small images are enlarged so that one can see them."""
    from torchvision.utils import make_grid

    images = images.detach().float().cpu().clamp(0, 1)
    if images.shape[1] not in (1, 3):
        images = images[:, :3] if images.shape[1] > 3 else images[:, :1]
    scale = max(1, -(-_MIN_HEIGHT // images.shape[-2]))
    grid = make_grid(F.interpolate(images, scale_factor=scale, mode="nearest"), _COLUMNS, padding=2, pad_value=0.5)
    return (grid * 255).round().to(torch.uint8)


def save_png(grid: Tensor, path: Path) -> None:
    """Write uint8 [3, H, W] as a PNG: whole, or not at all."""
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(png, format="PNG")
    write_whole(path, png.getvalue())


@contextmanager
def _quiet(model: LatentVariableModel, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradient, and noise of its own: training goes on as if nothing had been drawn."""
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        reseed(model.device, seed)
        model.eval()
        try:
            yield
        finally:
            model.train(training)
