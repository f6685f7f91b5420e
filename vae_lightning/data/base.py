"""The data path: one uint8 tensor, whole batches by index, scaling and binarisation on the batch.

To add a data set: subclass `ImageDataModule`, set `image_shape`, and return the images of a split from `load`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import lightning.pytorch as pl
import torch
from torch import Tensor

from vae_lightning.noise import derive_seed, uniform16
from vae_lightning.types import Batch, Shape, UserError

Split: TypeAlias = Literal["train", "val", "test"]
Binarisation: TypeAlias = Literal["none", "threshold", "dynamic"]
"""What can be done to a batch. A data set that was binarised once and for all calls itself `static`."""

_SHUFFLE, _BINARISE = 0, 1  # streams of randomness that never meet
_EVALUATION_SEED = 0
"""Dynamic binarisation of val and test is drawn once, from this seed, whatever the run's own: one test set for all."""


@dataclass(frozen=True)
class Images:
    """`pixels`: uint8 [N, C, H, W] with values 0 .. `max_value`; `labels`: int64 [N] where the data set has them."""

    pixels: Tensor
    labels: Tensor | None = None
    max_value: int = 255

    def to(self, device: torch.device) -> Images:
        labels = None if self.labels is None else self.labels.to(device)
        return Images(self.pixels.to(device), labels, self.max_value)


class ImageLoader:
    """Batches `{x, label}` of `images`, made on the device where the images live, without a line of Python per image.

    A training loader's order and binarisation are functions of (seed, epoch, index); ranks take disjoint slices of the
    order, equally long, so that no rank waits for another. An evaluation loader covers each image once over all ranks.
    Lightning sets the epoch through `sampler.set_epoch`, as it does for a `DataLoader`.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        train: bool,
        binarisation: Binarisation | Literal["static"] = "none",
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images, self.batch_size, self.train, self.binarisation = images, batch_size, train, binarisation
        self.seed = seed if train else _EVALUATION_SEED
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.sampler, self.batch_sampler = self, None  # the face of a DataLoader that Lightning looks at

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass; evaluation is the same in every epoch."""
        self.epoch = epoch if self.train else 0

    def __len__(self) -> int:
        return -(-self._num_images() // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for index in self._order().split(self.batch_size):
            yield self._batch(index.to(self.images.pixels.device, non_blocking=True))

    def _num_images(self) -> int:
        """Of this rank."""
        total = len(self.images.pixels)
        return total // self.world_size if self.train else len(range(self.rank, total, self.world_size))

    def _order(self) -> Tensor:
        total = len(self.images.pixels)
        if not self.train:
            return torch.arange(self.rank, total, self.world_size)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, _SHUFFLE, self.epoch))
        return torch.randperm(total, generator=generator)[self.rank :: self.world_size][: self._num_images()]

    def _batch(self, index: Tensor) -> Batch:
        pixels = self.images.pixels.index_select(0, index)  # uint8 [B, C, H, W]
        batch = {"x": self._binarise(pixels, index)}
        if self.images.labels is not None:
            batch["label"] = self.images.labels.index_select(0, index)
        return batch

    def _binarise(self, pixels: Tensor, index: Tensor) -> Tensor:
        if self.binarisation in ("none", "static"):
            return pixels.float() / self.images.max_value
        if self.binarisation == "threshold":
            return (pixels > self.images.max_value // 2).float()
        u = uniform16(index, pixels[0].numel(), self.seed, _BINARISE, self.epoch).view_as(pixels)
        return (u * self.images.max_value < pixels.to(torch.int32) * 65536).float()  # P(1) = pixel / max_value


class ImageDataModule(pl.LightningDataModule):
    """Serves the splits `train`, `val` and `test` of one set of images; `test` is loaded for testing alone.

    `binarisation`: `none` (x = pixel / max in [0, 1]), `threshold` (x = 1 where that is above a half), `dynamic`
    (x ~ Bernoulli(pixel / max): in training anew in each epoch, for val and test drawn once, the same for every run).
    """

    image_shape: ClassVar[Shape]

    def __init__(
        self,
        data_dir: str = "data",
        batch_size: int = 128,
        eval_batch_size: int = 500,
        binarisation: Binarisation = "none",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise UserError(f"{type(self).__name__}: {name} is {size}; it must be at least 1")
        self.data_dir = str(Path(data_dir).expanduser())
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.binarisation: Binarisation | Literal["static"] = binarisation
        self.seed = seed
        self._images: dict[Split, Images] = {}

    @abstractmethod
    def load(self, split: Split) -> Images:
        """The images of a split, from files that `prepare_data` has put in place."""

    def setup(self, stage: str) -> None:
        """Load what the stage needs, so that missing or broken files are found before anything runs."""
        needs: dict[str, tuple[Split, ...]] = {"fit": ("train", "val"), "validate": ("val",)}
        for split in needs.get(stage, ("test",)):
            self.images(split)

    def images(self, split: Split) -> Images:
        """The images of a split, loaded once, on the device of the trainer (or the CPU, without one)."""
        if split not in self._images:
            device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
            self._images[split] = self.load(split).to(device)
        return self._images[split]

    def train_dataloader(self) -> ImageLoader:
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> ImageLoader:
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> ImageLoader:
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> ImageLoader:
        return self.test_dataloader()

    def _loader(self, split: Split, batch_size: int) -> ImageLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        train = split == "train"
        return ImageLoader(self.images(split), batch_size, train, self.binarisation, self.seed, rank, world_size)
