"""How examples are shown: as images, as clips, or as lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import Tensor

from vae_lightning.types import Batch, UserError

Shown: TypeAlias = Tensor | list[str]
"""Images [n, C, H, W] or clips [n, T, C, H, W] in [0, 1], or one line of text for each of n examples."""

_BACKGROUND = (90, 90, 90)
_COLOURS = (
    (230, 60, 50),
    (60, 170, 70),
    (60, 100, 230),
    (240, 190, 40),
    (170, 80, 200),
    (60, 200, 210),
    (240, 240, 240),
)


class NoPictureError(UserError):
    """The data have no picture; the message says what the user can do."""


def show(data: object, x: Tensor, like: Tensor | None = None) -> Shown | None:
    """Return how examples are shown: by the data module's `show(x)` if it has one.

    Without one, floats [n, C, H, W] are images and [n, T, C, H, W] clips. Floats [n, D] and [n, R, D] are signals: grey
    images with one row, or R rows, from black for the smallest to white for the largest value.

    Args:
        data: The data module, or None.
        x: The examples, or reconstructions or samples of them: [n, ...].
        like: For a signal, the examples whose smallest and largest value are black and white; None for x itself.

    Returns:
        None if the examples have no picture.

    Raises:
        UserError: if `show(x)` returned something else, or another number of examples.
    """
    own = getattr(data, "show", None)
    if own is None:
        return _default(x, x if like is None else like)
    return checked(own(x), len(x), f"{type(data).__name__}.show(x)")


def checked(shown: Any, count: int, source: str) -> Shown | None:
    """Return what a user's function has returned, if it can be drawn; tuples of text become lists.

    Args:
        shown: The returned value.
        count: The number of examples.
        source: The function, for the message.

    Raises:
        UserError: if the value is neither None, images, clips nor one line of text for each example.
    """
    is_text = isinstance(shown, list | tuple) and all(isinstance(line, str) for line in shown)
    is_pixels = isinstance(shown, Tensor) and shown.dim() in (4, 5) and shown.numel() > 0
    if shown is None or ((is_text or is_pixels) and len(shown) == count):
        return list(shown) if is_text else shown
    kind = type(shown).__name__ + (f" {list(shown.shape)}" if isinstance(shown, Tensor) else "")
    raise UserError(
        f"{source} returned a {kind} for {count} examples; it returns images [n, C, H, W], clips [n, T, C, H, W] or "
        "a list with one text for each example"
    )


def is_map(value: object) -> TypeGuard[Tensor]:
    """Whether a value is a map: whole numbers [n, H, W], the segment or the object of each pixel.

    Args:
        value: Anything.
    """
    return isinstance(value, Tensor) and value.dim() == 3 and not (value.is_floating_point() or value.is_complex())


def in_colours(numbers: Tensor) -> Tensor:
    """Return pictures of maps, [n, 3, H, W] in [0, 1]: 0 is grey, each other number has its colour, again after seven.

    Args:
        numbers: Whole numbers from 0, [n, H, W].
    """
    colours = torch.tensor((_BACKGROUND, *_COLOURS), device=numbers.device) / 255
    numbers = numbers.long()
    return colours[(1 + (numbers - 1) % len(_COLOURS)).where(numbers > 0, 0)].movedim(-1, 1)


def no_picture(x: Tensor) -> NoPictureError:
    """Return the error that says that examples such as `x` have no picture.

    Args:
        x: The examples [n, ...].
    """
    return NoPictureError(f"x of shape {list(x.shape[1:])} has no picture; give the data module a show(x)")


def names_of_classes(data: object, batch: Mapping[str, Any], count: int) -> list[str]:
    """Return the name of each example's class; an empty list if the data have no names, or the batch no labels.

    Args:
        data: The data module, or None.
        batch: The batch, with `label` [n] if the data have labels; a label below 0 is unknown.
        count: The number of examples.
    """
    names: Sequence[str] = getattr(data, "class_names", ()) or ()
    label = batch.get("label")
    if not names or not isinstance(label, Tensor) or label.dim() != 1 or label.is_floating_point():
        return []
    return [names[i] if 0 <= i < len(names) else "?" for i in label[:count].tolist()]


def on_device(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Return the batch as a trainer would give it to the model: on its device, floats in its precision.

    Args:
        batch: A loader's batch.
        device: The device of the model.
        dtype: The precision of the model.
    """

    def converted(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    return {name: converted(value) for name, value in batch.items()}


def _default(x: Tensor, like: Tensor) -> Tensor | None:
    if not x.is_floating_point() or x.numel() == 0:
        return None
    if x.dim() in (4, 5):
        return x
    if x.dim() not in (2, 3) or x[0].numel() < 2:
        return None
    rows = x[:, None] if x.dim() == 3 else x[:, None, None]
    known = like[like.isfinite()]
    low, high = known.aminmax() if known.numel() else (like.new_zeros(()), like.new_ones(()))
    return (rows - low) / (high - low).clamp(min=1e-12)
