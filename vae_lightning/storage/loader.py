"""Batches by index: where the bytes live, in which order they come, and who fetches them ahead of use."""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vae_lightning.noise import derive_seed
from vae_lightning.storage.transforms import Transform
from vae_lightning.types import Batch, UserError

T = TypeVar("T")

_SHUFFLE = 0  # a stream of randomness; those of the transforms are beside it
_EVALUATION_SEED = 0
"""The noise of val and test is drawn once, from this seed, whatever the run's own: one test set for all."""
_KEEP_MAPPED = 512 * 2**20
"""Bytes of files that a pass over a memory map may make resident before it gives their pages back."""
_MAPPED_ROWS = 128
"""Images that are read from a map between two looks at how much is resident: each may make 2 MiB so."""
_EVALUATION_BATCHES = 8
"""A set is evaluated in at least so many batches, so that each of up to as many ranks has one of the same batches."""


@dataclass(frozen=True)
class Images:
    """`pixels`: uint8 [N, C, H, W] with values 0 .. `max_value`; `labels` [N, ...] where the data set has them.

    `mapping`: the memory map that the pixels lie in, where they are read from a file as they are needed. `check`:
    raises UserError where that file was damaged at one of the images with these numbers.
    """

    pixels: Tensor
    labels: Tensor | None = None
    max_value: int = 255
    mapping: mmap.mmap | None = None
    check: Callable[[Tensor], None] | None = None

    def verify(self, index: Tensor | None = None) -> None:
        """Raise UserError where one of these images (None: of all) was damaged in its file. Call it before `pixels` are
        read, unless `ImageLoader` reads them; what lives in memory or on a device was verified on its way there."""
        if self.check is not None:
            self.check(torch.arange(len(self.pixels)) if index is None else index.cpu())

    def to(self, device: torch.device) -> Images:
        if device == self.pixels.device:
            return self
        self.verify()
        labels = None if self.labels is None else self.labels.to(device)
        return Images(self.pixels.to(device), labels, self.max_value)

    def in_memory(self) -> Images:
        self.verify()
        return self if self.mapping is None else Images(self.pixels.clone(), self.labels, self.max_value)


