"""The base class of every data set: splits, loaders, and what the data tell a model.

To add a data set of any kind: subclass `DataModule` and return the examples of a split from `load`. For images subclass
`ImageDataModule` (`base.py`), which adds what is done to pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias

import lightning.pytorch as pl
import torch

from vae_lightning.storage.examples import Examples
from vae_lightning.storage.loader import Loader, evaluation_batch_size
from vae_lightning.storage.transforms import BatchTransform
from vae_lightning.types import Shape, UserError

Split: TypeAlias = Literal["train", "val", "test"]
Resident: TypeAlias = Literal["auto", "device", "memory", "mmap"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
TOLD = (
    *("image_shape", "x_shape", "num_frames", "num_objects", "vocabulary", "max_length", "action_shape", "num_actions"),
    "num_classes",
)
"""What a data module may tell a model: the command line gives each to the model's argument of that name."""


class DataModule(pl.LightningDataModule):
    """Serve the splits `train`, `val` and `test` of a set of examples of any shape.

    A subclass returns the examples from `load`; the order, the batches and where they live are done here. It sets what
    a model has to know of the data: `x_shape` and others of the attributes below. Training does not load `test`.

    Args:
        data_dir: Folder of the data set's files.
        batch_size: Number of examples in a training batch, on each device.
        eval_batch_size: Largest number of examples in an evaluation batch; a set is evaluated in eight batches or more.
        resident: Where the examples are kept: on the `device`, in host `memory`, in a memory-mapped file (`mmap`), or
            `auto`: on the device if they take at most half of its free memory, else in the mapped file if there is one,
            else in host memory.
        seed: Seed of the training order and of the training noise.

    Raises:
        UserError: if a batch size is below 1.
    """

    image_shape: Shape
    """(C, H, W) of an image; only data of images set this."""
    x_shape: Shape
    """The shape of one x; -1 for a size that may differ between batches, such as the steps of windows and of whole
    sequences."""
    num_frames: int
    """The number of frames of a clip."""
    num_objects: int
    """The largest number of objects in a scene."""
    vocabulary: int | Mapping[str, int]
    """The number of different tokens in x; of data with several fields of tokens, that of each field by name."""
    max_length: Mapping[str, int]
    """The largest number of tokens in a sequence of each field, the end included."""
    action_shape: Shape
    """The shape of one action; () for the number of a discrete action."""
    num_actions: int
    """The number of different actions; an action is a whole number, int64 [B], from 0."""
    num_classes: int
    """The number of classes that `label` counts."""

    predicted_splits: tuple[Split, ...] = ("test",)
    """The splits that `predict` runs on, with one loader for each."""
    prints_notes = True
    """Whether `prepare_data` prints what was printed before, such as how files were split. Commands that look at a
    trained run leave such lines out, unless the files have changed."""
    batches_per_call = 1
    """If above 1, the training loader yields lists of this many batches (`--speed.steps_per_call`)."""
    factors: ClassVar[Mapping[str, int]] = {}
    """Name and number of values of each column of `label` [B, F], if the labels are factors that x is made of."""
    location: ClassVar[str] = ""
    """The file or folder in `data_dir` that exists once the data set is fetched; empty if nothing is fetched."""

    def __init__(
        self,
        data_dir: str = "data",
        batch_size: int = 128,
        eval_batch_size: int = 500,
        resident: Resident = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, size in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if size < 1:
                raise UserError(f"{type(self).__name__}: {name} is {size}; it must be at least 1")
        self.data_dir = str(Path(data_dir).expanduser())
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.resident, self.seed = resident, seed
        self._examples: dict[Split, Examples] = {}

    def __str__(self) -> str:
        """The class's name. Lightning's text loads every split, and fails on a list of loaders."""
        return type(self).__name__

    @abstractmethod
    def load(self, split: Split) -> Examples:
        """Return the examples of a split, read from the files that `prepare_data` has put in place.

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
            self.examples(split)

    def examples(self, split: Split) -> Examples:
        """Return the examples of a split. The first call loads them and moves them to the place that `resident` names.

        Args:
            split: `train`, `val` or `test`.

        Raises:
            UserError: if `load` returns something else than examples.
        """
        if split not in self._examples:
            found: object = self.load(split)
            if not isinstance(found, Examples):
                raise UserError(
                    f"{type(self).__name__}: load({split!r}) returns a {type(found).__name__}; it must return "
                    'Examples({"x": tensor, ...})'
                )
            self._examples[split] = self._place_on_device(found)
        return self._examples[split]

    def paths(self, split: Split) -> list[str] | None:
        """Return the file of each example of a split, in the order of the examples; None if these are not files.

        Args:
            split: `train`, `val` or `test`.
        """
        return None

    def batch_transform(self, split: Split) -> BatchTransform | None:
        """Return what is done to a batch of a split after it was gathered; None for nothing.

        Args:
            split: `train`, `val` or `test`.
        """
        return None

    def dequantised_levels(self, split: Split) -> int | None:
        """Return L if x = (level + u) / L with u ~ U[0, 1), which bits per dimension depend on; None otherwise.

        Args:
            split: `train`, `val` or `test`.
        """
        return None

    def check_batch_size(self) -> None:
        """Refuse a batch size that does not suit the data, before a fit begins; nothing unless overridden."""

    def check_start(self, checkpoint: Mapping[str, Any], path: object) -> None:
        """Refuse the weights of another run if they mean something else under these data; nothing unless overridden.

        It is called before a new fit starts from these weights (`--init_from`). Data whose files give numbers a
        meaning, as texts do, override this.

        Args:
            checkpoint: The contents of the other run's checkpoint.
            path: The checkpoint's file, for the message.
        """

    def facts(self) -> list[str]:
        """Return lines about the data that `check-data` prints beside their sizes; call `prepare_data` first."""
        return []

    def check(self) -> list[str]:
        """Return the faults of the data, one line each. Reads every file; call `prepare_data` first."""
        problems = []
        for split in SPLITS:
            try:
                if not len(self.examples(split)):
                    problems.append(f"{split}: no examples")
            except UserError as error:
                problems.append(f"{split}: {error}")
        return problems

    def train_dataloader(self) -> Loader:
        """Return the loader of this rank's share of the training examples, in an order drawn anew for each epoch."""
        loader = self._loader("train", self.batch_size, train=True)
        loader.batches_per_call = self.batches_per_call
        loader.one_epoch = bool(getattr(self.trainer, "overfit_batches", 0))  # Trainer does not declare the attribute
        return loader

    def val_dataloader(self) -> Loader:
        """Return the loader of this rank's share of the validation examples, in the order of the data set."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> Loader:
        """Return the loader of this rank's share of the test examples, in the order of the data set."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> list[Loader]:
        """Return one loader for each of `predicted_splits`: the examples in order, transformed as in evaluation."""
        return [self._loader(split, self.eval_batch_size) for split in self.predicted_splits]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Return the batch unchanged if its `x` is already on `device`, as `Loader`'s are.

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

    def _loader(self, split: Split, batch_size: int, train: bool = False) -> Loader:
        examples = self.examples(split)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if train and len(examples) < world_size:
            raise UserError(f"train: {len(examples)} examples for {world_size} processes: each needs one or more")
        if not train:
            name = f"{split} of {type(self).__name__}"
            batch_size = evaluation_batch_size(len(examples), batch_size, world_size, name)
        position = self._position if train and self.trainer else int
        transform, device = self.batch_transform(split), self._device()
        return Loader(examples, batch_size, train, transform, self.seed, rank, world_size, device, position)

    def _position(self) -> int:
        """Number of batches that the fit has seen in this epoch; above 0 only if it was resumed within an epoch."""
        assert self.trainer is not None
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready * self.batches_per_call

    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _place_on_device(self, examples: Examples) -> Examples:
        if self.resident == "mmap" and examples.mapping is None:
            raise UserError(
                f"{type(self).__name__}: resident is mmap, but the data are not in a file that can be mapped; choose "
                "--data.resident=auto, memory or device"
            )
        device = self._device()
        if self.resident == "memory" or (self.resident == "device" and device.type == "cpu"):
            return examples.in_memory()
        if self.resident == "device" or (self.resident == "auto" and self._fits_on_device(examples)):
            return examples.to(device)
        return examples

    def _fits_on_device(self, examples: Examples) -> bool:
        """A mapped file counts whole, because the other splits in the file are moved to the device later."""
        device = self._device()
        if device.type == "cuda":
            return examples.nbytes <= torch.cuda.mem_get_info(device)[0] // 2
        return device.type != "cpu"  # in CPU memory already, so nothing is gained by a copy
