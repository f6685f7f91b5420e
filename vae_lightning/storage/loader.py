"""Batches by index: the memory that holds the bytes, the order of an epoch, and a thread that gathers batches early."""

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

_SHUFFLE = 0  # the stream of randomness of the order; the transforms use streams 1 to 3
_EVALUATION_SEED = 0
"""The seed of the noise of val and test, whatever the seed of the run, so that all runs have one test set."""
_MAX_MAPPED_BYTES = 512 * 2**20
"""The bytes of files that a pass over a memory map may make resident before it releases their pages."""
_MAPPED_ROWS_AT_ONCE = 128
"""Images read from a map between two checks of the resident memory. One image may make 2 MiB resident."""
_EVALUATION_BATCHES = 8
"""The least number of batches of an evaluation, so that up to eight ranks can share the same batches."""


@dataclass(frozen=True)
class Images:
    """The images of a split, as bytes, and their labels.

    Args:
        pixels: uint8 [N, C, H, W] with values 0 .. `max_value`.
        labels: [N, ...], or None if the data set has no labels.
        max_value: The value of white.
        mapping: The memory map that holds the pixels, if they are read from a file when they are used.
        check: Takes the numbers of images. Raises UserError if the file was damaged at one of them.
    """

    pixels: Tensor
    labels: Tensor | None = None
    max_value: int = 255
    mapping: mmap.mmap | None = None
    check: Callable[[Tensor], None] | None = None

    def verify(self, index: Tensor | None = None) -> None:
        """Check images before you read `pixels`. `ImageLoader`, `to` and `in_memory` call this themselves.

        Args:
            index: The numbers of the images; None for all.

        Raises:
            UserError: if one of the images was damaged in its file.
        """
        if self.check is not None:
            self.check(torch.arange(len(self.pixels)) if index is None else index.cpu())

    def to(self, device: torch.device) -> Images:
        """Check all images and copy them to a device; the images themselves if they are there already.

        Args:
            device: Where the copies live.
        """
        if device == self.pixels.device:
            return self
        self.verify()
        labels = None if self.labels is None else self.labels.to(device)
        return Images(self.pixels.to(device), labels, self.max_value)

    def in_memory(self) -> Images:
        """Check all images and copy them from their memory map, if they lie in one, to memory."""
        self.verify()
        return self if self.mapping is None else Images(self.pixels.clone(), self.labels, self.max_value)


