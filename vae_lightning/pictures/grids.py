"""Grids of images without captions: originals above their reconstructions, and samples of the prior."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.models import LatentVariableModel
from vae_lightning.noise import reseed
from vae_lightning.pictures.sizes import BORDER, MAX_SIDE, cell_size, num_columns, resize
from vae_lightning.types import Batch, UserError

_GAP = 6  # pixels below a row of reconstructions


def reconstruction_grid(model: LatentVariableModel, batch: Batch, seed: int) -> Tensor:
    """Rows of originals, each above a row of their reconstructions: uint8 [3, H, W].

    Args:
        model: The model; its mode and the random state are restored afterwards.
        batch: The originals, `x` [N, C, H, W] in [0, 1].
        seed: The seed of the noise of z.

    Raises:
        UserError: if p(x|z) has neither a mean nor a mode.
    """
    with evaluating(model, seed):
        reconstruction = model.trace(batch).reconstruction()
    if reconstruction is None:
        raise UserError("p(x|z) has neither a mean nor a mode, so there is no reconstruction to draw")
    return stack(batch["x"], reconstruction)


def sample_grid(model: LatentVariableModel, n: int, seed: int) -> Tensor:
    """A grid of samples of the prior: uint8 [3, H, W].

    Args:
        model: The model; its mode and the random state are restored afterwards.
        n: The number of samples.
        seed: The seed of the samples.
    """
    with evaluating(model, seed):
        return to_grid(model.sample(n))


def stack(*rows: Tensor) -> Tensor:
    """Put the n-th images of all rows below each other, usually ten of them side by side: uint8 [3, H, W].

    Args:
        rows: Images [N, C, H, W] in [0, 1], as many in each row and all of one size.
    """
    count, (height, width) = len(rows[0]), rows[0].shape[-2:]
    columns = num_columns(height, width, count, len(rows))
    blocks = -(-count // columns)
    room = ((MAX_SIDE - _GAP * blocks) / (blocks * len(rows)) - 2 * BORDER, MAX_SIDE / columns - 2 * BORDER)
    size = cell_size(height, width, *room)
    parts = zip(*(row.split(columns) for row in rows), strict=True)
    strips = [torch.cat([lay(resize(row, *size), columns) for row in part], dim=1) for part in parts]
    widest = strips[0].shape[-1]  # the last strip may be shorter
    return torch.cat([F.pad(strip, (0, widest - strip.shape[-1], 0, _GAP), value=255) for strip in strips], dim=1)


def to_grid(images: Tensor) -> Tensor:
    """Lay images in one picture, usually ten in a row: uint8 [3, H', W'].

    Small images are enlarged and large ones reduced, so that no side of the picture is over about 2,000 pixels.

    Args:
        images: [N, C, H, W] in [0, 1]. Of two channels the first is shown, of more than three the first three.
    """
    count, (height, width) = len(images), images.shape[-2:]
    columns = num_columns(height, width, count)
    room = (MAX_SIDE / -(-count // columns) - 2 * BORDER, MAX_SIDE / columns - 2 * BORDER)
    return lay(resize(images, *cell_size(height, width, *room)), columns)


def lay(images: Tensor, columns: int) -> Tensor:
    """Lay images side by side with a grey border around each: uint8 [3, H', W'].

    Args:
        images: [N, 1 or 3, H, W] in [0, 1].
        columns: The largest number of images in a row.
    """
    from torchvision.utils import make_grid

    bordered = make_grid(images, columns, padding=BORDER, pad_value=0.5)
    if len(images) == 1:  # make_grid returns a single image without its border
        bordered = F.pad(bordered, (BORDER,) * 4, value=0.5)
    return (bordered * 255).round().to(torch.uint8)


@contextmanager
def evaluating(model: LatentVariableModel, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients, noise from `seed`; restore each mode and the random state at the end.

    Args:
        model: The model.
        seed: The seed of the noise.
    """
    training = [module for module in model.modules() if module.training]
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        reseed(model.device, seed)
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
