"""The types that the whole package shares: shapes, batches, networks, and the error that a user can correct."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

Shape: TypeAlias = tuple[int, ...]
Batch: TypeAlias = dict[str, Tensor]
"""`x`: float32 [B, C, H, W] in [0, 1]; `label`: int64 [B], if the data set has labels."""


END_TOKEN, UNKNOWN_TOKEN, PADDING = 0, 1, -1
"""Numbers in every sequence of words: its last one, a word outside the vocabulary, and what stands behind the end."""


class UserError(ValueError):
    """An error that the user can correct. The message is one line: what is wrong, where, and what would be right.

    `exit_code` is 2 if the error is found before a run begins, and 1 if it is found during the run.
    """

    exit_code = 2


class Network(nn.Module):
    """y = f(x), from tensors [..., *in_shape] to tensors [..., *out_shape]. Networks know nothing of probability.

    A subclass takes `(in_shape, out_shape)` first and its own sizes after them. It sets `layers`, a module from
    [N, *in_shape] to [N, *out_shape], or to as many elements in another shape. This class handles leading dimensions.

    Args:
        in_shape: Shape of one input; the model sets it.
        out_shape: Shape of one output; the model sets it.

    Raises:
        UserError: if a size is below 1, if an input does not end in `in_shape`, or if it holds whole numbers.
    """

    layers: nn.Module
    takes_integers: ClassVar[bool] = False
    """Whether an input may hold whole numbers, as that of a network that begins with an embedding does."""

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        for name, shape in (("in_shape", self.in_shape), ("out_shape", self.out_shape)):
            if not shape or min(shape) < 1:
                varies = " (-1 is a size that differs between batches; give the shape of one step)" * (-1 in shape)
                raise UserError(
                    f"{type(self).__name__}: {name} {shape} has a size below 1; every size must be positive{varies}"
                )

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.shape[-len(self.in_shape) :] != self.in_shape:
            found = list(x.shape) if isinstance(x, Tensor) else f"of type {type(x).__name__}"
            wanted = ", ".join(["...", *map(str, self.in_shape)])
            raise UserError(f"{type(self).__name__}: its input is {found}; it must be a tensor [{wanted}]")
        if not x.is_floating_point() and not self.takes_integers:
            raise UserError(
                f"{type(self).__name__}: its input is {str(x.dtype).removeprefix('torch.')} {list(x.shape)}; it takes "
                "floating-point numbers, such as one_hot(x, num_classes).float() of classes"
            )
        leading = x.shape[: x.dim() - len(self.in_shape)]
        flat = x.reshape(math.prod(leading), *self.in_shape)  # [N, *in_shape]
        return self.layers(flat).reshape(*leading, *self.out_shape)


NetworkRecipe: TypeAlias = Callable[[Shape, Shape], Network]
"""A `Network` class, or a `functools.partial` of one: called as `recipe(in_shape, out_shape)`."""