class ImageLoader:
    """Batches `{x, label}` of `images` on `device`, made without a line of Python per image.

    A training loader's order and noise are functions of (seed, epoch, index). The ranks take disjoint slices of the
    order, all of one length, so that no rank waits for another. An evaluation loader covers each image once over all
    ranks: rank r of W takes the batches r, r + W, r + 2 W, ... of those that one rank would take.
    `evaluation_batch_size` makes sure that every rank has a batch. Lightning sets the epoch through
    `sampler.set_epoch`, as for a `DataLoader`.

    Args:
        images: The images of a split.
        batch_size: Images in a batch.
        train: Whether the order is shuffled and images may be flipped. The last batch may be short in both cases.
        transform: From bytes to x; None for pixel / max.
        seed: The seed of order and noise.
        rank: The number of this process.
        world_size: The number of processes.
        device: Where the batches go; None for the device of the images.
        position: Returns the number of batches of the epoch that a resumed fit has seen already.
    """

    batches_per_call = 1
    """Above 1: yield lists of this many batches; the last list may be shorter."""
    one_epoch = False
    """Repeat the order and the noise of the first pass, for `--trainer.overfit_batches`."""

    def __init__(
        self,
        images: Images,
        batch_size: int,
        train: bool,
        transform: Transform | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        position: Callable[[], int] = int,  # int() is 0
    ) -> None:
        transform = transform or Transform(images.max_value)
        self.images, self.batch_size, self.train = images, batch_size, train
        self.transform = transform if train else replace(transform, flip=False)
        self.seed = seed if train else _EVALUATION_SEED
        self.rank, self.world_size = rank, world_size
        self.device = device or images.pixels.device
        self.position = position
        self.epoch = 0
        self.sampler, self.batch_sampler = self, None  # the face of a DataLoader that Lightning looks at
        self._mapped_before = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the next pass; evaluation is the same in every epoch."""
        self.epoch = epoch if self.train and not self.one_epoch else 0

    def state_dict(self) -> dict[str, Any]:
        """Empty: order and position need no state. Lightning treats a loader with `state_dict` as resumable."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `state_dict`."""

    def __len__(self) -> int:
        if not self.train:
            return len(range(self.rank, -(-len(self.images.pixels) // self.batch_size), self.world_size))
        return -(-self.num_batches // self.batches_per_call)

    @property
    def num_batches(self) -> int:
        """Of this rank, in an epoch of training, however many of them are yielded at once."""
        return -(-self._num_images() // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """Lazily: epoch and position are asked for at the first batch, when Lightning has settled both."""
        home = self.images.pixels.device
        if self.images.mapping is not None:  # of the pass before, which would count as there from the start
            self.images.mapping.madvise(mmap.MADV_DONTNEED)
        self._mapped_before = _resident_file_bytes()
        order = self._order()[self.position() * self.batch_size :].to(home, non_blocking=True)
        gathered: Iterable[tuple[Tensor, Batch]] = map(
            self._gather, order.split(self.batch_size * self.batches_per_call)
        )
        if home != self.device or self.images.mapping is not None:
            gathered = ahead(gathered, depth=2)
        for index, batch in gathered:
            index, batch = self._on_device(index), {name: self._on_device(value) for name, value in batch.items()}
            if self.batches_per_call == 1:
                yield self._transformed(index, batch)
            else:  # one by one: what lies between bytes and x of one batch fits in a cache, of many it does not
                yield [self._transformed(*part) for part in self._split(index, batch)]

    def _transformed(self, index: Tensor, batch: Batch) -> Batch:
        total = len(self.images.pixels)
        return {**batch, "x": self.transform(batch["x"], index, self.seed, self.epoch, total)}

    def _split(self, index: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
        parts = [values.split(self.batch_size) for values in (index, *batch.values())]
        for first, *others in zip(*parts, strict=True):
            yield first, dict(zip(batch, others, strict=True))

    def _num_images(self) -> int:
        """Of this rank, in an epoch of training."""
        return len(self.images.pixels) // self.world_size

    def _order(self) -> Tensor:
        total = len(self.images.pixels)
        if not self.train:  # only the set's last batch may be short, and it is some rank's last as well
            return torch.cat(evaluation_batches(total, self.batch_size, self.rank, self.world_size))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, _SHUFFLE, self.epoch))
        return torch.randperm(total, generator=generator)[self.rank :: self.world_size][: self._num_images()]

    def _gather(self, index: Tensor) -> tuple[Tensor, Batch]:
        """The bytes and labels of a batch, in pinned memory where they have to travel to a GPU."""
        self.images.verify(index)
        batch = {"x": self._select(self.images.pixels, index)}
        if self.images.labels is not None:
            batch["label"] = self._select(self.images.labels, index)
        return index, batch

    def _select(self, values: Tensor, index: Tensor) -> Tensor:
        if values.device == self.device and self.images.mapping is None:
            return values.index_select(0, index)
        # by numpy: torch would wake a second team of OpenMP threads for the thread that gathers, to copy a megabyte
        pin = self.device.type == "cuda"
        chosen = torch.empty((len(index), *values.shape[1:]), dtype=values.dtype, pin_memory=pin)
        source, target = values.numpy(), chosen.numpy()
        step = max(1, len(index)) if self.images.mapping is None else _MAPPED_ROWS
        for start in range(0, len(index), step):
            rows = slice(start, start + step)
            np.take(source, index[rows].numpy(), axis=0, out=target[rows], mode="clip")  # "raise" copies twice
            self._give_back()
        return chosen

    def _give_back(self) -> None:
        """Keep resident memory small, which counts mapped pages: up to 2 MiB around each byte that was read.

        The kernel keeps their contents while it has room, so that reading them again is cheap.
        """
        mapping = self.images.mapping
        if mapping is not None and _resident_file_bytes() - self._mapped_before > _KEEP_MAPPED:
            mapping.madvise(mmap.MADV_DONTNEED)

    def _on_device(self, value: Tensor) -> Tensor:
        return value if value.device == self.device else value.to(self.device, non_blocking=True)


def evaluation_batch_size(total: int, batch_size: int, world_size: int) -> int:
    """`batch_size`, or less where `total` images would give fewer than eight batches, or fewer than there are ranks.

    So it is the same for 1 to 8 ranks: they evaluate the same batches, each with that batch's own noise, and find the
    same numbers. More ranks than that do so where there is a batch of `batch_size` for each of them; else their batches
    are smaller, and what is sampled differs by its standard error.
    """
    if total == 0:
        raise UserError("the split has no images: there is nothing to evaluate")
    if total < world_size:
        raise UserError(f"{total} images for {world_size} ranks: each needs one to evaluate; use fewer devices")
    least = max(world_size, min(total, _EVALUATION_BATCHES))
    size = -(-total // least)
    size = size if (least - 1) * size < total else total // least  # rounded up, it may give fewer batches
    return max(1, min(batch_size, size))


def evaluation_batches(total: int, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
    """The images of each batch of a rank: every `world_size`-th batch of the whole order."""
    return list(torch.arange(total).split(batch_size)[rank::world_size])


def first_images(batches: Iterable[Batch], n: int) -> Batch:
    """The first n images, or as many as there are."""
    parts, count = [], 0
    for batch in batches:
        parts.append(batch)
        count += len(batch["x"])
        if count >= n:
            break
    return {name: torch.cat([part[name] for part in parts])[:n] for name in parts[0]}


def _resident_file_bytes() -> int:
    """Of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - at each batch: ten microseconds, not thirty
            return int(file.read().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items in the same order, made by a thread that is at most `depth` items ahead.

    An exception comes through at its place. The thread ends when the items do, or when the iterator is closed.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: T | None, error: BaseException | None = None) -> None:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for item in items:
                put(item)
                if stopped.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:
            put(None, error)

    thread = threading.Thread(target=work, daemon=True, name="gather")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stopped.set()
        thread.join()
