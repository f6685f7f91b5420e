"""A convolutional encoder and its mirror, for images of any height, width and number of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_lightning.types import Network, Shape, UserError


class ConvEncoder(Network):
    """[C, H, W] -> features: stride-2 convolutions that halve H and W (rounding up), a hidden layer, an affine map."""

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (32, 64, 128),
        hidden_size: int = 256,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(in_shape, out_shape)
        sizes = pyramid(in_shape, channels)
        layers: list[nn.Module] = []
        for in_channels, out_channels in pairwise([in_shape[0], *channels]):
            layers += [nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1), activation()]
        flat_size = channels[-1] * math.prod(sizes[-1])
        layers += [nn.Flatten(), nn.Linear(flat_size, hidden_size), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden_size, math.prod(out_shape)))


class ConvDecoder(Network):
    """features -> [C, H, W]: the mirror of `ConvEncoder`, with `channels` read from its end.

    Each transposed convolution doubles H and W; the last row and column go where the encoder had rounded up.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (32, 64, 128),
        hidden_size: int = 256,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(in_shape, out_shape)
        sizes = pyramid(out_shape, channels)
        start = (channels[-1], *sizes[-1])
        layers: list[nn.Module] = [
            nn.Flatten(),
            nn.Linear(math.prod(in_shape), hidden_size),
            activation(),
            nn.Linear(hidden_size, math.prod(start)),
            nn.Unflatten(1, start),
        ]
        widths = [*channels[::-1], out_shape[0]]
        for (in_channels, out_channels), size in zip(pairwise(widths), sizes[-2::-1], strict=True):
            layers += [activation(), _Double(in_channels, out_channels, size)]
        self.layers = nn.Sequential(*layers)


class _Double(nn.ConvTranspose2d):
    """[c, h, w] -> [c', H, W] with H in {2h - 1, 2h}; kernel 4 and stride 2 overlap evenly: no checkerboard."""

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.size = size

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        height, width = self.size
        return super().forward(input)[..., :height, :width]


def pyramid(image_shape: Shape, channels: Sequence[int]) -> list[tuple[int, int]]:
    """(H, W) and its halves, rounded up: one more entry than there are `channels`."""
    if len(image_shape) != 3:
        raise UserError(f"a convolution needs images [channels, height, width], got shape {image_shape}; use an MLP")
    if not channels or any(width < 1 for width in channels):
        raise UserError(f"channels {list(channels)}: needs one positive width or more, such as (32, 64, 128)")
    sizes = [(image_shape[1], image_shape[2])]
    for _ in channels:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes
