"""Batches by index: the memory that holds the bytes, the order of an epoch, and a thread that gathers batches early."""

from __future__ import annotations

import mmap
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from vae_lightning.noise import derive_seed
from vae_lightning.storage.examples import Examples, Images, spread_windows, take_rows, whole_sequences
from vae_lightning.storage.transforms import BatchTransform, Draw, Transform
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


class Loader:
    """Batches of `examples` on `device`, made without a line of Python per example.

    Order and noise of a training loader are functions of (seed, epoch, index). The ranks take disjoint slices of the
    order, all of one length, so that no rank waits for another. An evaluation loader yields each image once over all
    ranks: rank r of W takes the batches r, r + W, r + 2 W, ... that a single rank would take. `evaluation_batch_size`
    makes sure that every rank has a batch. Lightning sets the epoch by `sampler.set_epoch`, as for a `DataLoader`.

    Args:
        examples: The examples of a split.
        batch_size: Examples in a batch.
        train: Whether the order is shuffled. The last batch may be short in both cases.
        transform: Changes a batch; None for x = pixel / max of images, and for examples as they are stored.
        seed: The seed of order and noise.
        rank: The number of this process.
        world_size: The number of processes.
        device: Where the batches go; None for the device of the examples.
        position: Returns the number of batches of the epoch that a resumed fit has seen already. Called when the first
            batch of an epoch is taken.
    """

    batches_per_call = 1
    """If above 1, yield lists of this many batches; the last list may be shorter."""
    one_epoch = False
    """Repeat the order and the noise of the first pass, for `--trainer.overfit_batches`."""

    def __init__(
        self,
        examples: Examples,
        batch_size: int,
        train: bool,
        transform: BatchTransform | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        position: Callable[[], int] = int,  # int() is 0
    ) -> None:
        if transform is None and isinstance(examples, Images):
            transform = Transform(examples.max_value)
        self.examples, self.batch_size, self.train = examples, batch_size, train
        if train and examples.group is not None:
            check_share("examples: group_share", examples.group_share, batch_size)
        self.transform = transform if train or transform is None else transform.in_evaluation()
        self.seed = seed if train else _EVALUATION_SEED
        self.rank, self.world_size = rank, world_size
        self.device = device or examples.device
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
            return len(range(self.rank, -(-len(self.examples) // self.batch_size), self.world_size))
        return -(-self.num_batches // self.batches_per_call)

    @property
    def num_batches(self) -> int:
        """The number of batches of this rank in an epoch of training, whatever `batches_per_call` is."""
        return -(-self._num_examples() // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        """The batches of an epoch. Epoch and position are read at the first batch, because Lightning sets both late."""
        source_device = self.examples.device
        if self.examples.mapping is not None:  # pages of the last pass would count as resident before this one
            self.examples.mapping.madvise(mmap.MADV_DONTNEED)
        self._resident_before = _resident_file_bytes()
        order = self._order()[self.position() * self.batch_size :].to(source_device, non_blocking=True)
        gathered: Iterable[tuple[Tensor, Batch]] = map(
            self._gather, order.split(self.batch_size * self.batches_per_call)
        )
        if source_device != self.device or self.examples.mapping is not None:
            gathered = prefetch(gathered, depth=2)
        for index, batch in gathered:
            index, batch = self._on_device(index), {name: self._on_device(value) for name, value in batch.items()}
            if self.batches_per_call == 1:
                yield self._transformed(index, batch)
            else:  # one by one, because the intermediate tensors of one batch fit in the processor's cache
                yield [self._transformed(*one) for one in self._split(index, batch)]

    def whole_sequences(self, n: int) -> Batch:
        """The first n sequences that the examples are windows of, transformed as a batch is.

        Args:
            n: The largest number of sequences.
        """
        found = whole_sequences(self.examples, n)
        return self._stored(torch.arange(len(found["x"]), device=self.examples.device), found)

    def spread_windows(self, n: int) -> Batch:
        """Windows of n different sequences, or several of each where there are fewer, transformed as a batch is.

        Args:
            n: The largest number of windows.
        """
        assert self.examples.windows is not None
        index = spread_windows(self.examples.windows, n)
        return self._stored(index, self.examples.select(index))

    def _stored(self, index: Tensor, fields: Batch) -> Batch:
        """Examples as they are stored as a batch."""
        moved = {name: self._on_device(values) for name, values in fields.items()}
        return self._transformed(self._on_device(index), moved)

    def _transformed(self, index: Tensor, batch: Batch) -> Batch:
        if self.transform is None:
            return batch
        changed = self.transform.apply(batch, Draw(index, self.seed, self.epoch, len(self.examples)))
        if not changed.keys() <= self.transform.changes:
            raise UserError(
                f"{type(self.transform).__name__}: it changes {', '.join(changed)}, and names "
                f"{', '.join(self.transform.changes) or 'nothing'} in `changes`; name every field that it changes"
            )
        return {**batch, **changed}

    def _split(self, index: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Batch]]:
        """Split what was gathered at once into batches of `batch_size`."""
        parts = [values.split(self.batch_size) for values in (index, *batch.values())]
        for first, *others in zip(*parts, strict=True):
            yield first, dict(zip(batch, others, strict=True))

    def _num_examples(self) -> int:
        """The number of examples of this rank in an epoch of training."""
        return len(self.examples) // self.world_size

    def _order(self) -> Tensor:
        """The numbers of the examples of this rank, in the order of this epoch."""
        total = len(self.examples)
        if not self.train:  # only the last batch of the set may be short, and it is the last batch of its rank
            return torch.cat(evaluation_batches(total, self.batch_size, self.rank, self.world_size))
        generator = torch.Generator().manual_seed(derive_seed(self.seed, _SHUFFLE, self.epoch))
        if self.examples.group is not None:
            return self._grouped_order(self.examples.group.cpu(), generator)
        return torch.randperm(total, generator=generator)[self.rank :: self.world_size][: self._num_examples()]

    def _grouped_order(self, group: Tensor, generator: torch.Generator) -> Tensor:
        """The order if a share of each batch is drawn from a group: the same share of every batch of every rank.

        Within the group, and outside, examples come in shuffled rounds, so each is seen about equally often.
        """
        size = self._num_examples()
        place = torch.arange(size)
        first = place - place % self.batch_size  # of the batch; the last batch may be short, and has its share too
        from_group = ((size - first).clamp(max=self.batch_size) * self.examples.group_share).round()
        is_grouped = place - first < from_group  # one rank's
        order = torch.empty(size, dtype=torch.long)
        for place, members in ((is_grouped, group), (~is_grouped, ~group)):
            numbers, wanted = members.nonzero().flatten(), int(place.sum()) * self.world_size  # of all ranks
            rounds = [torch.randperm(len(numbers), generator=generator) for _ in range(-(-wanted // len(numbers)))]
            if rounds:
                order[place] = numbers[torch.cat(rounds)[:wanted]][self.rank :: self.world_size]
        return order

    def _gather(self, index: Tensor) -> tuple[Tensor, Batch]:
        """Check and gather the fields of a batch; in pinned memory if they will be copied to a GPU."""
        self.examples.verify(index)
        return index, {name: self._select(*self.examples.rows(name, index)) for name in self.examples.fields}

    def _select(self, values: Tensor, index: Tensor) -> Tensor:
        if values.device == self.device and self.examples.mapping is None:
            return values.index_select(0, index) if values.is_contiguous() else values[index]
        pin = self.device.type == "cuda"
        chosen = torch.empty((len(index), *values.shape[1:]), dtype=values.dtype, pin_memory=pin)
        step = max(1, len(index)) if self.examples.mapping is None else _MAPPED_ROWS_AT_ONCE
        for start in range(0, len(index), step):
            rows = slice(start, start + step)
            take_rows(values, index[rows], chosen[rows])
            self._release_pages()
        return chosen

    def _release_pages(self) -> None:
        """Release the pages of the map if too many are resident: up to 2 MiB around each byte that was read.

        Resident memory counts them. The kernel keeps their contents while it has room, so reading them again is cheap.
        """
        mapping = self.examples.mapping
        if mapping is not None and _resident_file_bytes() - self._resident_before > _MAX_MAPPED_BYTES:
            mapping.madvise(mmap.MADV_DONTNEED)

    def _on_device(self, value: Tensor) -> Tensor:
        return value if value.device == self.device else value.to(self.device, non_blocking=True)


def check_share(name: str, share: float, batch_size: int) -> None:
    """Refuse a share that rounds to no example of a batch, or to all: the batches would leave out a part of the data.

    Args:
        name: The setting of the share, for the message.
        share: The share of each training batch that is drawn from a group.
        batch_size: Examples in a batch.

    Raises:
        UserError: if this is so.
    """
    if not 0 < round(share * batch_size) < batch_size:
        raise UserError(
            f"{name} {share:.4g} of a batch of {batch_size} is {round(share * batch_size)} examples, and a batch needs "
            "examples within and outside the group; choose a larger --data.batch_size or another share"
        )


def evaluation_batch_size(total: int, batch_size: int, world_size: int, name: str = "the split") -> int:
    """The batch size of an evaluation: at most `batch_size`, and small enough for eight batches and one per rank.

    The result is the same for 1 to 8 ranks. These evaluate the same batches with the same noise and get the same
    numbers. More than 8 ranks also do so if there is a batch of `batch_size` for each of them. Otherwise their batches
    are smaller, and sampled numbers differ by their standard error.

    Args:
        total: The number of examples.
        batch_size: The largest batch.
        world_size: The number of ranks.
        name: The split and its data set, for messages.

    Raises:
        UserError: if there is no example, or fewer examples than ranks.
    """
    if total == 0:
        raise UserError(f"{name} has no examples: there is nothing to evaluate")
    if total < world_size:
        raise UserError(f"{total} examples for {world_size} ranks: each needs one to evaluate; use fewer devices")
    min_batches = max(world_size, min(total, _EVALUATION_BATCHES))
    size = -(-total // min_batches)
    size = size if (min_batches - 1) * size < total else total // min_batches  # rounded up, it may give fewer batches
    return max(1, min(batch_size, size))


def evaluation_batches(total: int, batch_size: int, rank: int, world_size: int) -> list[Tensor]:
    """The numbers of the examples of each batch of a rank: every `world_size`-th batch of the whole order.

    Args:
        total: The number of examples.
        batch_size: Examples in a batch.
        rank: The number of this process.
        world_size: The number of processes.
    """
    return list(torch.arange(total).split(batch_size)[rank::world_size])


def first_images(batches: Iterable[Batch], n: int) -> Batch:
    """Join batches until there are n examples; fewer if the batches hold fewer. Windows are of different sequences.

    Args:
        batches: A loader, or its batches.
        n: The number of examples.
    """
    if isinstance(batches, Loader) and batches.examples.windows is not None:
        return batches.spread_windows(n)
    parts, count = [], 0
    for batch in batches:
        parts.append(batch)
        count += len(batch["x"])
        if count >= n:
            break
    return {name: torch.cat([part[name] for part in parts])[:n] for name in parts[0]}


def first_sequences(batches: Iterable[Batch], n: int) -> Batch:
    """Join n examples, as `first_images` does; whole sequences where the examples are windows of them.

    Args:
        batches: A loader, or its batches.
        n: The number of examples or sequences.
    """
    if not isinstance(batches, Loader) or batches.examples.windows is None:
        return first_images(batches, n)
    return batches.whole_sequences(n)


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


ImageLoader = Loader
"""The name of `Loader` in earlier releases."""
ahead = prefetch
"""The name of `prefetch` in earlier releases."""
