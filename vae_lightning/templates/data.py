"""The data set. Replace `draw_blobs` by your own images; the rest may stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_lightning.data import ImageDataModule
from vae_lightning.data.base import Split
from vae_lightning.storage.examples import Images

SIDE, WHITE = 16, 16


class Blobs(ImageDataModule):
    """Soft white spots on black, 1 x 16 x 16, at random places and of random sizes, in 17 grey levels.

    It is a stand-in for your own images.

    Args:
        num_images: Number of training images; `val` and `test` have a fifth as many each.
        kwargs: Arguments of `ImageDataModule`: batch_size, binarisation, flip and others.
    """

    image_shape = (1, SIDE, SIDE)

    def __init__(self, num_images: int = 2000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_images = num_images

    def load(self, split: Split) -> Images:
        """Return the images of a split as bytes [N, 1, 16, 16], of which 16 is white; labels [N] may stand beside them.

        Args:
            split: `train`, `val` or `test`.
        """
        seed = {"train": 0, "val": 1, "test": 2}[split]  # so that no image is in two splits
        n = self.num_images if split == "train" else self.num_images // 5
        return Images(draw_blobs(n, seed), max_value=WHITE)


def draw_blobs(n: int, seed: int) -> Tensor:
    """Return n images as bytes [n, 1, 16, 16]: exp(-distance^2 / (2 size^2)) from a random centre.

    Args:
        n: The number of images.
        seed: The seed of the places and sizes.
    """
    random = torch.Generator().manual_seed(seed)
    centre = torch.rand(n, 2, 1, 1, generator=random) * (SIDE - 1)
    size = 1 + 2 * torch.rand(n, 1, 1, generator=random)
    row, column = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None]
    squared = (row - centre[:, 0]) ** 2 + (column - centre[:, 1]) ** 2  # [n, 16, 16]
    return (WHITE * torch.exp(-squared / (2 * size**2))).round().to(torch.uint8)[:, None]
