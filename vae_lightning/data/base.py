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
from typing import Any, ClassVar, Literal, TypeAlias

import lightning.pytorch as pl
import torch

from vae_lightning.storage.cache import Contents, Header, broken_chunks, open_cache, prepare_cache, read_header
from vae_lightning.storage.files import MissingFileError
from vae_lightning.storage.loader import ImageLoader, Images, evaluation_batch_size
from vae_lightning.storage.transforms import Binarisation, Transform
from vae_lightning.types import Shape, UserError

Split: TypeAlias = Literal["train", "val", "test"]
Resident: TypeAlias = Literal["auto", "device", "memory", "mmap"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


class ImageDataModule(pl.LightningDataModule):
    """Serve the splits `train`, `val` and `test` of one set of images.

    A subclass returns the images from `load`; the order, the batches and the scaling to x are done here. Training does
    not load `test`.

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

    image_shape: Shape
    predicted_splits: tuple[Split, ...] = ("test",)
    """The splits that `predict` runs on, with one loader for each."""
    batches_per_call = 1
    """If above 1, the training loader yields lists of this many batches (`--speed.steps_per_call`)."""
    factors: ClassVar[Mapping[str, int]] = {}
    """Name and number of values of each column of `label` [B, F], if the labels are factors that images are made of."""
    location: ClassVar[str] = ""
    """The file or folder in `data_dir` that exists once the data set is fetched; empty if nothing is fetched."""

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
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise UserError(f"{type(self).__name__}: {name} is {size}; it must be at least 1")
        self.data_dir = str(Path(data_dir).expanduser())
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.binarisation: Binarisation | Literal["static"] = binarisation
        self.flip, self.dequantise = flip, dequantise
        self.resident, self.seed = resident, seed
        self.transform()  # raises UserError now, not in the first batch, if the options exclude each other
        self._images: dict[Split, Images] = {}

    @abstractmethod
    def load(self, split: Split) -> Images:
        """Return the images of a split, read from the files that `prepare_data` has put in place.

        Args:
            split: `train`, `val` or `test`.
        """

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; `label` [B] holds indices into them. Empty if unknown, or before `prepare_data`."""
        return ()

    def setup(self, stage: str) -> None:
        """Load the splits that the stage needs, so that missing or broken files are reported before anything runs.

        Args:
            stage: Lightning's name of the stage: `fit`, `validate`, `test` or `predict`.
        """
        splits_of_stage: dict[str, tuple[Split, ...]] = {
            **{"fit": ("train", "val"), "validate": ("val",), "predict": self.predicted_splits}
        }
        for split in splits_of_stage.get(stage, ("test",)):
            self.images(split)

    def images(self, split: Split) -> Images:
        """Return the images of a split. The first call loads them and moves them to the place that `resident` names.

        Args:
            split: `train`, `val` or `test`.
        """
        if split not in self._images:
            self._images[split] = self._place_on_device(self.load(split))
        return self._images[split]

    def paths(self, split: Split) -> list[str] | None:
        """Return the file of each image of a split, in the order of the images; None if the images are not files.

        Args:
            split: `train`, `val` or `test`.
        """
        return None

    def transform(self, max_value: int = 255) -> Transform:
        """Return the function from bytes to x that the options choose.

        Args:
            max_value: The largest value that a pixel can have.
        """
        return Transform(max_value, self.binarisation, self.flip, self.dequantise)

    def dequantised_levels(self, split: Split) -> int | None:
        """Return L of x = (pixel + u) / L, which bits per dimension depend on; None if `dequantise` is off.

        Args:
            split: `train`, `val` or `test`.
        """
        return self.images(split).max_value + 1 if self.dequantise else None

    def check(self) -> list[str]:
        """Return the faults of the data, one line each. Reads every file; call `prepare_data` first."""
        problems = []
        for split in SPLITS:
            try:
                if not len(self.images(split).pixels):
                    problems.append(f"{split}: no images")
            except UserError as error:
                problems.append(f"{split}: {error}")
        return problems

    def train_dataloader(self) -> ImageLoader:
        """Return the loader of this rank's share of the training images, in an order drawn anew for each epoch."""
        loader = self._loader("train", self.batch_size, train=True)
        loader.batches_per_call = self.batches_per_call
        loader.one_epoch = bool(getattr(self.trainer, "overfit_batches", 0))  # Trainer does not declare the attribute
        return loader

    def val_dataloader(self) -> ImageLoader:
        """Return the loader of this rank's share of the validation images, in the order of the data set."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> ImageLoader:
        """Return the loader of this rank's share of the test images, in the order of the data set."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> list[ImageLoader]:
        """Return one loader for each of `predicted_splits`: the images in order, transformed as in evaluation."""
        return [self._loader(split, self.eval_batch_size) for split in self.predicted_splits]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch unchanged if its `x` is already on `device`, as `ImageLoader`'s are.

        This saves Lightning's 0.1 ms walk over the batch. Lightning moves any other batch, which the loader of a
        subclass may yield.

        Args:
            batch: A dict with the key `x`, a list of such dicts, or a batch of any other kind.
            device: The device that the model runs on.
            dataloader_idx: Index of the loader that yielded the batch.
        """
        first_batch = batch[0] if isinstance(batch, list) and batch else batch
        x = first_batch.get("x") if isinstance(first_batch, dict) else None
        if isinstance(x, torch.Tensor) and x.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _loader(self, split: Split, batch_size: int, train: bool = False) -> ImageLoader:
        images = self.images(split)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if not train:
            batch_size = evaluation_batch_size(len(images.pixels), batch_size, world_size)
        position = self._position if train and self.trainer else int
        transform = self.transform(images.max_value)
        device = self._device()
        return ImageLoader(images, batch_size, train, transform, self.seed, rank, world_size, device, position)

    def _position(self) -> int:
        """Number of batches that the fit has seen in this epoch; above 0 only if it was resumed within an epoch."""
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready * self.batches_per_call

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _place_on_device(self, images: Images) -> Images:
        if self.resident == "mmap" and images.mapping is None:
            raise UserError(
                f"{type(self).__name__}: resident is mmap, but the images are not in a file that can be mapped; choose "
                "--data.resident=auto, memory or device"
            )
        device = self._device()
        if self.resident == "memory" or (self.resident == "device" and device.type == "cpu"):
            return images.in_memory()
        if self.resident == "device" or (self.resident == "auto" and self._fits_on_device(images)):
            return images.to(device)
        return images

    def _fits_on_device(self, images: Images) -> bool:
        """A mapped file counts whole, because the other splits in the file are moved to the device later."""
        device = self._device()
        size = len(images.mapping) if images.mapping is not None else images.pixels.nbytes
        if device.type == "cuda":
            return size <= torch.cuda.mem_get_info(device)[0] // 2
        return device.type != "cpu"  # in CPU memory already, so nothing is gained by a copy


@dataclass(frozen=True)
class Source:
    """The image files that a cache is made from.

    Args:
        fingerprint: Plain data that change when the files change; the cache is then made anew.
        splits: Number of images of each split, in the order in which the cache holds the splits.
        read: Returns the contents of the cache. It is called only if the cache must be made, so slow work (digests,
            listing an archive) belongs in it.
        paths: The file of each image, in the order of the cache; None if the images are not files.
    """

    fingerprint: Mapping[str, Any]
    splits: Mapping[str, int]
    read: Callable[[], Contents]
    paths: Sequence[str | Path] | None = None


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
        prepare_cache(self.cache_folder, self._header(source), source.read)

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
            with contextlib.redirect_stdout(io.StringIO()):  # `prepare_data` has printed the notes of `source` already
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
