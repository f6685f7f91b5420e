"""What every data set has in common: splits of images held as bytes, and the loaders that serve them.

To add a data set: subclass `ImageDataModule`, set `image_shape`, and return the images of a split from `load`; or, for
image files that have to be decoded, subclass `CachedImages` and return the files from `source`.
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
    """Serves the splits `train`, `val` and `test` of one set of images; `test` is loaded for testing alone.

    Args:
        data_dir: Folder of the data set's files.
        batch_size: Images in a training batch, on each device.
        eval_batch_size: Most images in a batch of evaluation; a set is evaluated in eight batches or more.
        binarisation: `none` (x = pixel / max in [0, 1]), `threshold` (x = 1 if pixel / max is above 1/2) or `dynamic`
            (x ~ Bernoulli(pixel / max), drawn anew in each training epoch, once for val and test).
        flip: Mirror half of the training images, others in each epoch.
        dequantise: x = (pixel + u) / (max + 1) with u ~ U[0, 1).
        resident: Where the bytes live: on the `device`, in host `memory`, in a memory-mapped file (`mmap`), or `auto`:
            on the device if they take at most half of its free memory, else where `load` left them.
        seed: Seed of the order and the noise of training.
    """

    image_shape: Shape
    predicted_splits: tuple[Split, ...] = ("test",)
    """What `predict` runs on, one loader each."""
    batches_per_call = 1
    """Above 1: the training loader yields lists of so many batches (`--speed.steps_per_call`)."""
    factors: ClassVar[Mapping[str, int]] = {}
    """If `label` [B, F] holds the factors that an image was made from: their names and numbers of values, by column."""
    location: ClassVar[str] = ""
    """The file or folder of `data_dir` that is there once the data set was fetched; empty if nothing is fetched."""

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
        self.transform()  # what cannot be is said at once
        self._images: dict[Split, Images] = {}

    @abstractmethod
    def load(self, split: Split) -> Images:
        """The images of a split, from files that `prepare_data` has put in place."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes that `label` [B] counts, once the data are prepared; none where they are unknown."""
        return ()

    def setup(self, stage: str) -> None:
        """Load what the stage needs, so that missing or broken files are found before anything runs."""
        needs: dict[str, tuple[Split, ...]] = {
            **{"fit": ("train", "val"), "validate": ("val",), "predict": self.predicted_splits}
        }
        for split in needs.get(stage, ("test",)):
            self.images(split)

    def images(self, split: Split) -> Images:
        """The images of a split, loaded once, to where they live."""
        if split not in self._images:
            self._images[split] = self._place_on_device(self.load(split))
        return self._images[split]

    def paths(self, split: Split) -> list[str] | None:
        """The file that each image of a split was read from, in order; None where the images are not files."""
        return None

    def transform(self, max_value: int = 255) -> Transform:
        """From bytes to x, in training."""
        return Transform(max_value, self.binarisation, self.flip, self.dequantise)

    def dequantised_levels(self, split: Split) -> int | None:
        """L where x = (pixel + u) / L, and None where x has no such noise: what bits per dimension are counted with."""
        return self.images(split).max_value + 1 if self.dequantise else None

    def check(self) -> list[str]:
        """What is wrong with the data, a line for each; every file is read. Called after `prepare_data`."""
        problems = []
        for split in SPLITS:
            try:
                if not len(self.images(split).pixels):
                    problems.append(f"{split}: no images")
            except UserError as error:
                problems.append(f"{split}: {error}")
        return problems

    def train_dataloader(self) -> ImageLoader:
        loader = self._loader("train", self.batch_size, train=True)
        loader.batches_per_call = self.batches_per_call
        loader.one_epoch = bool(getattr(self.trainer, "overfit_batches", 0))  # it is declared nowhere
        return loader

    def val_dataloader(self) -> ImageLoader:
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> ImageLoader:
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> list[ImageLoader]:
        """All images of each split, the training images too, in order and transformed as in evaluation."""
        return [self._loader(split, self.eval_batch_size) for split in self.predicted_splits]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch unchanged if its `x` is already on `device`, as `ImageLoader`'s are.

        This saves Lightning's 0.1 ms walk over the batch. A loader of a subclass may yield other batches.
        """
        first = batch[0] if isinstance(batch, list) and batch else batch
        x = first.get("x") if isinstance(first, dict) else None
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
        """Batches of this epoch that the fit has seen: not 0 only where it was resumed in mid-epoch."""
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready * self.batches_per_call

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _place_on_device(self, images: Images) -> Images:
        if self.resident == "mmap" and images.mapping is None:
            kept = "auto, memory or device"
            raise UserError(f"{type(self).__name__}: its images are in no file to map; choose --data.resident={kept}")
        device = self._device()
        if self.resident == "memory" or (self.resident == "device" and device.type == "cpu"):
            return images.in_memory()
        if self.resident == "device" or (self.resident == "auto" and self._fits(images)):
            return images.to(device)
        return images

    def _fits(self, images: Images) -> bool:
        """The file that is mapped counts whole, since its other splits come after this one."""
        device = self._device()
        size = len(images.mapping) if images.mapping is not None else images.pixels.nbytes
        if device.type == "cuda":
            return size <= torch.cuda.mem_get_info(device)[0] // 2
        return device.type != "cpu"  # on a CPU they are there already


@dataclass(frozen=True)
class Source:
    """Files of images that a cache is made from. `fingerprint` changes when they do; `splits` counts images, in order.

    `read` is called only where the cache has to be made: what takes long (digests, listing an archive) belongs there.
    `paths`: the file of each image, in the cache's order.
    """

    fingerprint: Mapping[str, Any]
    splits: Mapping[str, int]
    read: Callable[[], Contents]
    paths: Sequence[str | Path] | None = None


class CachedImages(ImageDataModule):
    """Image files, decoded once into a cache and mapped from there.

    The cache is made if it is missing, and made anew if the files or the settings have changed since. Afterwards the
    image files are not needed any more.

    Args:
        cache_dir: The folder of the caches; by default `<data_dir>/cache`.
    """

    def __init__(self, *args: Any, cache_dir: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cache_dir = str(Path(cache_dir).expanduser()) if cache_dir else str(Path(self.data_dir) / "cache")

    @abstractmethod
    def source(self) -> Source:
        """The files as they are now; raises MissingFileError where there are none."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What else the pixels depend on (plain data), and what a user may tell them apart by: crop, filter."""

    @property
    def cache_folder(self) -> Path:
        """Where the cache is: one for each of the settings that one may want side by side."""
        height, width = self.image_shape[1:]
        return Path(self.cache_dir) / f"{type(self).__name__.lower()}-{height}x{width}"

    def prepare_data(self) -> None:
        try:
            source = self.source()
        except MissingFileError:
            header = read_header(self.cache_folder)
            if header is not None and self._is_mine(header):
                return
            raise
        prepare_cache(self.cache_folder, self._header(source), source.read)

    def load(self, split: Split) -> Images:
        header = read_header(self.cache_folder)
        if header is None or not self._is_mine(header):
            raise UserError(f"{self.cache_folder}: no cache of this data with these settings; prepare_data makes it")
        return open_cache(self.cache_folder, split)

    def paths(self, split: Split) -> list[str] | None:
        """None, too, where the files are gone, or are others than those that the cache was made from."""
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # what `source` says has been said by `prepare_data`
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
        return super().check() + broken_chunks(self.cache_folder)

    def _is_mine(self, header: Header) -> bool:
        wanted = (Header.version, self.image_shape, self.settings())
        return (header.version, header.image_shape, header.settings) == wanted
