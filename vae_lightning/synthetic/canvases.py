"""Canvases: n small pictures, cut to their ink, at random places of a black canvas, so that their boxes are disjoint.

A canvas is a function of its number and the seeds alone. The number of objects is drawn once, uniformly. Which objects
they are, and their places, are drawn together, and drawn together again if two boxes are too near. So, given the
number of objects, every arrangement of disjoint boxes keeps its probability: a new place for one object alone would
favour small objects, and a new number of objects would favour empty canvases.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_lightning.noise import below, uniform32

_INK = 10  # a pixel is ink if it is brighter than 1 / 10 of white
_TRIES = 1000
_CHUNK = 1024  # canvases drawn at once
_COUNT = 0  # the stream of the number of objects; stream t is try t of the arrangement


class NoRoomError(ValueError):
    """The objects do not fit on a canvas, or so rarely that no arrangement was found."""


class Glyphs(NamedTuple):
    """Pictures that are cut to the box of their ink, for `draw_canvases`.

    Args:
        pixels: uint8 [M, h, w], the boxes in the upper left corner, 0 elsewhere.
        ink: Which pixels are ink, bool [M, h, w].
        size: Height and width of each box, int64 [M, 2].
    """

    pixels: Tensor
    ink: Tensor
    size: Tensor


def cut_out(pixels: Tensor, max_value: int, scale: int = 1) -> Glyphs:
    """Shrink pictures by the mean over squares, and cut them to the smallest box that holds their ink.

    A pixel is ink if it is brighter than a tenth of white. Pixels in the box that are darker keep their value. Pictures
    without ink are left out.

    Args:
        pixels: uint8 [M, 1, h, w].
        max_value: The value of white.
        scale: The side of the squares; it divides h and w.
    """
    blocks = pixels[:, 0].unfold(1, scale, scale).unfold(2, scale, scale)  # [M, h / scale, w / scale, scale, scale]
    small = ((blocks.sum((3, 4)) + scale**2 // 2) // scale**2).to(torch.uint8)
    ink = small.int() * _INK > max_value
    has_ink = ink.flatten(1).any(1)
    small, ink = small[has_ink], ink[has_ink]
    (top, height), (left, width) = _extent(ink.any(2)), _extent(ink.any(1))
    rows, row_is_inside = _window(top, height)
    columns, column_is_inside = _window(left, width)
    index = torch.arange(len(small))[:, None, None], rows[:, :, None], columns[:, None]
    inside = row_is_inside[:, :, None] & column_is_inside[:, None]
    return Glyphs(small[index] * inside, ink[index] & inside, torch.stack((height, width), 1))


def _extent(line: Tensor) -> tuple[Tensor, Tensor]:
    """The first true place in each row of [M, n], and the number of places from there to the last one."""
    first = line.int().argmax(1)
    last = line.shape[1] - 1 - line.int().flip(1).argmax(1)
    return first, last - first + 1


def _window(first: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """The places from `first` on, as many as the longest window has, and which of them are in each window."""
    steps = torch.arange(int(length.max()) if len(length) else 0)
    inside = steps < length[:, None]
    return (first[:, None] + steps).where(inside, 0), inside


def draw_canvases(
    index: Tensor, glyphs: Glyphs, canvas_size: int, max_objects: int, gap: int = 0, seeds: tuple[int, ...] = (0,)
) -> dict[str, Tensor]:
    """x_i = the sum of n_i glyphs at random places, n_i uniform on 0 .. `max_objects`; row i depends on index[i] alone.

    Glyphs are drawn uniformly, and each place uniformly among those where the glyph lies on the canvas. All are drawn
    again while two boxes overlap or are nearer than `gap`.

    Returns, by name: `x`, uint8 [N, 1, H, W]; `segmentation`, uint8 [N, H, W], 0 for the background and k for object k;
    `count`, the number of objects, int64 [N]; `boxes`, top, left, height and width of the ink of each object in pixels,
    float32 [N, max_objects, 4], and `source`, its glyph, int64 [N, max_objects], both -1 if there is no such object.

    Args:
        index: The numbers of the canvases: int64 [N].
        glyphs: The objects, from `cut_out`.
        canvas_size: H = W, in pixels.
        max_objects: The largest number of objects on a canvas, 1 to 255.
        gap: The least number of pixels between two boxes, along one of the two axes.
        seeds: Further integers that the canvases depend on, such as (seed, split).

    Raises:
        NoRoomError: if a glyph is larger than the canvas, or if 1,000 draws give no arrangement of disjoint boxes.
    """
    if not len(glyphs.size):
        raise NoRoomError("there is no object with ink")
    height, width = glyphs.size.amax(0).tolist()
    if max(height, width) > canvas_size:
        raise NoRoomError(f"objects of up to {height} x {width} pixels do not fit on {canvas_size} x {canvas_size}")
    parts = [_draw(part, glyphs, canvas_size, max_objects, gap, seeds) for part in index.split(_CHUNK)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _draw(
    index: Tensor, glyphs: Glyphs, canvas_size: int, max_objects: int, gap: int, seeds: tuple[int, ...]
) -> dict[str, Tensor]:
    count = below(uniform32(index, 1, *seeds, _COUNT), max_objects + 1)[:, 0]
    source, corner = _arranged(index, count, glyphs.size, canvas_size, max_objects, gap, seeds)
    pixels, segmentation = _painted(source, corner, glyphs, canvas_size)
    exists = source >= 0
    boxes = torch.cat((corner, glyphs.size[source]), 2).where(exists[..., None], -1).float()
    return {"x": pixels[:, None], "segmentation": segmentation, "count": count, "boxes": boxes, "source": source}


def _arranged(
    index: Tensor, count: Tensor, size: Tensor, canvas_size: int, max_objects: int, gap: int, seeds: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The glyph [N, max_objects] and the upper left corner [N, max_objects, 2] of each object; -1 if there is none."""
    source = torch.full((len(index), max_objects), -1)
    corner = torch.full((len(index), max_objects, 2), -1)
    waiting = count.nonzero()[:, 0]
    for attempt in range(1, _TRIES + 1):
        u = uniform32(index[waiting], 3 * max_objects, *seeds, attempt)
        glyph = below(u[:, :max_objects], len(size))
        place = below(u[:, max_objects:].unflatten(1, (max_objects, 2)), canvas_size + 1 - size[glyph])
        exists = torch.arange(max_objects) < count[waiting, None]
        fits = _are_apart(place, size[glyph], exists, gap)
        source[waiting[fits]] = glyph[fits].where(exists[fits], -1)
        corner[waiting[fits]] = place[fits].where(exists[fits][..., None], -1)
        waiting = waiting[~fits]
        if not len(waiting):
            return source, corner
    raise NoRoomError(
        f"{int(count[waiting[0]])} objects with a gap of {gap} pixels found no room on {canvas_size} x {canvas_size}; "
        f"{_TRIES:,} draws were tried"
    )


