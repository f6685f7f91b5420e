"""Canvases with several digits of another data set, for models of scenes: nothing is downloaded for the default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_lightning.data.base import SPLITS, ImageDataModule, Split
from vae_lightning.data.digits import Digits
from vae_lightning.data.scenes import Scenes
from vae_lightning.runs.machine import available_memory
from vae_lightning.synthetic import NoRoomError, cut_out, draw_canvases
from vae_lightning.types import UserError


class MultiDigits(ImageDataModule):
    """0 .. `max_digits` digits at random places of a black canvas, boxes disjoint, and where each of them lies.

    Use it for models that count and find objects. A batch holds `x`, float32 [B, 1, H, W]; `count`, int64 [B];
    `segmentation`, uint8 [B, H, W], 0 for the background and k for digit k; `boxes`, float32 [B, max_digits, 4], the
    top, left, height and width of the ink in pixels, -1 if there is no such digit. Ink is brighter than a tenth of
    white.

    The number of digits is uniform. The digits of `train`, `val` and `test` are those of the source's own splits, so
    that no digit is in two of them. Canvas i of a split depends on `canvas_seed` and i alone, not on the seed of the
    run: all runs are measured on one test set. The canvases are drawn at each start, in seconds.

    Args:
        data_dir: The folder of the source's files, in place of the source's own `data_dir`.
        source: The data set of the digits: `Digits`, which needs no files, `MNIST`, or another one of grey images.
        canvas_size: Height and width of a canvas in pixels.
        max_digits: The largest number of digits on a canvas.
        scale: Shrink digits by the mean over squares of this side: 2 makes MNIST's digits 14 x 14.
        gap: The least number of pixels between the boxes of two digits, along one axis.
        num_images: The number of canvases of train, val and test.
        canvas_seed: The seed of the canvases.
        kwargs: Arguments of `ImageDataModule`, except `flip`.

    Raises:
        UserError: if a number is too small, or if the source is not of grey images that `scale` divides.
    """

    def __init__(
        self,
        data_dir: str = "data",
        *,
        source: Callable[[], ImageDataModule] = Digits,
        canvas_size: int = 24,
        max_digits: int = 2,
        scale: int = 1,
        gap: int = 0,
        num_images: tuple[int, int, int] = (20_000, 1_000, 1_000),
        canvas_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, flip=False, **kwargs)
        least = {"canvas_size": (canvas_size, 1), "max_digits": (max_digits, 1), "scale": (scale, 1), "gap": (gap, 0)}
        for name, (number, smallest) in {**least, "num_images": (min(num_images), 1)}.items():
            if number < smallest:
                raise UserError(f"MultiDigits: {name} is {number}; it must be at least {smallest}")
        if max_digits > 255:
            raise UserError(f"MultiDigits: max_digits is {max_digits}; it must be at most 255")
        self.source = source()
        self.source.data_dir = self.data_dir
        channels, height, width = self.source.image_shape
        if channels != 1 or height % scale or width % scale:
            raise UserError(
                f"MultiDigits: the images of {type(self.source).__name__} are {channels} x {height} x {width}; they "
                f"must be grey, and scale {scale} must divide height and width"
            )
        self.canvas_size, self.scale, self.gap, self.canvas_seed = canvas_size, scale, gap, canvas_seed
        self.num_images = dict(zip(SPLITS, num_images, strict=True))
        self.image_shape, self.num_objects = (1, canvas_size, canvas_size), max_digits

    def prepare_data(self) -> None:
        """Fetch the files of the source that are missing."""
        self.source.prepare_data()

    def load(self, split: Split) -> Scenes:
        fields, max_value = self.draw(split)
        return Scenes({name: values for name, values in fields.items() if name != "source"}, max_value)

    def draw(self, split: Split) -> tuple[dict[str, Tensor], int]:
        """Return the canvases of a split as `draw_canvases` does, and the value of white.

        Args:
            split: `train`, `val` or `test`; `source` counts the digits with ink in this split of the source.

        Raises:
            UserError: if the digits do not fit on a canvas, or the canvases do not fit in memory.
        """
        needed, free = 2 * self.num_images[split] * self.canvas_size**2, available_memory()
        if free is not None and needed > free:
            raise UserError(
                f"MultiDigits: {self.num_images[split]:,} canvases take {needed / 2**30:,.1f} GiB, but only "
                f"{free / 2**30:,.1f} GiB are free; lower --data.num_images"
            )
        digits, index = self.source.load(split), torch.arange(self.num_images[split])
        glyphs = cut_out(digits.pixels, digits.max_value, self.scale)
        seeds = (self.canvas_seed, SPLITS.index(split))
        try:
            fields = draw_canvases(index, glyphs, self.canvas_size, self.num_objects, self.gap, seeds)
        except NoRoomError as error:
            raise UserError(
                f"MultiDigits: {error}; choose a larger --data.canvas_size, a larger --data.scale or fewer "
                "--data.max_digits"
            ) from error
        return fields, digits.max_value
