"""Scenes of coloured circles, squares and triangles on grey, some in front of others, with exact maps of the objects.

A scene is a function of its number and the seeds alone. The number of objects, the colours and the background are
drawn once. Shapes, sizes and places are drawn together, and drawn together again if too little of an object is seen. So
a redraw changes neither how often a scene has n objects, nor the colours.

Edges are hard: a pixel belongs to the object that its centre lies in, and has this object's colour. So the map of the
objects says all about a pixel, and there are no mixed colours that could tell where an edge is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vae_lightning.noise import below, uniform32
from vae_lightning.synthetic.canvases import NoRoomError

PALETTE = (
    *((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255)),
    *((255, 128, 0), (255, 255, 255)),
)
"""The colours of the objects: red, green, blue, yellow, magenta, cyan, orange and white."""
SHAPES = ("circle", "square", "triangle")
"""The shapes. Each fills the square of side 2 r around its centre, r its radius; a triangle points up."""
LEAST_SEEN = 0.4
"""The share of an object's pixels that is seen at least."""

_RADIUS = (0.12, 0.20)  # as shares of the side of the image
_TRIES = 1000
_CHUNK = 512  # scenes drawn at once
_ONCE = 0  # the stream of count, colours and background; stream t is try t of the arrangement


class Objects(NamedTuple):
    """Shape, radius and centre of each object: int64 [N, K], float64 [N, K] and float64 [N, K, 2], row and column."""

    shape: Tensor
    radius: Tensor
    centre: Tensor