def _are_apart(corner: Tensor, size: Tensor, exists: Tensor, gap: int) -> Tensor:
    """Whether no two boxes of a canvas are nearer than `gap`: [n, k, 2], [n, k, 2], [n, k] to [n]."""
    after = corner[:, :, None] >= (corner + size + gap)[:, None]  # [n, k, k, 2]: a begins behind the end of b
    apart = (after | after.transpose(1, 2)).any(3)
    are_two = (exists[:, :, None] & exists[:, None]).triu(1)
    return (apart | ~are_two).flatten(1).all(1)


def _painted(source: Tensor, corner: Tensor, glyphs: Glyphs, canvas_size: int) -> tuple[Tensor, Tensor]:
    """The pixels and the segmentation, uint8 [N, H, W] each. Boxes are disjoint, so a sum overwrites nothing."""
    height, width = glyphs.pixels.shape[1:]
    shape = (len(source), canvas_size + height, canvas_size + width)  # a glyph's empty margin may leave the canvas
    layers = np.zeros((2, *shape), np.uint8)
    pixels, objects = np.lib.stride_tricks.sliding_window_view(layers, (height, width), (2, 3), writeable=True)
    for k in range(source.shape[1]):
        rows = (source[:, k] >= 0).nonzero()[:, 0]
        glyph, (top, left) = source[rows, k], corner[rows, k].numpy().T
        pixels[rows.numpy(), top, left] += glyphs.pixels[glyph].numpy()
        objects[rows.numpy(), top, left] += glyphs.ink[glyph].numpy() * np.uint8(k + 1)
    canvas, segmentation = torch.from_numpy(layers[:, :, :canvas_size, :canvas_size].copy())
    return canvas, segmentation
