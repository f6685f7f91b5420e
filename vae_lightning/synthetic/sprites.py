"""Sprites: x = coverage of each pixel by a square, an ellipse or a heart, scaled, turned and moved by known factors.

The drawings follow dSprites (Matthey et al. 2017, https://github.com/google-deepmind/dsprites-dataset), but are NOT
dSprites. The factors and the numbers of their values are the same. The outlines are others, the edges are grey, and no
file has to be downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

SPRITE_FACTORS: Mapping[str, int] = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}
"""The factors and the number of values of each, in the order of the columns."""
NUM_SPRITES = math.prod(SPRITE_FACTORS.values())
"""The number of combinations: 737,280."""

_SIZE = 64
_CHUNK = 256  # images drawn at once: some ten float planes of 4 MiB
_HALF_SIDE, _SEMI_AXES, _HEART_SIDE = 10.5, (14.0, 7.0), 17.0  # pixels at the largest scale, within a radius of 16


def sprite_factors(index: Tensor) -> Tensor:
    """factors[i, k] = index[i] // (values of the later factors) mod values of factor k: int64 [N] to int64 [N, 5].

    Mixed radix with the last factor fastest; one to one for 0 <= index < NUM_SPRITES.

    Args:
        index: The numbers of the sprites: int64 [N].
    """
    sizes = torch.tensor(list(SPRITE_FACTORS.values()), device=index.device)
    strides = sizes.flip(0).cumprod(0).flip(0) // sizes
    return index[:, None] // strides % sizes


def draw_sprites(factors: Tensor) -> Tensor:
    """x = 255 clamp(1/2 - d, 0, 1), d the signed distance from a pixel's centre to the outline, in pixels.

    Returns uint8 [N, 1, 64, 64].

    Args:
        factors: int64 [N, 5], columns as in `SPRITE_FACTORS`: shape (0 square, 1 ellipse, 2 heart), scale (1/2 to 1),
            orientation (k is the angle 2 pi k / 40, from x towards y), x and y of the centroid (16.5 to 47.5 pixels, y
            downwards).
    """
    pixels = torch.empty(len(factors), 1, _SIZE, _SIZE, dtype=torch.uint8, device=factors.device)
    for shape, distance in enumerate((_square, _ellipse, _heart)):
        for rows in (factors[:, 0] == shape).nonzero().flatten().split(_CHUNK):
            scale, x, y = _coordinates(factors[rows])
            coverage = (0.5 - scale * distance(x, y)).clamp_(0, 1)  # [n, 64, 64]
            pixels[rows] = (coverage * 255).round_().to(torch.uint8)[:, None]
    return pixels


def _coordinates(factors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The scale [n, 1, 1], and the x and y of the pixels' centres in the frame of the sprite at scale 1 [n, 64, 64]."""
    scale, orientation, x, y = factors[:, 1:, None, None].double().unbind(1)  # so that equal angles round alike
    scale, angle = 0.5 + 0.1 * scale, orientation * (2 * math.pi / SPRITE_FACTORS["orientation"])
    cos, sin = (angle.cos() / scale).float(), (angle.sin() / scale).float()
    centres = torch.arange(_SIZE, device=factors.device) + 0.5
    dx, dy = centres - (x.float() + 16.5), centres[:, None] - (y.float() + 16.5)
    return scale.float(), cos * dx + sin * dy, cos * dy - sin * dx


def _square(x: Tensor, y: Tensor) -> Tensor:
    return _box(x, y, _HALF_SIDE)


def _ellipse(x: Tensor, y: Tensor) -> Tensor:
    """(k - 1) k / |grad| with k = |(x/a, y/b)|: the distance to first order near the outline, where edges are drawn."""
    a, b = _SEMI_AXES
    tiny = 1e-3  # at the centre k and its gradient are both 0
    ratio = _norm(x / a, y / b).clamp_(min=tiny)
    return (ratio - 1) * ratio / _norm(x / a**2, y / b**2).clamp_(min=tiny / a)


def _heart(x: Tensor, y: Tensor) -> Tensor:
    """A square on its corner with a half disc on each of its upper sides. The origin is the centroid of the heart."""
    r = _HEART_SIDE / 2
    # Along the normal of an upper side, the centroid of a half disc (area pi r^2 / 2) lies at r + 4 r / (3 pi) from the
    # centre of the square (area 4 r^2).
    offset = math.pi / 2 * (r + 4 * r / (3 * math.pi)) / (4 + math.pi)
    p, q = (x - y) * math.sqrt(0.5) + offset, (-x - y) * math.sqrt(0.5) + offset  # along the normals; y is downwards
    discs = torch.minimum(_norm(p - r, q), _norm(p, q - r)) - r
    return torch.minimum(_box(p, q, r), discs)


def _box(x: Tensor, y: Tensor, half_side: float) -> Tensor:
    x, y = x.abs() - half_side, y.abs() - half_side
    return _norm(x.clamp(min=0), y.clamp(min=0)) + torch.maximum(x, y).clamp_(max=0)


def _norm(x: Tensor, y: Tensor) -> Tensor:
    return (x * x + y * y).sqrt_()
