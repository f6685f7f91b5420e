"""Grids of images: originals above their reconstructions, and prior samples, as PNG files."""

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
_MIN_HEIGHT = 56  # pixels of one image; smaller images are enlarged
_GAP = 6  # pixels below a row of reconstructions


def reconstruction_grid(model: LatentVariableModel, batch: Batch, seed: int) -> Tensor:
    """Rows of originals, each above a row of their reconstructions E[x|z]: uint8 [3, H, W].

    Args:
        model: The model; its mode and the random state are restored afterwards.
        batch: The originals, `x` [N, C, H, W] in [0, 1].
        seed: The seed of the noise of z.
    """
    with _evaluating(model, seed):
        mean = model.trace(batch).p_x.mean[0]
    return stack(batch["x"], mean)


def stack(*rows: Tensor) -> Tensor:
    """Put the n-th images of all rows below each other, ten of them side by side: uint8 [3, H, W].

    Args:
        rows: Images [N, C, H, W] in [0, 1], as many in each row.
    """
    parts = zip(*(row.split(_COLUMNS) for row in rows), strict=True)
    strips = [torch.cat([to_grid(row) for row in part], dim=1) for part in parts]
    width = strips[0].shape[-1]  # the last strip may be shorter
    return torch.cat([F.pad(strip, (0, width - strip.shape[-1], 0, _GAP), value=255) for strip in strips], dim=1)


def sample_grid(model: LatentVariableModel, n: int, seed: int) -> Tensor:
    """A grid of samples of the prior: uint8 [3, H, W].

    Args:
        model: The model; its mode and the random state are restored afterwards.
        n: The number of samples.
        seed: The seed of the samples.
    """
    with _evaluating(model, seed):
        return to_grid(model.sample(n))


def to_grid(images: Tensor) -> Tensor:
    """Lay images in one picture, ten in a row, small ones enlarged: uint8 [3, H', W'].

    Args:
        images: [N, C, H, W] in [0, 1]. Of two channels the first is shown, of more than three the first three.
    """
    from torchvision.utils import make_grid

    images = images.detach().float().cpu().clamp(0, 1)
    if images.shape[1] not in (1, 3):
        images = images[:, :3] if images.shape[1] > 3 else images[:, :1]
    scale = max(1, -(-_MIN_HEIGHT // images.shape[-2]))
    grid = make_grid(F.interpolate(images, scale_factor=scale, mode="nearest"), _COLUMNS, padding=2, pad_value=0.5)
    return (grid * 255).round().to(torch.uint8)


def save_png(grid: Tensor, path: Path) -> None:
    """Write a picture as a PNG file, whole or not at all.

    Args:
        grid: uint8 [3, H, W].
        path: The file.
    """
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(grid.permute(1, 2, 0).numpy()).save(png, format="PNG")
    write_whole(path, png.getvalue())


@contextmanager
def _evaluating(model: LatentVariableModel, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients, noise from `seed`; restore the mode and the random state at the end."""
    training = model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        reseed(model.device, seed)
        model.eval()
        try:
            yield
        finally:
            model.train(training)
