"""Sheets: rows of images with a title above, captions beside the rows, and the class above each column."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.pictures.grids import lay
from vae_lightning.pictures.sizes import BORDER, MAX_SIDE, MIN_SIDE, cell_size, num_columns, resize

if TYPE_CHECKING:
    from PIL import ImageDraw

_TITLE_HEIGHT, _LABEL_HEIGHT, _GAP = 24, 16, 8  # pixels
_TITLE_FONT, _FONT = 15, 12  # pixels
_MAX_MARGIN = 200  # pixels of the captions beside the rows
_FRAMES_IN_STRIP, _EXAMPLES_IN_STRIP = 10, 5
_Write = Callable[["ImageDraw.ImageDraw"], None]


@dataclass(frozen=True)
class Block:
    """Examples side by side, and the rows of each below one another.

    Args:
        rows: Images [n, C, H, W] in [0, 1] by caption.
        labels: A text above each column; empty for none.
        name: A text beside the labels.
    """

    rows: Mapping[str, Tensor]
    labels: Sequence[str] = ()
    name: str = ""


def image_sheet(title: str, rows: Mapping[str, Tensor], labels: Sequence[str], limit: int = MAX_SIDE) -> Tensor:
    """Draw images, the rows of an example below one another: uint8 [3, H', W'].

    Args:
        title: The text above the picture.
        rows: Images [n, C, H, W] in [0, 1] by caption, as many in each row.
        labels: The class of each example; empty if unknown.
        limit: The largest side, about, in pixels.
    """
    first = next(iter(rows.values()))
    count, (height, width) = len(first), first.shape[-2:]
    columns = num_columns(height, width, count, len(rows))
    blocks = [
        Block({caption: images[i : i + columns] for caption, images in rows.items()}, labels[i : i + columns])
        for i in range(0, count, columns)
    ]
    kept = blocks[: _num_fitting(blocks[0], limit)]
    note = f", the first {len(kept) * columns} of {count}" if len(kept) < len(blocks) else ""
    return sheet(title + note, kept, limit)


def strip_sheet(title: str, rows: Mapping[str, Tensor], labels: Sequence[str]) -> Tensor:
    """Draw up to ten frames, spread over time, of the first five clips: uint8 [3, H', W'].

    Args:
        title: The text above the picture.
        rows: Clips [n, T, C, H, W] in [0, 1] by caption; an image is a clip with T = 1, which stands still.
        labels: The class of each example; empty if unknown.
    """
    length = max(clips.shape[1] for clips in rows.values())
    times = spread(length, _FRAMES_IN_STRIP)
    numbers = [str(time + 1) for time in times]
    count = min(len(next(iter(rows.values()))), _EXAMPLES_IN_STRIP)
    blocks = [
        Block({caption: at_times(clips[i], times) for caption, clips in rows.items()}, numbers, name)
        for i, name in zip(range(count), labels or ["frame"] * count, strict=False)
    ]
    return sheet(f"{title}, frames from left to right", blocks[: _num_fitting(blocks[0], MAX_SIDE)])


def spread(length: int, most: int) -> list[int]:
    """Return at most `most` of the numbers 0 to length - 1, evenly spread, with both ends.

    Args:
        length: How many numbers there are.
        most: The largest number of them to return.
    """
    return torch.linspace(0, length - 1, min(length, most)).round().long().tolist()


def at_times(clip: Tensor, times: Sequence[int]) -> Tensor:
    """Return frames of a clip [T, ...]; a clip that has ended shows its last frame.

    Args:
        clip: The clip.
        times: The numbers of the frames.
    """
    return clip[[min(time, len(clip) - 1) for time in times]]


def sheet(title: str, blocks: Sequence[Block], limit: int = MAX_SIDE) -> Tensor:
    """Draw blocks below one another, with all texts outside the images: uint8 [3, H, W].

    Args:
        title: The text above the picture.
        blocks: The blocks.
        limit: The largest side, about, in pixels.
    """
    margin = _margin(blocks)
    columns = max(len(images) for block in blocks for images in block.rows.values())
    first = next(iter(blocks[0].rows.values()))
    heights = sum(_relative_height(images, first) for block in blocks for images in block.rows.values())
    borders = 2 * BORDER * sum(len(block.rows) for block in blocks)
    texts = _TITLE_HEIGHT + sum(_space(block) for block in blocks)
    room = ((limit - texts - borders) / heights, (limit - margin) / columns - 2 * BORDER)
    height, width = cell_size(first.shape[-2], first.shape[-1], *room)
    parts: list[Tensor] = []
    writes, top = [partial(_write, title, 4, 3, limit, _TITLE_FONT)], _TITLE_HEIGHT
    for block in blocks:
        if block.labels:
            lefts = [margin + BORDER + i * (width + BORDER) for i in range(len(block.labels))]
            texts_above = zip(block.labels, lefts, strict=True)
            writes += [partial(_write, label, left, top + 1, width, _FONT) for label, left in texts_above]
            writes.append(partial(_write, block.name, 4, top + 1, margin - 8, _FONT))
            parts.append(_white(_LABEL_HEIGHT))
        for caption, images in block.rows.items():
            row = lay(_in_cells(images, round(height * _relative_height(images, first)), width), columns)
            middle = top + bool(block.labels) * _LABEL_HEIGHT + max(0, (row.shape[1] - _FONT) // 2 - 1)
            writes.append(partial(_write, caption, 4, middle, margin - 8, _FONT))
            parts.append(row)
            top += row.shape[1]
        parts.append(_white(_space(block) - bool(block.labels) * _LABEL_HEIGHT))
        top += _space(block)
    return _assemble(parts, margin, writes, title)


def _space(block: Block) -> int:
    """The height of a block besides its rows: the labels, and a gap below rows that have captions."""
    return bool(block.labels) * _LABEL_HEIGHT + any(block.rows) * _GAP


def _white(height: int) -> Tensor:
    return torch.full((3, height, 1), 255, dtype=torch.uint8)


def _num_fitting(block: Block, limit: int) -> int:
    """How many such blocks fit below one another, with rows that are as high as their captions."""
    return max(1, (limit - _TITLE_HEIGHT) // (len(block.rows) * _LABEL_HEIGHT + _space(block)))


def _assemble(parts: Sequence[Tensor], margin: int, writes: Sequence[_Write], title: str) -> Tensor:
    """Put the rows below one another, to the right of the margin and below the title, and write the texts."""
    import numpy as np
    from PIL import Image, ImageDraw

    width = max(*(part.shape[2] for part in parts), int(font(_TITLE_FONT).getlength(title)) + 8 - margin)
    padded = [F.pad(part, (margin, width - part.shape[2], 0, 0), value=255) for part in parts]
    pixels = F.pad(torch.cat(padded, dim=1), (0, 0, _TITLE_HEIGHT, 0), value=255)
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    pen = ImageDraw.Draw(picture)
    for write in writes:
        write(pen)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def _margin(blocks: Sequence[Block]) -> int:
    """The pixels that the widest caption needs; 0 without captions."""
    texts = {text for block in blocks for text in (*block.rows, block.name)}
    widest = max(font(_FONT).getlength(text) for text in texts)
    return min(_MAX_MARGIN, int(widest) + 12) if widest else 0


def _relative_height(images: Tensor, first: Tensor) -> float:
    """The height of an image of any size over that of the first row, if both are drawn equally wide; at most 4."""
    (height, width), (first_height, first_width) = images.shape[-2:], first.shape[-2:]
    return min(4.0, height / width * first_width / first_height)


def _in_cells(images: Tensor, height: int, width: int) -> Tensor:
    """Fit images to the cells of a row; one that is taller than the cell stands in the middle, in its proportions."""
    height = max(height, MIN_SIDE)
    narrow = round(images.shape[-1] * height / images.shape[-2])
    if images.shape[-1] == 1 or narrow >= 0.9 * width:
        return resize(images, height, width)
    narrow = max(1, narrow)
    left = (width - narrow) // 2
    return F.pad(resize(images, height, narrow), (left, width - narrow - left), value=1.0)


def _write(text: str, left: float, top: float, room: float, size: int, pen: ImageDraw.ImageDraw) -> None:
    """Write a text in one line; a text that is wider than its room is cut."""
    letters = font(size)
    if letters.getlength(text) > room:
        while text and letters.getlength(text + "...") > room:
            text = text[:-1]
        text = text + "..." if text else ""
    pen.text((left, top), text, fill="black", font=letters)


@cache
def font(size: int) -> Any:
    """Return the font of captions.

    Args:
        size: The height in pixels.
    """
    from PIL import ImageFont

    return ImageFont.load_default(size)
