"""Points of a plane, coloured by their class, and pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.pictures.sheets import font

# fmt: off
_COLOURS = (
    (31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189),
    (140, 86, 75), (227, 119, 194), (110, 110, 110), (188, 189, 34), (23, 190, 207),
)
# fmt: on
_FRAME, _LINE, _FONT, _TITLE_FONT, _TITLE = 74, 18, 12, 15, 26  # pixels
_BELOW = 26  # pixels
_MOST_NAMES = 40


def principal_directions(z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the directions in which points vary, the largest variance first, and each one's share of the variance.

    A direction and its negative are equally good. The one whose largest number is positive is taken, so that pictures
    of the same points are not mirror images of one another.

    Args:
        z: [N, D].

    Returns:
        Orthogonal unit vectors [R, D] and shares [R], R = min(N, D).
    """
    _, size, directions = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))  # [R, 1]
    variance = size.square()
    return directions * largest.sign(), variance / variance.sum().clamp(min=1e-12)


def scatter(
    points: Tensor,
    labels: Tensor | None = None,
    names: Sequence[str] = (),
    limits: tuple[float, float, float, float] | None = None,
    size: int = 600,
    axes: tuple[str, str] = ("", ""),
) -> Tensor:
    """Draw points in a plane, with a colour and an entry of the legend for each class: uint8 [3, H, W].

    Args:
        points: [N, 2]: to the right, and upwards.
        labels: The number of each point's class, [N]; a number below 0 is unknown. None to draw all alike.
        names: The names of the classes; their numbers are shown where there are none.
        limits: (left, right, bottom, top) of the frame; None for the frame that holds all points. Points outside of it
            are left out.
        size: Height and width of the frame in pixels.
        axes: What the two axes are, to write beside them.
    """
    left, right, bottom, top = limits or _around(points)
    columns = (points[:, 0].double() - left) / max(right - left, 1e-12) * (size - 1)
    rows = (top - points[:, 1].double()) / max(top - bottom, 1e-12) * (size - 1)
    classes = _classes(labels)
    numbers = [-1] * len(points) if labels is None or not classes else labels.tolist()
    picture = Image.new("RGB", (_FRAME + size + 8 + _legend_width(classes, names), size + _BELOW), "white")
    pen = ImageDraw.Draw(picture)
    radius = 2 if len(points) > 1000 else 3
    for x, y, number in zip(columns.tolist(), rows.tolist(), numbers, strict=True):
        if 0 <= x < size and 0 <= y < size:
            _dot(pen, _FRAME + x, y, radius, number)
    _draw_frame(pen, size, (left, right, bottom, top), axes)
    for line, number in enumerate(classes):
        middle = 10 + line * _LINE
        _dot(pen, _FRAME + size + 16, middle, 4, number)
        pen.text((_FRAME + size + 26, middle - 8), _name(number, names), fill="black", font=font(_FONT))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def beside(title: str, *pictures: Tensor) -> Tensor:
    """Put pictures side by side below a title: uint8 [3, H, W].

    Args:
        title: The text above them.
        pictures: uint8 [3, h, w] each.
    """
    height = max(picture.shape[1] for picture in pictures)
    padded = [F.pad(one, (0, 12, 0, height - one.shape[1]), value=255) for one in pictures]
    pixels = F.pad(torch.cat(padded, dim=2), (4, 0, _TITLE, 4), value=255)
    missing = int(font(_TITLE_FONT).getlength(title)) + 8 - pixels.shape[2]
    pixels = F.pad(pixels, (0, max(0, missing), 0, 0), value=255)
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    ImageDraw.Draw(picture).text((4, 3), title, fill="black", font=font(_TITLE_FONT))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _dot(pen: ImageDraw.ImageDraw, x: float, y: float, radius: int, number: int) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(number))


def _around(points: Tensor) -> tuple[float, float, float, float]:
    """The frame of all points, with a margin of 3 % on each side."""
    low, high = points.double().amin(0), points.double().amax(0)
    margin = (high - low).clamp(min=1e-6) * 0.03
    (left, bottom), (right, top) = (low - margin).tolist(), (high + margin).tolist()
    return left, right, bottom, top


def _classes(labels: Tensor | None) -> list[int]:
    """The classes to name in the legend, in order; none if there are no classes, or too many."""
    if labels is None or labels.dim() != 1 or labels.is_floating_point():
        return []
    found: list[int] = labels.unique().tolist()
    return found if len(found) <= _MOST_NAMES else []


def _draw_frame(
    pen: ImageDraw.ImageDraw, size: int, limits: tuple[float, float, float, float], axes: tuple[str, str]
) -> None:
    left, right, bottom, top = limits
    pen.rectangle((_FRAME, 0, _FRAME + size - 1, size - 1), outline=(128, 128, 128))
    write = lambda x, y, text: pen.text((x, y), text, fill="black", font=font(_FONT))  # noqa: E731
    width = font(_FONT).getlength(f"{right:.3g}")
    write(_FRAME, size + 4, f"{left:.3g}")
    write(_FRAME + size - width, size + 4, f"{right:.3g}")
    write(_FRAME + (size - font(_FONT).getlength(axes[0])) / 2, size + 4, axes[0])
    write(2, 2, f"{top:.3g}")
    write(2, size - 16, f"{bottom:.3g}")
    write(2, size / 2 - 8, axes[1])


def _legend_width(classes: Sequence[int], names: Sequence[str]) -> int:
    return 34 + max((int(font(_FONT).getlength(_name(number, names))) for number in classes), default=-34)


def _name(number: int, names: Sequence[str]) -> str:
    return "unknown" if number < 0 else names[number] if number < len(names) else str(number)


def _colour(number: int) -> tuple[int, int, int]:
    return (60, 60, 60) if number < 0 else _COLOURS[number % len(_COLOURS)]
