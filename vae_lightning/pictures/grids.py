"""Grids of images: originals above their reconstructions, prior samples, and their PNG files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.models import LatentVariableModel
from vae_lightning.noise import reseed
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.types import Batch

_COLUMNS = 10
_MIN_HEIGHT = 56  # pixels of one image on the screen
_GAP = 6  # below a row of reconstructions


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
