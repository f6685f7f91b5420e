"""The base classes of all data sets: the images of each split are held as bytes, and loaders serve them in batches.

To add a data set, subclass `ImageDataModule`, set `image_shape`, and return the images of a split from `load`. If the
images are files that must be decoded, subclass `CachedImages` and return the files from `source`.
"""

from __future__ import annotations

import contextlib
import io
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vae_lightning.data.module import SPLITS, DataModule, Resident, Split  # noqa: F401 - SPLITS for users' imports
from vae_lightning.storage.cache import Contents, Header, broken_chunks, open_cache, prepare_cache, read_header
from vae_lightning.storage.decode import check_shape, decode
from vae_lightning.storage.examples import Images
from vae_lightning.storage.files import MissingFileError
from vae_lightning.storage.transforms import Binarisation, Transform
from vae_lightning.types import Shape, UserError


class ImageDataModule(DataModule):
    """Serve the splits `train`, `val` and `test` of one set of images.

    A subclass sets `image_shape` and returns the images from `load`; the order, the batches and the scaling to x are
    done here.

    Args:
        data_dir: Folder of the data set's files.
        batch_size: Number of images in a training batch, on each device.
        eval_batch_size: Largest number of images in an evaluation batch; a set is evaluated in eight batches or more.
        binarisation: `none` (x = pixel / max in [0, 1]), `threshold` (x = 1 if pixel / max is above 1/2) or `dynamic`
            (x ~ Bernoulli(pixel / max), drawn anew in each training epoch, once for val and test).
        flip: Mirror each training image left to right with probability 1/2, drawn anew in each epoch.
        dequantise: x = (pixel + u) / (max + 1) with u ~ U[0, 1).
        resident: Where the pixels are kept: on the `device`, in host `memory`, in a memory-mapped file (`mmap`), or
            `auto`: on the device if the pixels take at most half of its free memory, else in the mapped file if there
            is one, else in host memory.
        seed: Seed of the training order and of the training noise.

    Raises:
        UserError: if a batch size is below 1, or if `binarisation` and `dequantise` exclude each other.
    """

    def __init__(
        self,
        data_dir: str = "data",
        batch_size: int = 128,
        eval_batch_size: int = 500,
        binarisation: Binarisation = "none",
        flip: bool = False,
        dequantise: bool = False,
        resident: Resident = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__(data_dir, batch_size, eval_batch_size, resident, seed)
        self.binarisation: Binarisation | Literal["static"] = binarisation
        self.flip, self.dequantise = flip, dequantise
        self.transform()  # raises UserError now, not in the first batch, if the options exclude each other

    @property
    def x_shape(self) -> Shape:  # type: ignore[override]
        """The image's shape, (C, H, W)."""
        return self.image_shape

    @abstractmethod
    def load(self, split: Split) -> Images:
        """Return the images of a split, read from the files that `prepare_data` has put in place.

        Args:
            split: `train`, `val` or `test`.
        """

    def images(self, split: Split) -> Images:
        """Return the images of a split: `examples`, under the name that fits.

        Args:
            split: `train`, `val` or `test`.
        """
        images = self.examples(split)
        assert isinstance(images, Images)
        return images

    def transform(self, max_value: int = 255) -> Transform:
        """Return the function from bytes to x that the options choose.

        Args:
            max_value: The largest value that a pixel can have.
        """
        return Transform(max_value, self.binarisation, self.flip, self.dequantise)

    def batch_transform(self, split: Split) -> Transform:
        return self.transform(self.images(split).max_value)

    def decode_file(self, contents: bytes, name: str) -> np.ndarray:
        """Return the pixels of an image file that is not in the data set, uint8 [C, H, W] from 0 to 255.

        The middle of the image is kept if its aspect ratio differs. A data set that decodes files of its own overrides
        this, so that both kinds of files are fitted alike.

        Args:
            contents: The bytes of the file.
            name: The file's name, for messages.

        Raises:
            UserError: if the file is no image, or the data set's images are neither grey, RGB nor RGBA.
        """
        check_shape(self.image_shape)
        return decode(contents, name, self.image_shape)

    def dequantised_levels(self, split: Split) -> int | None:
        return self.images(split).max_value + 1 if self.dequantise else None


@dataclass(frozen=True)
class Source:
    """The image files that a cache is made from.

    Args:
        fingerprint: Plain data that change when the files change; the cache is then made anew.
        splits: Number of images of each split, in the order in which the cache holds the splits.
        read: Returns the contents of the cache. It is called only if the cache must be made, so slow work (digests,
            listing an archive) belongs in it.
        paths: The file of each image, in the order of the cache; None if the images are not files.
        notes: Lines for the user, such as how the files were split; `prepare_data` prints them.
    """

    fingerprint: Mapping[str, Any]
    splits: Mapping[str, int]
    read: Callable[[], Contents]
    paths: Sequence[str | Path] | None = None
    notes: Sequence[str] = ()


class CachedImages(ImageDataModule):
    """Image files that are decoded once into a cache, which is then memory-mapped.

    `prepare_data` makes the cache if it is missing, or if the files or the settings have changed. The image files are
    not needed after that.

    Args:
        args: Positional arguments of `ImageDataModule`.
        cache_dir: The folder of the caches; by default `<data_dir>/cache`.
        kwargs: Arguments of `ImageDataModule`.
    """

    def __init__(self, *args: Any, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cache_dir = str(Path(cache_dir).expanduser()) if cache_dir else str(Path(self.data_dir) / "cache")

    @abstractmethod
    def source(self) -> Source:
        """Describe the files as they are now.

        Raises:
            MissingFileError: if there are no files.
        """

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The options that the pixels depend on (crop, filter), as plain data. The cache is stale if they change."""

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache. Settings that a user may want side by side have caches of their own."""
        height, width = self.image_shape[1:]
        return Path(self.cache_dir) / f"{type(self).__name__.lower()}-{height}x{width}"

    def prepare_data(self) -> None:
        """Make the cache if it is missing or stale. If the image files are gone, an existing cache is used."""
        try:
            source = self.source()
        except MissingFileError:
            header = read_header(self.cache_folder)
            if header is not None and self._matches(header):
                return
            raise
        header = self._header(source)
        if self.prints_notes or header != read_header(self.cache_folder):
            print(*source.notes, sep="\n", end="\n" * bool(source.notes), flush=True)
        prepare_cache(self.cache_folder, header, source.read)

    def load(self, split: Split) -> Images:
        """Map the images of a split from the cache.

        Args:
            split: `train`, `val` or `test`.

        Raises:
            UserError: if there is no cache with the present settings.
        """
        header = read_header(self.cache_folder)
        if header is None or not self._matches(header):
            raise UserError(f"{self.cache_folder}: no cache with these settings; call prepare_data to make the cache")
        return open_cache(self.cache_folder, split)

    def paths(self, split: Split) -> list[str] | None:
        """Return the file of each image of a split, in the order of the images.

        Returns None also if the files are gone, or are not the files that the cache was made from.

        Args:
            split: `train`, `val` or `test`.
        """
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # `prepare_data` has named links that are not followed
                source = self.source()
        except UserError:
            return None
        if source.paths is None or self._header(source) != read_header(self.cache_folder):
            return None
        names = list(source.splits)
        start = sum(source.splits[name] for name in names[: names.index(split)])
        return [str(path) for path in source.paths[start : start + source.splits[split]]]

    def _header(self, source: Source) -> Header:
        return Header(self.image_shape, source.splits, self.settings(), source.fingerprint)

    def check(self) -> list[str]:
        """Return the faults of the data, damaged chunks of the cache included, one line each."""
        return super().check() + broken_chunks(self.cache_folder)

    def _matches(self, header: Header) -> bool:
        """Whether the cache with this header has the shape and the settings of this data set."""
        expected = (Header.version, self.image_shape, self.settings())
        return (header.version, header.image_shape, header.settings) == expected