class ImageLoader:
    """Batches `{x, label}` of `images` on `device`, made without a line of Python per image.

    Order and noise of a training loader are functions of (seed, epoch, index). The ranks take disjoint slices of the
    order, all of one length, so that no rank waits for another. An evaluation loader yields each image once over all
    ranks: rank r of W takes the batches r, r + W, r + 2 W, ... that a single rank would take. `evaluation_batch_size`
    makes sure that every rank has a batch. Lightning sets the epoch by `sampler.set_epoch`, as for a `DataLoader`.

    Args:
        images: The images of a split.
        batch_size: Images in a batch.
        train: Whether the order is shuffled and images may be flipped. The last batch may be short in both cases.
        transform: Makes x from bytes; None for x = pixel / max.
        seed: The seed of order and noise.
        rank: The number of this process.
        world_size: The number of processes.
        device: Where the batches go; None for the device of the images.
        position: Returns the number of batches of the epoch that a resumed fit has seen already. Called when the first
            batch of an epoch is taken.
    """

    batches_per_call = 1
    """If above 1, yield lists of this many batches; the last list may be shorter."""
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
        self.sampler, self.batch_sampler = self, None  # the attributes of a DataLoader that Lightning reads
        self._resident_before = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass. Evaluation is the same in every epoch.

        Args:
            epoch: The epoch, from 0.
        """
        self.epoch = epoch if self.train and not self.one_epoch else 0

    def state_dict(self) -> dict[str, Any]:
        """Empty: order and position need no state. Lightning treats a loader with `state_dict` as resumable."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load; see `state_dict`.

        Args:
            state: Ignored.
        """

    def __len__(self) -> int:
        if not self.train:
            return len(range(self.rank, -(-len(self.images.pixels) // self.batch_size), self.world_size))
        return -(-self.num_batches // self.batches_per_call)

    @property
    def num_batches(self) -> int:
        """The number of batches of this rank in an epoch of training, whatever `batches_per_call` is."""
        return -(-self._num_images() // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch. Epoch and position are read at the first batch, because Lightning sets both late."""
        source_device = self.images.pixels.device
        if self.images.mapping is not None:  # pages of the last pass would count as resident before this one
            self.images.mapping.madvise(mmap.MADV_DONTNEED)
        self._resident_before = _resident_file_bytes()
        order = self._order()[self.position() * self.batch_size :].to(source_device, non_blocking=True)
        gathered: Iterable[tuple[Tensor, Batch]] = map(
            self._gather, order.split(self.batch_size * self.batches_per_call)
        )
        if source_device != self.device or self.images.mapping is not None:
            gathered = prefetch(gathered, depth=2)
        for index, batch in gathered:
            index, batch = self._on_device(index), {name: self._on_device(value) for name, value in batch.items()}
            if self.batches_per_call == 1:
                yield self._transformed(index, batch)
            else:  # one by one, because the intermediate tensors of one batch fit in the processor's cache
                yield [self._transformed(*one) for one in self._split(index, batch)]

    def _transformed(self, index: Tensor, batch: Batch) -> Batch:
        total = len(self.images.pixels)
        return {**batch, "x": self.transform(batch["x"], index, self.seed, self.epoch, total)}

    def _split(self, index: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
        """Split what was gathered at once into batches of `batch_size`."""
        parts = [values.split(self.batch_size) for values in (index, *batch.values())]
        for first, *others in zip(*parts, strict=True):
            yield first, dict(zip(batch, others, strict=True))

    def _num_images(self) -> int:
        """The number of images of this rank in an epoch of training."""
        return len(self.images.pixels) // self.world_size

    def _order(self) -> Tensor:
        """The numbers of the images of this rank, in the order of this epoch."""
        total = len(self.images.pixels)
        if not self.train:  # only the last batch of the set may be short, and it is the last batch of its rank
            return torch.cat(evaluation_batches(total, self.batch_size, self.rank, self.world_size))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, _SHUFFLE, self.epoch))
        return torch.randperm(total, generator=generator)[self.rank :: self.world_size][: self._num_images()]

    def _gather(self, index: Tensor) -> tuple[Tensor, Batch]:
        """Check and gather the bytes and labels of a batch; in pinned memory if they will be copied to a GPU."""
        self.images.verify(index)
        batch = {"x": self._select(self.images.pixels, index)}
        if self.images.labels is not None:
            batch["label"] = self._select(self.images.labels, index)
        return index, batch

    def _select(self, values: Tensor, index: Tensor) -> Tensor:
        if values.device == self.device and self.images.mapping is None:
            return values.index_select(0, index)
        # numpy copies, because torch would wake a second team of OpenMP threads for the thread that gathers
        pin = self.device.type == "cuda"
        chosen = torch.empty((len(index), *values.shape[1:]), dtype=values.dtype, pin_memory=pin)
        source, target = values.numpy(), chosen.numpy()
        step = max(1, len(index)) if self.images.mapping is None else _MAPPED_ROWS_AT_ONCE
        for start in range(0, len(index), step):
            rows = slice(start, start + step)
            np.take(source, index[rows].numpy(), axis=0, out=target[rows], mode="clip")  # mode="raise" would copy twice
            self._release_pages()
        return chosen

    def _release_pages(self) -> None:
        """Release the pages of the map if too many are resident: up to 2 MiB around each byte that was read.

        Resident memory counts them. The kernel keeps their contents while it has room, so reading them again is cheap.
        """
        mapping = self.images.mapping
        if mapping is not None and _resident_file_bytes() - self._resident_before > _MAX_MAPPED_BYTES:
            mapping.madvise(mmap.MADV_DONTNEED)

    def _on_device(self, value: Tensor) -> Tensor:
        return value if value.device == self.device else value.to(self.device, non_blocking=True)


def evaluation_batch_size(total: int, batch_size: int, world_size: int) -> int:
    """The batch size of an evaluation: at most `batch_size`, and small enough for eight batches and one per rank.

    The result is the same for 1 to 8 ranks. These evaluate the same batches with the same noise and get the same
    numbers. More than 8 ranks also do so if there is a batch of `batch_size` for each of them. Otherwise their batches
    are smaller, and sampled numbers differ by their standard error.

    Args:
        total: The number of images.
        batch_size: The largest batch.
        world_size: The number of ranks.

    Raises:
        UserError: if there is no image, or fewer images than ranks.
    """
    if total == 0:
        raise UserError("the split has no images: there is nothing to evaluate")
    if total < world_size:
        raise UserError(f"{total} images for {world_size} ranks: each needs one to evaluate; use fewer devices")
    min_batches = max(world_size, min(total, _EVALUATION_BATCHES))
    size = -(-total // min_batches)
    size = size if (min_batches - 1) * size < total else total // min_batches  # rounded up, it may give fewer batches
    return max(1, min(batch_size, size))


def evaluation_batches(total: int, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
    """The numbers of the images of each batch of a rank: every `world_size`-th batch of the whole order.

    Args:
        total: The number of images.
        batch_size: Images in a batch.
        rank: The number of this process.
        world_size: The number of processes.
    """
    return list(torch.arange(total).split(batch_size)[rank::world_size])


def first_images(batches: Iterable[Batch], n: int) -> Batch:
    """Join batches until there are n images; fewer if the batches hold fewer.

    Args:
        batches: Batches of a loader.
        n: The number of images.
    """
    parts, count = [], 0
    for batch in batches:
        parts.append(batch)
        count += len(batch["x"])
        if count >= n:
            break
    return {name: torch.cat([part[name] for part in parts])[:n] for name in parts[0]}


def _resident_file_bytes() -> int:
    """The bytes of files that are resident in this process; 0 on a system without /proc."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - Path.open takes three times as long
            return int(file.read().split()[2]) * mmap.PAGESIZE
    except OSError:
        return 0


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items in the same order, made early by a thread.

    An exception is raised at its place among the items. The thread ends with the items, or when the iterator is closed.

    Args:
        items: What the thread iterates over.
        depth: The number of items that may wait.
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


ahead = prefetch
"""The name of `prefetch` in earlier releases."""
