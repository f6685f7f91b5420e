"""Image files that are not in a data set, in the form of its batches: shape, range, binarisation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_lightning.data.base import CachedImages, ImageDataModule
from vae_lightning.storage.decode import image_size
from vae_lightning.storage.files import read_file
from vae_lightning.storage.transforms import BatchTransform, Draw
from vae_lightning.types import Batch, UserError

_EVALUATION_SEED = 0  # of the noise of val and test


class OwnFiles:
    """x of the user's image files, as the data set would have made it: decoded, resized, scaled, binarised.

    Use it to give a trained model images that its data set does not have. Files are read when they are asked for, so
    that a folder larger than memory can be read batch by batch. A `CachedImages` data set needs neither its files nor
    its cache for this.

    Args:
        data: The data set that the model was trained on.

    Raises:
        UserError: if its x is not made of image files.
    """

    def __init__(self, data: object) -> None:
        if not isinstance(data, ImageDataModule):
            raise UserError(
                f"{type(data).__name__} is no ImageDataModule, so image files have no form that its x has; give the "
                "numbers of test examples"
            )
        self.data = data
        self.max_value, self._transform = _range_and_transform(data)

    def pixels(self, path: str | Path) -> tuple[Tensor, str | None]:
        """Return the pixels of a file, uint8 [C, H, W] from 0 to the data set's white, and a line if it was resized.

        Args:
            path: The image file, of any size.

        Raises:
            UserError: if the file cannot be read, or is no image. The message begins with the file.
        """
        contents, (_, height, width) = read_file(Path(path)), self.data.image_shape
        size = image_size(contents, str(path))
        pixels = self.data.decode_file(contents, str(path))
        if self.max_value != 255:
            pixels = ((pixels.astype(np.int64) * self.max_value * 2 + 255) // 510).astype(np.uint8)  # rounded
        note = None
        if size != (width, height):
            how = _how_fitted(getattr(self.data, "fit", "crop"), size, (width, height))
            note = f"{path}: {size[0]} x {size[1]} pixels, {how} {width} x {height}"
        return torch.from_numpy(np.ascontiguousarray(pixels)), note

    def batch(self, paths: Sequence[str | Path], first: int = 0) -> tuple[Batch, list[str]]:
        """Return a batch with `x` [n, C, H, W], and one line for each file that was resized.

        Args:
            paths: n image files.
            first: The number of the first file among all files; noise of a transform is a function of this number.

        Raises:
            UserError: if a file cannot be read, or is no image. The message begins with the file.
        """
        found = [self.pixels(path) for path in paths]
        index = torch.arange(first, first + len(found))
        draw = Draw(index, _EVALUATION_SEED, 0, first + len(found))
        batch = {"x": torch.stack([pixels for pixels, _ in found])}
        return {**batch, **self._transform.apply(batch, draw)}, [note for _, note in found if note]


def _range_and_transform(data: ImageDataModule) -> tuple[int, BatchTransform]:
    """Return the data set's white and its transform in evaluation; a data set of files is not opened for them."""
    own_transform = type(data).batch_transform is not ImageDataModule.batch_transform
    if isinstance(data, CachedImages) and not own_transform:
        return 255, data.transform(255).in_evaluation()
    return data.images("test").max_value, data.batch_transform("test").in_evaluation()


def _how_fitted(fit: str, size: tuple[int, int], wanted: tuple[int, int]) -> str:
    if size[0] * wanted[1] == size[1] * wanted[0]:
        return "resized to"
    return {"pad": "resized and padded to", "stretch": "stretched to"}.get(fit, "cropped and resized to")
