"""From a batch of bytes to x: flip, binarisation or dequantisation, scaling to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from vae_lightning.noise import uniform16
from vae_lightning.types import UserError

Binarisation: TypeAlias = Literal["none", "threshold", "dynamic"]
"""How a batch is binarised. The fourth value, `static`, is for data sets whose files are binary."""

_BINARISE, _FLIP, _DEQUANTISE = 1, 2, 3  # streams of randomness; stream 0 is the order of an epoch


@dataclass(frozen=True)
class Transform:
    """x = f(pixels; seed, epoch, index): pixels uint8 [B, C, H, W] to float32 in [0, 1].

    Runs on the pixels' device and may overwrite `pixels`; pass a batch, not the data set. All noise is a function of
    (seed, epoch, index) alone. Called with `pixels`, the numbers `index` [B] of the images in their split, `seed`,
    `epoch`, and the number `total` of images in the split.

    Args:
        max_value: The value of white; pixels are 0 .. `max_value`.
        binarisation: `none` or `static` (x = pixel / max), `threshold` (x = 1 if pixel / max > 1/2, else 0) or
            `dynamic` (x ~ Bernoulli(pixel / max)).
        flip: Mirror each image left to right with probability 1/2.
        dequantise: x = (pixel + u) / (max + 1) with u ~ U[0, 1). With this noise a log-density of x is on average a
            lower bound of the log-probability of the pixels (Theis et al. 2016, https://arxiv.org/abs/1511.01844).

    Raises:
        UserError: if `dequantise` is combined with a binarisation.
    """

    max_value: int = 255
    binarisation: Binarisation | Literal["static"] = "none"
    flip: bool = False
    dequantise: bool = False

    def __post_init__(self) -> None:
        if self.dequantise and self.binarisation != "none":
            raise UserError(f"data: dequantise needs grey levels, but binarisation is {self.binarisation}; choose one")

    def __call__(self, pixels: Tensor, index: Tensor, seed: int, epoch: int, total: int) -> Tensor:
        if self.flip:
            pixels = _flip(pixels, _mirrored(total, seed, epoch, index.device).index_select(0, index))
        if self.binarisation == "threshold":
            return (pixels > self.max_value // 2).float()
        if self.binarisation == "dynamic":
            u = uniform16(index, pixels[0].numel(), seed, _BINARISE, epoch).view_as(pixels)
            return (u * self.max_value < pixels.to(torch.int32) * 65536).float()  # P(1) = pixel / max_value
        if self.dequantise:
            u = uniform16(index, pixels[0].numel(), seed, _DEQUANTISE, epoch).view_as(pixels)
            # u is the middle of one of 65,536 steps, so that 255 + u is below 256 in float32 too
            return (pixels + (u + 0.5) / 65536) / (self.max_value + 1)
        return pixels.float().mul_(1 / self.max_value)  # half the time of a division; equal up to rounding


def _flip(pixels: Tensor, mask: Tensor) -> Tensor:
    """Mirror the images whose `mask` is 255.

    On a GPU by exclusive or of bytes, because indexing by a mask would wait for the count. On a CPU in place by numpy,
    because torch's indexing of rows takes five times as long.
    """
    if not pixels.is_cpu:
        return pixels.flip(-1).bitwise_xor_(pixels).bitwise_and_(mask).bitwise_xor_(pixels)
    images, mirrored = pixels.numpy(), mask.flatten().numpy().nonzero()[0]
    images[mirrored] = torch.from_numpy(images[mirrored]).flip(-1).numpy()
    return pixels


@lru_cache(maxsize=1)
def _mirrored(total: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """The masks of all images of an epoch, 255 if mirrored, else 0: uint8 [total, 1, 1, 1].

    All images are drawn at once, because draws batch by batch would take half as long as the mirroring itself.
    """
    mirrored = uniform16(torch.arange(total, device=device), 1, seed, _FLIP, epoch) >= 32768
    return mirrored.to(torch.uint8).neg()[..., None, None]
