"""The examples of a split: named arrays, gathered by one index; images are the case of two fields."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Mapping, Set
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from vae_lightning.types import UserError


@dataclass(frozen=True)
class Windows:
    """Parts of sequences that are examples of their own; the fields stay as they are, and no part is copied before use.

    Args:
        length: L, the number of steps in a window.
        start: The first step of each window in the joined sequences, [N].
        sequence: The number of the sequence of each window, [N].
        stepwise: The fields [steps, ...] that have a row for each step; the others have one for each sequence.
    """

    length: int
    start: Tensor
    sequence: Tensor
    stepwise: Set[str]


class Examples:
    """Named arrays that one index gathers: row i of every field belongs to example i.

    Use this for data of any shape and dtype: video, token numbers with their `length`, transitions, tables. The field
    `x` is what the model explains; the others stand beside it in the batch.

    Args:
        fields: Tensors [N, ...] by name.
        mapping: The memory map that the fields lie in, if they are read from a file when they are used.
        check: Takes the numbers of examples. Raises UserError if the file was damaged at one of them.
        group: Which examples are of a group, bool [N]; None without one. Example: terminal transitions, which are rare.
        group_share: The share of each training batch that is drawn from the group, above 0 and below 1.
        windows: Which parts of sequences are the examples; the function `windows` makes this. None for whole rows.

    Raises:
        UserError: if a field is no tensor, if the fields differ in length, or if the group or its share is not
            possible.
    """

    def __init__(
        self,
        fields: Mapping[str, Tensor],
        mapping: mmap.mmap | None = None,
        check: Callable[[Tensor], None] | None = None,
        group: Tensor | None = None,
        group_share: float = 0.5,
        windows: Windows | None = None,
    ) -> None:
        self.fields, self.mapping, self.check, self.windows = dict(fields), mapping, check, windows
        self.group, self.group_share = group, group_share
        if "x" not in self.fields:
            raise UserError(f"examples: no field x; the fields are {', '.join(self.fields) or 'none'}")
        for name, values in self.fields.items():
            if not isinstance(values, Tensor) or values.dim() == 0:
                found = "a single number" if isinstance(values, Tensor) else f"a {type(values).__name__}"
                raise UserError(f"examples: {name} is {found}; it must be a tensor [N, ...], as of torch.from_numpy")
        lengths = {name: len(values) for name, values in self.fields.items()}
        if windows is None and len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise UserError(f"examples: the fields differ in length: {found}; row i of each belongs to example i")
        if group is not None:
            self._check_group(group, group_share)

    def _check_group(self, group: Tensor, share: float) -> None:
        if group.dtype != torch.bool or group.shape != (len(self),):
            raise UserError(f"examples: group is {group.dtype} {list(group.shape)}; it must be bool [{len(self)}]")
        if not 0 < share < 1:
            raise UserError(f"examples: group_share is {share}; it must be above 0 and below 1")
        if group.all() or not group.any():
            raise UserError(
                f"examples: {int(group.sum())} of {len(group)} examples are in the group; a share of a batch needs "
                "examples within and outside"
            )

    def __len__(self) -> int:
        return len(self.fields["x"] if self.windows is None else self.windows.start)

    @property
    def device(self) -> torch.device:
        """Where the fields live."""
        return self.fields["x"].device

    @property
    def nbytes(self) -> int:
        """The bytes of all fields; of the whole file if they lie in a memory map, because other splits follow."""
        if self.mapping is not None:
            return len(self.mapping)
        return sum(values.nbytes for values in self.fields.values())

    def verify(self, index: Tensor | None = None) -> None:
        """Check examples before you read the fields. A loader, `to` and `in_memory` call this themselves.

        Args:
            index: The numbers of the examples; None for all.

        Raises:
            UserError: if one of the examples was damaged in its file.
        """
        if self.check is not None:
            self.check(torch.arange(len(self)) if index is None else index.cpu())

    def to(self, device: torch.device) -> Self:
        """Check all examples and copy them to a device; the examples themselves if they are there already.

        Args:
            device: Where the copies live.
        """
        if device == self.device:
            return self
        self.verify()
        return self._with_fields({name: values.to(device) for name, values in self.fields.items()}, device)

    def in_memory(self) -> Self:
        """Check all examples and copy them from their memory map, if they lie in one, to memory."""
        self.verify()
        if self.mapping is None:
            return self
        return self._with_fields({name: values.clone() for name, values in self.fields.items()}, self.device)

    def _with_fields(self, fields: dict[str, Tensor], device: torch.device) -> Self:
        moved = copy(self)
        moved.fields, moved.mapping, moved.check = fields, None, None
        if self.windows is not None:
            start, sequence = self.windows.start.to(device), self.windows.sequence.to(device)
            moved.windows = replace(self.windows, start=start, sequence=sequence)
        return moved

    def rows(self, name: str, index: Tensor) -> tuple[Tensor, Tensor]:
        """The array of a field and the rows in it that belong to the examples `index`: [M, ...] and [B].

        For windows the array is a view in which neighbouring rows overlap: copy rows of it, never all of it.

        Args:
            name: The field.
            index: The numbers of the examples, [B].
        """
        values = self.fields[name]
        if self.windows is None:
            return values, index
        if name not in self.windows.stepwise:
            return values, self.windows.sequence[index]
        view = values.unfold(0, self.windows.length, 1).movedim(-1, 1)  # [M - L + 1, L, ...]
        return view, self.windows.start[index]

    def select(self, index: Tensor) -> dict[str, Tensor]:
        """A batch of the examples `index`, as they are stored; for tests and metrics, not for a training loop.

        Args:
            index: The numbers of the examples, [B].
        """
        self.verify(index)
        found = {name: self.rows(name, index) for name in self.fields}
        return {name: values[rows] for name, (values, rows) in found.items()}


def windows(
    fields: Mapping[str, Tensor], lengths: Tensor, length: int, stepwise: Set[str] | None = None, **options: Any
) -> Examples:
    """Every part of `length` steps of every sequence as an example of its own, never across two sequences.

    Use it for training on parts of long sequences, and whole sequences for testing. Nothing is copied: a window is a
    view of the joined sequences.

    Args:
        fields: `x` and the other stepwise fields hold the sequences one after the other, [steps of all, ...]; other
            fields have one row for each sequence.
        lengths: The number of steps of each sequence, [num_sequences].
        length: L, the number of steps in a window; sequences that are shorter give no window.
        stepwise: The names of the stepwise fields; None for those with as many rows as there are steps.
        options: Further arguments of `Examples`; a group is one of windows.

    Raises:
        UserError: if the fields do not fit the lengths, or if every sequence is shorter than a window.
    """
    steps, num_sequences = int(lengths.sum()), len(lengths)
    names = frozenset(stepwise or (name for name, values in fields.items() if len(values) == steps))
    for name, values in fields.items():
        wanted = steps if name in names or name == "x" else num_sequences
        if len(values) != wanted:
            raise UserError(
                f"windows: {name} has {len(values)} rows; it must have one for each of the {steps} steps"
                + ("" if name == "x" else f", or of the {num_sequences} sequences")
            )
    per_sequence = (lengths - length + 1).clamp(min=0)
    if length < 1 or not int(per_sequence.sum()):
        raise UserError(f"windows: the longest sequence has {int(lengths.max())} steps; a window cannot have {length}")
    sequence = torch.arange(num_sequences).repeat_interleave(per_sequence)
    within = torch.arange(len(sequence)) - (per_sequence.cumsum(0) - per_sequence)[sequence]
    start = (lengths.cumsum(0) - lengths)[sequence] + within
    return Examples(fields, windows=Windows(length, start, sequence, names), **options)


def join(sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences of one length [N, T, ...] as (steps [N T, ...], lengths [N]), the form that `windows` takes.

    Args:
        sequences: One sequence a row.
    """
    return sequences.flatten(0, 1), torch.full((len(sequences),), sequences.shape[1])