def draw_coloured_shapes(
    index: Tensor,
    image_size: int,
    max_objects: int = 3,
    min_objects: int = 1,
    distinct: bool = True,
    num_greys: int = 128,
    seeds: tuple[int, ...] = (0,),
) -> dict[str, Tensor]:
    """Scenes with n_i objects, n_i uniform on `min_objects` .. `max_objects`; row i depends on index[i] alone.

    Later objects are in front of earlier ones. Each lies wholly in the image, and at least 40 % of it is seen. The
    background is one grey level, uniform on 0 .. num_greys - 1 of 255.

    Returns, by name: `x`, uint8 [N, 3, S, S]; `segmentation`, uint8 [N, S, S], 0 for the background and k for object k;
    `count`, int64 [N]; `colour` and `shape`, numbers in `PALETTE` and `SHAPES`, int64 [N, max_objects]; and in pixels
    `radius`, float64 [N, max_objects], and `centre`, row and column, float64 [N, max_objects, 2]. They are -1 if there
    is no such object.

    Args:
        index: The numbers of the scenes: int64 [N].
        image_size: S, in pixels.
        max_objects: The largest number of objects, 1 to 255; at most 8 if colours are distinct.
        min_objects: The smallest number of objects, 0 to `max_objects`.
        distinct: Whether all objects of a scene have colours of their own. The arrangements are the same either way.
        num_greys: The number of grey levels of backgrounds, 1 to 256; 1 for black.
        seeds: Further integers that the scenes depend on, such as (seed, split).

    Raises:
        NoRoomError: if 1,000 draws gave no arrangement in which enough of each object is seen.
    """
    counts = min_objects, max_objects
    parts = [_draw(part, image_size, counts, distinct, num_greys, seeds) for part in index.split(_CHUNK)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _draw(
    index: Tensor, image_size: int, counts: tuple[int, int], distinct: bool, num_greys: int, seeds: tuple[int, ...]
) -> dict[str, Tensor]:
    smallest, largest = counts
    u = uniform32(index, 2 + len(PALETTE) + largest, *seeds, _ONCE)
    count = smallest + below(u[:, 0], largest - smallest + 1)
    grey = below(u[:, 1], num_greys)
    shuffled = u[:, 2 : 2 + len(PALETTE)].argsort(dim=1, stable=True)
    colour = shuffled[:, :largest] if distinct else below(u[:, -largest:], len(PALETTE))
    exists = torch.arange(largest) < count[:, None]
    segmentation, objects = _arranged(index, exists, image_size, seeds)
    colours = torch.tensor(PALETTE, dtype=torch.uint8)[colour]  # [N, K, 3]
    colours = torch.cat((grey[:, None, None].expand(-1, -1, 3).to(torch.uint8), colours), 1)  # [N, 1 + K, 3]
    x = colours[torch.arange(len(index))[:, None, None], segmentation.long()].permute(0, 3, 1, 2)
    return {
        "x": x.contiguous(),
        "segmentation": segmentation,
        "count": count,
        "colour": colour.where(exists, -1),
        "shape": objects.shape.where(exists, -1),
        "radius": objects.radius.where(exists, -1),
        "centre": objects.centre.where(exists[..., None], -1),
    }


def _arranged(index: Tensor, exists: Tensor, image_size: int, seeds: tuple[int, ...]) -> tuple[Tensor, Objects]:
    """The map of the objects, uint8 [N, S, S], and the objects, redrawn until enough of each is seen."""
    segmentation = torch.zeros(len(index), image_size, image_size, dtype=torch.uint8)
    waiting, num_numbers = torch.arange(len(index)), 4 * exists.shape[1]
    objects = _objects(uniform32(index, num_numbers, *seeds, 1), image_size)
    for attempt in range(1, _TRIES + 1):
        tried = _objects(uniform32(index[waiting], num_numbers, *seeds, attempt), image_size)
        covers = _covers(tried, image_size) & exists[waiting][:, :, None, None]
        drawn = _in_front(covers)
        good = _is_seen(drawn, covers)
        for kept, values in zip((segmentation, *objects), (drawn, *tried), strict=True):
            kept[waiting[good]] = values[good]
        waiting = waiting[~good]
        if not len(waiting):
            return segmentation, objects
    raise NoRoomError(
        f"{int(exists[waiting[0]].sum())} objects hid each other on {image_size} x {image_size}; {_TRIES:,} draws were "
        "tried"
    )


def _objects(u: Tensor, image_size: int) -> Objects:
    """Shapes, radii and centres of 4 K numbers a scene: uniform, each object wholly inside."""
    kind, *rest = u.unflatten(1, (-1, 4)).unbind(2)
    size, row, column = (one / 2**32 for one in rest)  # float64 in [0, 1)
    low, high = _RADIUS
    radius = image_size * (low + (high - low) * size)
    centre = radius[..., None] + (image_size - 2 * radius)[..., None] * torch.stack((row, column), -1)
    return Objects(below(kind, len(SHAPES)), radius, centre)


def _covers(objects: Objects, image_size: int) -> Tensor:
    """Whether the centre of a pixel lies in an object: bool [N, K, S, S].

    With rows and columns measured from the centre in units of the radius, each shape is a(row) + b(column) <= 1:
    a circle row^2 + column^2 <= 1, a triangle 2 |column| - row <= 1 where |row| <= 1, a square |row|, |column| <= 1.
    """
    centres = torch.arange(image_size) + 0.5
    at = (centres - objects.centre[..., None]) / objects.radius[..., None, None]  # [N, K, 2, S]
    row, column = at.unbind(2)
    never = torch.tensor(torch.inf, dtype=torch.float64)
    zero = torch.zeros_like(row)
    of_rows = (row * row, zero.where(row.abs() <= 1, never), (-row).where(row.abs() <= 1, never))
    of_columns = (column * column, zero.where(column.abs() <= 1, never), 2 * column.abs())
    kind = objects.shape[..., None]
    a, b = (_chosen(kind, values) for values in (of_rows, of_columns))
    return a[..., :, None] + b[..., None, :] <= 1


def _chosen(kind: Tensor, values: tuple[Tensor, ...]) -> Tensor:
    circle, square, triangle = values
    return circle.where(kind == 0, square.where(kind == 1, triangle))


def _in_front(covers: Tensor) -> Tensor:
    """The last object that covers each pixel, counted from 1, 0 for none: bool [N, K, S, S] to uint8 [N, S, S]."""
    numbers = torch.arange(1, covers.shape[1] + 1, dtype=torch.uint8)[:, None, None]
    return (covers * numbers).amax(1)


def _is_seen(drawn: Tensor, covers: Tensor) -> Tensor:
    """Whether `LEAST_SEEN` of each object of a scene is not hidden: bool [N]."""
    numbers = torch.arange(1, covers.shape[1] + 1, dtype=torch.uint8)[:, None, None]
    seen = (drawn[:, None] == numbers).sum((2, 3))  # [N, K]
    return (seen >= LEAST_SEEN * covers.sum((2, 3))).all(1)
