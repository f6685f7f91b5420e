"""What happens to a batch of bytes on its way to x: flip, binarisation or dequantisation, scaling to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from vae_lightning.noise import uniform16
from vae_lightning.types import UserError

Binarisation: TypeAlias = Literal["none", "threshold", "dynamic"]
"""What can be done to a batch. A data set that was binarised once and for all calls itself `static`."""

_BINARISE, _FLIP, _DEQUANTISE = 1, 2, 3  # streams of randomness that never meet (0 is the order of an epoch)


@dataclass(frozen=True)
class Transform:
    """Pixels uint8 [B, C, H, W] in 0 .. `max_value` to x float32 in [0, 1].

    Runs on the pixels' device and may overwrite `pixels`; pass a batch, not the data set.

    `binarisation`: `none` (x = pixel / max), `threshold` (x = 1 where that is above a half), `dynamic`
    (x ~ Bernoulli(pixel / max)). `dequantise`: x = (pixel + u) / (max + 1) with u ~ U[0, 1), the noise under which a
    density of x bounds the probability of the pixels from below (Theis et al. 2016, https://arxiv.org/abs/1511.01844).
    `flip`: mirror every second image, left to right. Each is a function of (seed, epoch, index) alone; `total` is how
    many images there are, so that index < total.
    """

    max_value: int = 255
    binarisation: Binarisation | Literal["static"] = "none"
    flip: bool = False
    dequantise: bool = False

    def __post_init__(self) -> None:
        if self.dequantise and self.binarisation != "none":
            raise UserError(f"data: dequantise is for grey levels, but binarisation is {self.binarisation}; choose one")

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
            # the middle of each of 65,536 steps; 255 + u is below 256 in float32 too
            return (pixels + (u + 0.5) / 65536) / (self.max_value + 1)
        return pixels.float().mul_(1 / self.max_value)  # to a rounding what a division gives, in half of its time


def _flip(pixels: Tensor, mask: Tensor) -> Tensor:
    """Mirrored where `mask` is 255. On a GPU by exclusive or of bytes: nothing waits for a count. On a CPU in place, of
    the mirrored images alone, by numpy: torch's own indexing of rows takes five times as long."""
    if not pixels.is_cpu:
        return pixels.flip(-1).bitwise_xor_(pixels).bitwise_and_(mask).bitwise_xor_(pixels)
    images, mirrored = pixels.numpy(), mask.flatten().numpy().nonzero()[0]
    images[mirrored] = torch.from_numpy(images[mirrored]).flip(-1).numpy()
    return pixels


@lru_cache(maxsize=1)
def _mirrored(total: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    """255 for each image of the epoch that is mirrored, else 0: uint8 [total, 1, 1, 1].

    All images are drawn at once, because draws batch by batch would take half as long as the mirroring itself.
    """
    mirrored = uniform16(torch.arange(total, device=device), 1, seed, _FLIP, epoch) >= 32768
    return mirrored.to(torch.uint8).neg()[..., None, None]
