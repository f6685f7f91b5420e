"""Sizes: how many images stand side by side, and how much each is enlarged or reduced, so that a picture fits."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_SIDE = 2000  # pixels of a picture
COLUMNS = 10  # images side by side
BORDER = 2  # grey pixels around each image
_SEEN_HEIGHT = 56  # pixels of one image; a smaller image is enlarged by a whole number
MIN_SIDE = 8  # pixels of a thin image, such as a signal of one row
_WIDE = 3  # of an image wider than this many heights, fewer stand side by side


def num_columns(height: int, width: int, count: int, num_rows: int = 1) -> int:
    """Return how many examples stand side by side: ten, fewer of wide ones, more of many or of tall ones.

    Args:
        height, width: The size of one image.
        count: The number of examples.
        num_rows: The number of images of each example, one below the other.
    """
    aspect = width / height
    usual = COLUMNS if aspect <= _WIDE else max(2, round(COLUMNS * _WIDE / aspect))
    square = math.ceil(math.sqrt(count * num_rows / aspect))  # the picture is then about as high as wide
    most = MAX_SIDE // (MIN_SIDE + 2 * BORDER)
    return max(1, min(count, max(usual, square), most))


def cell_size(height: int, width: int, max_height: float, max_width: float) -> tuple[int, int]:
    """Return the height and the width that an image is drawn at.

    A small image is enlarged by a whole number, a large one reduced. Both sides change alike, but for a side that would
    have less than 8 pixels.

    Args:
        height, width: The size of the image.
        max_height, max_width: The largest height and width that it may have.
    """
    room = min(max_height / height, max_width / width)
    scale = min(max(1, math.ceil(_SEEN_HEIGHT / height)), math.floor(room)) if room >= 1 else room
    sides = (max(round(height * scale), MIN_SIDE), max(round(width * scale), MIN_SIDE))
    return max(1, min(sides[0], int(max_height))), max(1, min(sides[1], int(max_width)))


def resize(images: Tensor, height: int, width: int) -> Tensor:
    """Return images [n, 1 or 3, height, width] in [0, 1]: pixels are repeated if enlarged, averaged if reduced.

    Args:
        images: [n, C, H, W]. Of two channels the first is shown, of more than three the first three.
        height, width: The new size.
    """
    images = images.detach().to("cpu", torch.float32).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)
    if images.shape[1] not in (1, 3):
        images = images[:, :3] if images.shape[1] > 3 else images[:, :1]
    for side, size in ((2, height), (3, width)):
        now = images.shape[side]
        kept = (size, images.shape[3]) if side == 2 else (images.shape[2], size)
        if size > now:
            images = F.interpolate(images, kept, mode="nearest-exact")
        elif size < now:
            images = F.interpolate(images, kept, mode="bilinear", antialias=True)
    return images
