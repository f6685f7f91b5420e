"""Drawn data sets. No download, every factor known; meant for tests, demonstrations and disentanglement."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np
import torch

from vae_lightning.data.base import CachedImages, Source
from vae_lightning.runs.machine import available_memory
from vae_lightning.storage.cache import Contents
from vae_lightning.synthetic import (
    DRAWING_VERSION,
    NUM_SPRITES,
    SPRITE_FACTORS,
    draw_faces,
    draw_sprites,
    face_attributes,
    sprite_factors,
)
from vae_lightning.types import UserError


class _Drawn(CachedImages):
    """`num_images` drawings: nine tenths are `train`, a twentieth each is `val` and `test`."""

    def __init__(self, data_dir: str = "data", *, num_images: int, **kwargs: Any) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        if num_images < 20:
            raise UserError(f"{type(self).__name__}: num_images is {num_images}; it must be at least 20")
        self.num_images = num_images

    def settings(self) -> dict[str, Any]:
        return {"num_images": self.num_images, "drawing": DRAWING_VERSION}

    def source(self) -> Source:
        held_out = self.num_images // 20
        splits = {"train": self.num_images - 2 * held_out, "val": held_out, "test": held_out}
        return Source({}, splits, self._contents_in_memory)

    def _contents_in_memory(self) -> Contents:
        """All images are in memory at once. Check the memory first: a foreign config.yaml may ask for any number."""
        needed, free = self.num_images * math.prod(self.image_shape), available_memory()
        if free is not None and needed > free:
            raise UserError(
                f"{type(self).__name__}: num_images {self.num_images:,} takes {needed / 2**30:,.1f} GiB, but only "
                f"{free / 2**30:,.1f} GiB are free"
            )
        return self.contents()

    @abstractmethod
    def contents(self) -> Contents:
        """The function that draws images start .. stop - 1, and the labels of all images."""


class ProceduralFaces(_Drawn):
    """Cartoon faces of 3 x 64 x 64 pixels with CelebA's 40 attributes (`label`, uint8 [B, 40]): drawings, not CelebA.

    Use it to try a configuration for faces without a download. Face i depends on i alone.
    `vae_lightning.synthetic.write_celeba_layout` writes the same faces as files in CelebA's layout.

    Args:
        data_dir: The folder that the folder of caches lies in.
        num_images: Number of faces in all splits together; at least 20.
        kwargs: Arguments of `CachedImages`, except `binarisation`.

    Raises:
        UserError: if `num_images` is below 20.
    """

    image_shape = (3, 64, 64)

    def __init__(self, data_dir: str = "data", *, num_images: int = 12_000, **kwargs: Any) -> None:
        super().__init__(data_dir=data_dir, num_images=num_images, binarisation="none", **kwargs)

    def contents(self) -> Contents:
        def fill(start: int, stop: int) -> np.ndarray:
            return draw_faces(torch.arange(start, stop))[0].numpy()

        return Contents(fill, face_attributes(torch.arange(self.num_images)).numpy(), num_threads=1)


class ProceduralSprites(_Drawn):
    """White squares, ellipses and hearts on black, 1 x 64 x 64: like dSprites (Matthey et al. 2017), but other images.

    Use it to measure disentanglement, which needs the factors of each image. `label` is int64 [B, 5]: shape (3 values),
    scale (6), orientation (40), x (32), y (32).

    Args:
        data_dir: The folder that the folder of caches lies in.
        num_images: How many of the 737,280 sprites are used, 20 or more. The choice is random but the same in each run.
        kwargs: Arguments of `CachedImages`, except `flip` and `dequantise`.

    Raises:
        UserError: if `num_images` is below 20 or above 737,280.
    """

    image_shape = (1, 64, 64)
    factors = SPRITE_FACTORS

    def __init__(self, data_dir: str = "data", *, num_images: int = 40_000, **kwargs: Any) -> None:
        super().__init__(data_dir=data_dir, num_images=num_images, flip=False, dequantise=False, **kwargs)
        if num_images > NUM_SPRITES:
            raise UserError(f"ProceduralSprites: num_images is {num_images}; there are {NUM_SPRITES:,}")

    def contents(self) -> Contents:
        chosen = np.random.RandomState(0).permutation(NUM_SPRITES)[
            : self.num_images
        ]  # numpy never changes RandomState's stream
        factors = sprite_factors(torch.from_numpy(chosen))

        def fill(start: int, stop: int) -> np.ndarray:
            return draw_sprites(factors[start:stop]).numpy()

        return Contents(fill, factors.numpy(), num_threads=1)
