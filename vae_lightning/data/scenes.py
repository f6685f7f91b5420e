"""Images of scenes and what is in them: the form that every data set of scenes has, and a folder of your own scenes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vae_lightning.data.base import Source, Split
from vae_lightning.data.folders import Classes
from vae_lightning.data.images import ImageFolder
from vae_lightning.runs.machine import num_cores
from vae_lightning.storage.cache import BrokenImagesError
from vae_lightning.storage.decode import Fit
from vae_lightning.storage.examples import Examples, Images
from vae_lightning.storage.files import list_folder, read_file
from vae_lightning.types import UserError

_TURNED = range(5, 9)  # orientations of EXIF that exchange height and width
_ORIENTATION = 0x0112


class Scenes(Images):
    """The images of a split, as bytes, and what is on them: fields that stand beside `x` in each batch.

    Args:
        fields: `x`, uint8 [N, C, H, W], and the others by name, [N, ...]: `segmentation`, uint8 [N, H, W], if known.
        max_value: The value of white.
        mapping: The memory map that the pixels lie in, if they are read from a file when they are used.
        check: Takes the numbers of images. Raises UserError if the file was damaged at one of them.

    Raises:
        UserError: if the maps have another size than the images.
    """

    def __init__(
        self,
        fields: Mapping[str, Tensor],
        max_value: int = 255,
        mapping: mmap | None = None,
        check: Callable[[Tensor], None] | None = None,
    ) -> None:
        Examples.__init__(self, fields, mapping, check)
        maps, x = fields.get("segmentation"), fields["x"]
        if maps is not None and maps.shape != (len(x), *x.shape[-2:]):
            sizes = [" x ".join(map(str, shape)) for shape in (maps.shape[1:], x.shape[-2:])]
            raise UserError(f"Scenes: segmentation is {sizes[0]}, and the images are {sizes[1]}; they must be alike")
        self.max_value = max_value


class SceneFolder(ImageFolder):
    """The images below `data_dir`, and for each of them a map of its objects, a PNG below `maps_dir`.

    Use it to train models of scenes on images of your own. The map of `a/b.jpg` is `a/b.png` below `maps_dir`, of the
    same height and width. It is grey or has a palette: 0 is the background, and each other number is an object. Images
    without maps are for training alone: the scores that need the truth are left out.

    A batch holds, beside `x`: `segmentation`, uint8 [B, H, W], 0 for the background and k for object k; `count`, int64
    [B], the objects that are left after the fit; `boxes`, float32 [B, max_objects, 4], their tops, lefts, heights and
    widths in pixels, -1 if there is no such object. The splits are drawn as in `ImageFolder`; there is no `label`.

    Args:
        data_dir: The folder of the images.
        maps_dir: The folder of the maps. If there is no such folder, the images have no maps.
        max_objects: The largest number of objects in an image.
        kwargs: Arguments of `ImageFolder`, except `flip`.

    Raises:
        UserError: if `max_objects` is below 1, or if an argument of `ImageFolder` is outside its range.
    """

    def __init__(
        self,
        data_dir: str = "data/scenes/images",
        maps_dir: str = "data/scenes/maps",
        *,
        max_objects: int = 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, flip=False, **kwargs)
        if max_objects < 1:
            raise UserError(f"SceneFolder: max_objects is {max_objects}; it must be at least 1")
        self.maps_dir, self.num_objects = str(Path(maps_dir).expanduser()), max_objects

    @property
    def cache_folder(self) -> Path:
        folder = super().cache_folder
        return folder.with_name(f"{folder.name}-scenes")

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "maps": "nearest"}

    def source(self) -> Source:
        source, folder = super().source(), Path(self.maps_dir)
        if not folder.is_dir():
            print(f"{folder}: no such folder: the images have no maps, and scores of scenes are left out", flush=True)
            return source
        files, digest, _ = list_folder(folder, {".png"})
        images = [Path(path) for path in source.paths or ()]
        maps = [folder / path.relative_to(self.data_dir).with_suffix(".png") for path in images]
        missing = sorted(set(maps) - set(files))
        if missing:
            raise UserError(
                f"{folder}: {len(missing)} of {len(images)} images have no map (the first: {missing[0]}); add them, or "
                "point --data.maps_dir elsewhere"
            )
        fingerprint = {**source.fingerprint, "maps": digest}
        return replace(
            source, fingerprint=fingerprint, read=lambda: source.read()._replace(labels=self._read_maps(images, maps))
        )

    def _classes(self, files: Sequence[Path], folder_by_split: Mapping[Split, str]) -> Classes:
        return Classes([], None, None)

    def _read_maps(self, images: Sequence[Path], maps: Sequence[Path]) -> np.ndarray:
        """The maps of all images, uint8 [N, H, W]. Raises BrokenImagesError with a line for each bad map."""
        problems: list[str] = []

        def read(image: Path, path: Path) -> np.ndarray:
            try:
                return _read_map(path, image, self.image_shape[1:], self.fit)
            except UserError as error:
                problems.append(str(error))
                return np.zeros(self.image_shape[1:], np.uint8)

        with ThreadPoolExecutor(num_cores()) as pool:
            found = np.stack(list(pool.map(read, images, maps)))
        if problems:
            raise BrokenImagesError(sorted(problems))
        return found

    def load(self, split: Split) -> Images:
        images = super().load(split)
        maps = images.labels
        if maps is None:
            return images
        count = maps.flatten(1).amax(1).long()
        if (many := count > self.num_objects).any():
            first = (self.paths(split) or ["?"] * len(count))[int(many.int().argmax())]
            raise UserError(
                f"{self.maps_dir}: {int(many.sum())} of {len(count)} images of {split} have more than "
                f"{self.num_objects} objects (the most: {int(count.max())}; the first: {first}); raise "
                "--data.max_objects"
            )
        boxes = torch.stack([boxes_of(maps == k) for k in range(1, self.num_objects + 1)], 1)
        fields = {"x": images.pixels, "segmentation": maps, "count": count, "boxes": boxes}
        return Scenes(fields, images.max_value, images.mapping, images.check)


def boxes_of(masks: Tensor) -> Tensor:
    """Top, left, height and width of the true pixels, float32 [..., 4]; -1 if there are none.

    Args:
        masks: bool [..., H, W].
    """
    sides = []
    for axis in (-1, -2):
        line = masks.any(axis)
        first = line.int().argmax(-1)
        sides += [first, line.shape[-1] - line.int().flip(-1).argmax(-1) - first]
    top, height, left, width = sides
    boxes = torch.stack((top, left, height, width), -1).float()
    return boxes.where(masks.flatten(-2).any(-1)[..., None], -1)


def _read_map(path: Path, image: Path, size: Sequence[int], fit: Fit) -> np.ndarray:
    """Read a map and fit it like its image: uint8 [H, W], the objects that are left numbered from 1."""
    try:
        with Image.open(io.BytesIO(read_file(path)), formats=("PNG",)) as picture:
            mode, values = picture.mode, np.asarray(picture).astype(np.int64)
    except UserError:
        raise
    except Exception as error:  # a broken file can raise any exception in PIL's parser
        raise UserError(f"{path}: not a whole PNG ({type(error).__name__})") from error
    if values.ndim != 2:
        raise UserError(f"{path}: {mode} pixels; a map has one number a pixel (grey, or a palette)")
    expected = _upright_size(image) or values.shape
    if expected != values.shape:
        sizes = [f"{height} x {width}" for height, width in (values.shape, expected)]
        raise UserError(f"{path}: {sizes[0]} pixels, but {image} has {sizes[1]}")
    fitted = _fitted(values, size, fit)
    numbers = np.unique(fitted[fitted != 0])
    if len(numbers) > 255:
        raise UserError(f"{path}: {len(numbers)} objects; a map has at most 255")
    return np.where(fitted != 0, np.searchsorted(numbers, fitted) + 1, 0).astype(np.uint8)


def _upright_size(path: Path) -> tuple[int, int] | None:
    """Height and width of an image after its rotation by EXIF; None if its header is unreadable."""
    try:
        with Image.open(io.BytesIO(read_file(path))) as image:
            height, width = image.height, image.width
            return (width, height) if image.getexif().get(_ORIENTATION) in _TURNED else (height, width)
    except Exception:  # as above
        return None


def _fitted(values: np.ndarray, size: Sequence[int], fit: Fit) -> np.ndarray:
    """Crop, pad or stretch like `decode`, but take the nearest pixel, because numbers of objects have no mean."""
    ratios = [n / m for n, m in zip(size, values.shape, strict=True)]
    ratio = max(ratios) if fit == "crop" else min(ratios)
    index = []
    for n, m in zip(size, values.shape, strict=True):
        scaled = n if fit == "stretch" else max(1, round(m * ratio))
        place = np.arange(n) + (scaled - n) // 2
        nearest = np.floor((place + 0.5) * m / scaled).astype(np.int64)
        index.append(np.where((place >= 0) & (place < scaled), nearest.clip(0, m - 1), m))  # m: beyond the border
    return np.pad(values, ((0, 1), (0, 1)))[np.ix_(*index)]
