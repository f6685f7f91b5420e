"""Boxes on a canvas: one formula for reading a glimpse, painting it and drawing the box.

A box is (size, x, y): its side as a share of the canvas, and its centre, from -1 at the left or upper edge of the
canvas to 1 at the right or lower edge. Edges lie on the borders of pixels (`align_corners=False` in torch's terms): a
window of w pixels whose first is pixel x0 of W has size w / W and centre (2 x0 + w) / W - 1.
Reading and painting are products with matrices of bilinear weights, equal to torch's `grid_sample` with zeros outside;
their gradient is deterministic on every device.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_COLOURS = ((1.0, 0.2, 0.2), (0.2, 0.9, 0.2), (0.35, 0.45, 1.0), (1.0, 0.9, 0.2), (0.9, 0.3, 0.9), (0.2, 0.9, 0.9))
_OPAQUE = 0.999  # of 1: an object hides what is behind it but for this, so that a product over objects has a gradient
_DRAWN = 120  # pixels of the smaller side of a canvas with boxes


def to_box(where: Tensor) -> Tensor:
    """(sigmoid w0, tanh w1, tanh w2): [..., 3]. The centre cannot leave the canvas.

    Args:
        where: w, real numbers [..., 3].
    """
    return torch.cat((torch.sigmoid(where[..., :1]), torch.tanh(where[..., 1:])), -1)


def in_pixels(box: Tensor, canvas: tuple[int, ...]) -> Tensor:
    """(top, left, height, width) of the part of the box that is on the canvas, in pixels: [..., 4].

    Args:
        box: [..., 3].
        canvas: (H, W).
    """
    size, x, y = box.unbind(-1)
    corners = []
    for centre, length in ((y, canvas[0]), (x, canvas[1])):
        low, high = ((1 + centre + sign * size) * length / 2 for sign in (-1, 1))
        corners.append((low.clamp(0, length), high.clamp(0, length)))
    (top, bottom), (left, right) = corners
    return torch.stack((top, left, bottom - top, right - left), -1)


def read(images: Tensor, box: Tensor, window: int) -> Tensor:
    """The glimpse of w x w pixels in the box: [..., C, w, w].

    Args:
        images: [..., C, H, W].
        box: [..., 3].
        window: w.
    """
    size, x, y = (part[..., None] for part in box.unbind(-1))
    at = _centres(window, box)  # [w], in the box
    rows, columns = (
        _bilinear(centre + size * at, length) for centre, length in ((y, images.shape[-2]), (x, images.shape[-1]))
    )
    return rows[..., None, :, :] @ images @ columns[..., None, :, :].mT


def paint(glimpses: Tensor, box: Tensor, canvas: tuple[int, ...]) -> Tensor:
    """The glimpses in their boxes on a canvas that is 0 elsewhere: [..., C, H, W].

    Args:
        glimpses: [..., C, w, w].
        box: [..., 3].
        canvas: (H, W).
    """
    size, x, y = (part[..., None] for part in box.unbind(-1))
    rows, columns = (
        _bilinear((_centres(length, box) - centre) / size, glimpses.shape[-1])
        for centre, length in ((y, canvas[0]), (x, canvas[1]))
    )
    return rows[..., None, :, :] @ glimpses @ columns[..., None, :, :].mT


class Template(nn.Module):
    """One learned picture that is painted in boxes: how much of each pixel an object covers, from 0 to 1.

    It starts as a round spot that fills half of its box.

    Args:
        frame_shape: (C, H, W) of a frame.
        side: The side of the picture, in its own pixels.
        object_size: The side of a box of size logit 0, as a share of the frame; no box is twice as wide.
    """

    def __init__(self, frame_shape: tuple[int, ...], side: int, object_size: float) -> None:
        super().__init__()
        self.frame_shape, self.object_size = frame_shape, object_size
        at = (2 * torch.arange(side) + 1) / side - 1
        spot = 3 - 10 * (at[:, None] ** 2 + at**2)
        self.logits = nn.Parameter(spot.repeat(frame_shape[0], 1, 1))  # [C, P, P]

    def forward(self, position: Tensor, size: Tensor) -> Tensor:
        """Return the covers [..., C, H, W].

        Args:
            position: (x, y) of the centres, [..., 2].
            size: The logits of the sizes, [...].
        """
        side = 2 * self.object_size * torch.sigmoid(size)
        box = torch.cat((side[..., None], position), -1)
        return _OPAQUE * paint(torch.sigmoid(self.logits), box, self.frame_shape[1:])


def draw_boxes(images: Tensor, boxes: Tensor, exists: Tensor) -> Tensor:
    """Draw boxes on enlarged images, each step in its colour, the first on top: [B, 3, H', W'] in [0, 1].

    Args:
        images: [B, C, H, W] in [0, 1]; of more than three channels the first is shown.
        boxes: (top, left, height, width) in pixels, [B, N, 4].
        exists: Which boxes are drawn, [B, N].
    """
    scale = max(1, -(-_DRAWN // min(images.shape[-2:])))
    grey = images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1)
    drawn = F.interpolate(grey.float(), scale_factor=scale, mode="nearest").clone()
    top, left, height, width = (part[..., None, None] for part in (scale * boxes).unbind(-1))  # [B, N, 1, 1]
    y = torch.arange(drawn.shape[-2], device=drawn.device)[:, None] + 0.5
    x = torch.arange(drawn.shape[-1], device=drawn.device) + 0.5
    depth = torch.minimum(  # of a pixel below the nearest edge of the box
        torch.minimum(y - top, top + height - y), torch.minimum(x - left, left + width - x)
    )  # [B, N, H', W']
    on_edge = (depth >= 0) & (depth < 2) & (exists[..., None, None] > 0)
    for step in reversed(range(boxes.shape[1])):
        colour = drawn.new_tensor(_COLOURS[step % len(_COLOURS)])[:, None, None]
        drawn = torch.where(on_edge[:, step, None], colour, drawn)
    return drawn


def _centres(count: int, like: Tensor) -> Tensor:
    """The centres of `count` pixels that fill [-1, 1]."""
    return (2 * torch.arange(count, device=like.device, dtype=like.dtype) + 1) / count - 1


def _bilinear(coordinates: Tensor, count: int) -> Tensor:
    """The weight of each of `count` pixels that fill [-1, 1] at each coordinate: [..., M] -> [..., M, count]."""
    index = ((coordinates + 1) * count - 1) / 2
    pixels = torch.arange(count, device=index.device, dtype=index.dtype)
    return F.relu(1 - (index[..., None] - pixels).abs())
