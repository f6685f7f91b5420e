"""All examples of a split, or all images below a folder, batch by batch: at no time are two batches in memory."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vae_lightning.data import CachedImages, DataModule
from vae_lightning.data.folders import printable
from vae_lightning.data.loading import data_of
from vae_lightning.data.module import SPLITS
from vae_lightning.data.own_files import OwnFiles
from vae_lightning.models import LatentVariableModel
from vae_lightning.runs.machine import num_cores
from vae_lightning.storage.decode import IMAGE_SUFFIXES
from vae_lightning.storage.files import list_folder, no_folder
from vae_lightning.storage.progress import Progress
from vae_lightning.types import Batch, UserError
from vae_lightning.verbs._arguments import add_run, add_seed, check_at_least
from vae_lightning.verbs._images import number_of_class

_MOST_NAMES = 20


@dataclass(frozen=True)
class Part:
    """A batch with what is known of each of its n examples.

    Args:
        batch: The batch.
        index: The number of each example among all, [n].
        files: The file of each example; empty if the examples are not files.
        class_names: The name of each example's class; "" where it is unknown.
    """

    batch: Batch
    index: Tensor
    files: list[str]
    class_names: list[str]

    @property
    def names(self) -> list[str]:
        """The file of each example, else its number as text: the column `name` of tables."""
        return self.files or [str(i) for i in self.index.tolist()]


def add_example_arguments(parser: argparse.ArgumentParser) -> None:
    """Add RUN, `--split` or `--folder`, `--label`, `--batch_size` and `--seed`.

    Args:
        parser: The parser of the command.
    """
    add_run(parser)
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--split", choices=SPLITS, default="test", help="the examples of the run's data set")
    source.add_argument("--folder", type=Path, help="a folder of images of your own, with all folders below it")
    parser.add_argument("--label", help="for a conditional model and files: the number or the name of their class")
    parser.add_argument("--batch_size", type=int, default=100, help="the number of images in memory at a time")
    add_seed(parser)


def examples_of(
    arguments: argparse.Namespace, checkpoint: Path, trusted: list[str], model: LatentVariableModel
) -> SplitExamples | FolderExamples:
    """Return the examples that the arguments name.

    Args:
        arguments: The parsed arguments of `add_example_arguments`.
        checkpoint: The run's checkpoint.
        trusted: The packages that `--trust` names.
        model: The run's model.

    Raises:
        UserError: if there are none.
    """
    check_at_least(arguments, batch_size=1)
    data = data_of(checkpoint, trusted, prepare=False)
    if arguments.folder is None:
        if arguments.label is not None:
            raise UserError("--label is for --folder; the examples of a split have labels of their own")
        data.prepare_data()
        return SplitExamples(data, arguments.split, arguments.batch_size)
    if not isinstance(data, CachedImages):  # the pixels' range is known from the data alone
        data.prepare_data()
    folder = arguments.folder.expanduser()
    number = None if arguments.label is None else number_of_class(model, data, arguments.label)
    known = data.class_names or tuple(map(str, range(model.num_labels)))
    examples = FolderExamples(data, folder, arguments.batch_size, number, known)
    if model.num_labels and not examples.has_labels:
        raise UserError(
            f"{type(model).__name__} is given the label of an image: add --label, or put the images of {folder} into "
            "folders that have the names of the run's classes"
        )
    return examples


class SplitExamples:
    """The examples of a split in order, transformed as in evaluation.

    Args:
        data: The run's data set, prepared.
        split: `train`, `val` or `test`.
        batch_size: The number of examples in a batch.
    """

    def __init__(self, data: DataModule, split: str, batch_size: int) -> None:
        data.predicted_splits, data.eval_batch_size = (split,), batch_size  # type: ignore[assignment]
        (self._batches,) = data.predict_dataloader()
        self.data, self.name, self.total = data, split, len(data.examples(split))  # type: ignore[arg-type]
        if not self.total:
            raise UserError(f"{type(data).__name__} has no examples in {split}")
        self._paths = data.paths(split) or []  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Part]:
        first = 0
        with Progress(f"encoding {self.name}", self.total) as progress:
            for batch in self._batches:
                index = torch.arange(first, first + len(batch["x"]))
                files = self._paths[first : first + len(index)]
                yield Part(batch, index, files, _class_names(self.data.class_names, batch, len(index)))
                first += len(index)
                progress.advance(len(index))

    def report(self) -> list[str]:
        """Return lines for the user after the last batch: none."""
        return []


class FolderExamples:
    """The images below a folder, in the form of the run's data set. Files that cannot be read are left out.

    The first folder of an image below `folder` is the name of its class.

    Args:
        data: The run's data set.
        folder: The folder.
        batch_size: The number of files that are in memory at a time.
        label: The number of the class of all files; None for that of their folders.
        known: The names of the run's classes, in order.

    Raises:
        UserError: if there are no images.
    """

    def __init__(
        self, data: DataModule, folder: Path, batch_size: int, label: int | None = None, known: Sequence[str] = ()
    ) -> None:
        self.own, self.folder, self.batch_size, self.label = OwnFiles(data), folder, batch_size, label
        self.name = folder.resolve().name or "folder"
        if not folder.is_dir():
            raise UserError(f"{no_folder(folder)}; --folder takes a folder of images")
        self.paths, _, others = list_folder(folder, IMAGE_SUFFIXES)
        if not self.paths:
            found = f"{sum(others.values())} files of other kinds" if others else "it is empty"
            endings = " ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"{folder}: no images there ({found}); files that end in {endings} are read")
        self.total, self._known = len(self.paths), known
        self.unreadable: list[str] = []
        self._resized: list[str] = []
        self._num_resized = 0

    @property
    def has_labels(self) -> bool:
        """Whether the class of every file is known."""
        return self.label is not None or all(self._class_of(path) in self._known for path in self.paths)

    def _class_of(self, path: Path) -> str:
        parts = path.relative_to(self.folder).parts
        return printable(parts[0]) if parts[1:] else ""

    def __iter__(self) -> Iterator[Part]:
        has_labels = self.has_labels
        with ThreadPoolExecutor(num_cores()) as pool, Progress(f"reading {self.name}", self.total) as progress:
            for start in range(0, self.total, self.batch_size):
                paths = self.paths[start : start + self.batch_size]
                found = [self._kept(*one) for one in pool.map(self._read, paths)]
                kept = [(start + i, paths[i], pixels) for i, pixels in enumerate(found) if pixels is not None]
                progress.advance(len(paths))
                if not kept:
                    continue
                index = torch.tensor([number for number, _, _ in kept])
                batch = self.own.from_pixels([pixels for _, _, pixels in kept], index)
                names = [self._class_of(path) for _, path, _ in kept]
                if has_labels:
                    numbers = [list(self._known).index(name) if self.label is None else self.label for name in names]
                    batch["label"] = torch.tensor(numbers)
                yield Part(batch, index, [printable(str(path)) for _, path, _ in kept], names)
        if len(self.unreadable) == self.total:
            raise UserError(f"{self.folder}: none of its {self.total} images can be read: {self.unreadable[0]}")

    def _read(self, path: Path) -> tuple[Tensor | None, str | None]:
        """The pixels of a file with a note of its size, or None with the reason; it runs on several threads."""
        try:
            return self.own.pixels(path)
        except UserError as error:
            return None, str(error)

    def _kept(self, pixels: Tensor | None, note: str | None) -> Tensor | None:
        """The pixels; the note is counted, or the reason kept."""
        if pixels is None:
            self.unreadable.append(printable(str(note)))
        elif note:
            self._num_resized += 1
            self._resized = self._resized or [printable(note)]
        return pixels

    def report(self) -> list[str]:
        """Return lines for the user after the last batch: how many files were resized, and which were left out."""
        count = f"{self._num_resized:,} of {self.total:,} files"
        lines = [f"{'resized':<12}{count}, such as {note}" for note in self._resized]
        if self.unreadable:
            lines.append(f"{'left out':<12}{len(self.unreadable):,} of {self.total:,} files, which cannot be read:")
            lines += [f"{'':<12}{line}" for line in sorted(self.unreadable)[:_MOST_NAMES]]
            more = len(self.unreadable) - _MOST_NAMES
            lines += [f"{'':<12}and {more:,} more"] if more > 0 else []
        return lines


def _class_names(known: Sequence[str], batch: Batch, count: int) -> list[str]:
    """Return the name of each label, else its number as text; "" if it is unknown, or no single number."""
    label = batch.get("label")
    if label is None or label.dim() != 1 or label.is_floating_point():
        return [""] * count
    return [known[i] if 0 <= i < len(known) else str(i) if i >= 0 else "" for i in label.tolist()]
