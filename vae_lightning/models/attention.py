"""Find objects in images one after the other, each at the brightest place that the objects before do not explain."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning.models.boxes import read
from vae_lightning.types import Network, NetworkRecipe, Shape

_SD_POSITION, _SD_SIZE = 0.02, 0.5  # of q(position|x) and q(size|x), at the start of training
_FLOOR = 1e-3


class Seen(NamedTuple):
    """Gaussians of an image's objects, in the order in which they were found: mean and sd, each [..., O, 3].

    The three numbers are the position (x, y) from -1 to 1, and the logit of the size.
    """

    mean: Tensor
    sd: Tensor


class Attention(nn.Module):
    """q(position, size | image) of O objects, bright on a dark ground, found one after the other.

    Three steps find an object. The rest of the image is blurred, and its brightest pixel is the peak: a hard choice
    without a gradient. A network reads the window around the peak and gives the object's place in the window, its size,
    and the standard deviations of both. The object is painted and taken away from the image. The result is a function
    of the image alone. (A soft choice over the whole image finds the middle between the objects, and no gradient leads
    away.)

    Args:
        image_shape: (C, H, W) of an image.
        num_objects: O.
        window: The side of a window in pixels, an odd number: about one and a half objects.
        network: Network from a window [C, w, w] to 6 numbers.
    """

    def __init__(self, image_shape: Shape, num_objects: int, window: int, network: NetworkRecipe) -> None:
        super().__init__()
        self.image_shape, self.num_objects, self.window = tuple(image_shape), num_objects, window
        self.network: Network = network((image_shape[0], window, window), (6,))
        self.blur = window // 4 * 2 + 1
        start = [torch.tensor(sd - _FLOOR).expm1().log() for sd in (_SD_POSITION, _SD_POSITION, _SD_SIZE)]
        self.register_buffer("start", torch.stack(start), persistent=False)

    start: Tensor

    def forward(self, x: Tensor, painted: Callable[[Tensor, Tensor], Tensor]) -> Seen:
        """Return the objects of images [N, C, H, W].

        Args:
            x: The images.
            painted: From positions [N, 2] and logits of sizes [N] to opacities [N, C, H, W].
        """
        left, found = torch.ones_like(x), []
        for _ in range(self.num_objects):
            seen = x * left
            peak = self.peak(seen)
            features = self.network(self.glimpse(seen, peak)).to(x.dtype)
            offset, size, raw = features.split([2, 1, 3], -1)
            mean = torch.cat((peak + self.window / x.shape[-1] / 2 * torch.tanh(offset), size), -1)
            found.append((mean, _FLOOR + F.softplus(raw + self.start)))
            with torch.no_grad():
                left = left * (1 - painted(mean[..., :2], mean[..., 2]))
        return Seen(*(torch.stack(parts, -2) for parts in zip(*found, strict=True)))

    @torch.no_grad()
    def peak(self, x: Tensor) -> Tensor:
        """The brightest place of the blurred images [N, C, H, W], the middle of a pixel: (x, y), [N, 2]."""
        height, width = x.shape[-2:]
        heat = _band(height, self.blur, x) @ (x.mean(1) @ _band(width, self.blur, x))  # [N, H, W]
        index = heat.flatten(1).argmax(-1)  # [N]
        pixel = torch.stack((index % width, index // width), -1).to(x.dtype)
        return (2 * pixel + 1) / pixel.new_tensor([width, height]) - 1

    def glimpse(self, x: Tensor, peak: Tensor) -> Tensor:
        """The window of images [N, C, H, W] around their peaks [N, 2]: [N, C, w, w], 0 beyond the edge."""
        size = torch.full_like(peak[:, :1], self.window / x.shape[-1])
        return read(x, torch.cat((size, peak), -1), self.window)


def _band(side: int, width: int, like: Tensor) -> Tensor:
    """The matrix that sums `width` neighbours along an axis of this length: [side, side]."""
    at = torch.arange(side, device=like.device)
    return ((at[:, None] - at).abs() <= width // 2).to(like.dtype)


def best_order(expected: Tensor, found: Tensor) -> Tensor:
    """The order of the found objects with the least sum of squared distances to the expected ones: int64 [..., O].

    Object i of the expected ones is number order_i of the found ones. All O! orders are compared.

    Args:
        expected: Positions [..., O, 2].
        found: Positions [..., O, 2], whose leading dimensions broadcast against those of `expected`.
    """
    count = expected.shape[-2]
    orders = torch.tensor(list(permutations(range(count))), device=expected.device)  # [O!, O]
    squares = (expected[..., :, None, :] - found[..., None, :, :]).square().sum(-1)  # [..., O, O]
    sums = squares[..., torch.arange(count, device=orders.device), orders].sum(-1)  # [..., O!]
    return orders[sums.argmin(-1)]


def in_order(values: Tensor, order: Tensor) -> Tensor:
    """The values [..., O, D] of the objects in an order [..., O]; the leading dimensions broadcast."""
    values = values.expand(*order.shape, values.shape[-1])
    return values.gather(-2, order[..., None].expand_as(values))