def whole_sequences(examples: Examples, count: int) -> dict[str, Tensor]:
    """The first sequences that the examples are windows of, cut to the shortest of them; as they are stored.

    Use it to look at more of a sequence than a window shows. Examples that are not windows are returned as they are.

    Args:
        examples: The examples.
        count: The largest number of sequences.
    """
    parts = examples.windows
    if parts is None:
        return examples.select(torch.arange(min(count, len(examples)), device=examples.device))
    numbers = parts.sequence.unique()[:count]
    mine = [parts.start[parts.sequence == number] for number in numbers]
    first = torch.stack([starts.min() for starts in mine])
    length = min(int(starts.max() - starts.min()) for starts in mine) + parts.length
    examples.verify(torch.isin(parts.sequence, numbers).nonzero().flatten())
    steps = first[:, None] + torch.arange(length, device=first.device)
    return {name: values[steps if name in parts.stepwise else numbers] for name, values in examples.fields.items()}


def spread_windows(parts: Windows, count: int) -> Tensor:
    """The numbers of windows of as many different sequences as there are, evenly spread in each: int64 [n].

    Use it to show windows: those that begin one step after the other look alike.

    Args:
        parts: The windows.
        count: The largest number of windows.
    """
    numbers, counts = parts.sequence.unique_consecutive(return_counts=True)
    firsts, each = counts.cumsum(0) - counts, -(-count // len(numbers))
    chosen = [
        first + torch.linspace(0, int(number) - 1, min(each, int(number))).long()
        for first, number in zip(firsts.cpu(), counts.cpu(), strict=True)
    ]
    return torch.cat(chosen)[:count].to(parts.start.device)


class Images(Examples):
    """The images of a split, as bytes, and their labels: the fields `x` and `label`.

    Args:
        pixels: uint8 [N, C, H, W] with values 0 .. `max_value`.
        labels: [N, ...], or None if the data set has no labels.
        max_value: The value of white.
        mapping: The memory map that holds the pixels, if they are read from a file when they are used.
        check: Takes the numbers of images. Raises UserError if the file was damaged at one of them.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor | None = None,
        max_value: int = 255,
        mapping: mmap.mmap | None = None,
        check: Callable[[Tensor], None] | None = None,
    ) -> None:
        super().__init__({"x": pixels, **({} if labels is None else {"label": labels})}, mapping, check)
        self.max_value = max_value

    @property
    def pixels(self) -> Tensor:
        """uint8 [N, C, H, W]."""
        return self.fields["x"]

    @property
    def labels(self) -> Tensor | None:
        """[N, ...], or None if the data set has no labels."""
        return self.fields.get("label")


def take_rows(source: Tensor, rows: Tensor, target: Tensor) -> None:
    """target = source[rows], by numpy: torch would wake a second team of OpenMP threads for the thread that gathers.

    Args:
        source: The array, on the CPU; rows of a view may overlap.
        rows: Their numbers.
        target: Where the rows go, contiguous.
    """
    array, chosen = source.numpy(), target.numpy()
    if source.is_contiguous():
        np.take(array, rows.numpy(), axis=0, out=chosen, mode="clip")  # mode="raise" would copy twice
    else:
        chosen[...] = array[rows.numpy()]  # np.take would first copy the whole view
