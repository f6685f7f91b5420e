"""A convolutional encoder and its mirror, for images of any height, width and number of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_lightning.types import Network, Shape, UserError


class ConvEncoder(Network):
    """[C, H, W] -> features: stride-2 convolutions that halve H and W (rounding up), a hidden layer, an affine map.

    Choose it for images of more than about 32 x 32 pixels, or colour images, instead of an MLP. If the features are
    maps of the last convolution's height and width, one 1 x 1 convolution replaces the hidden layer and the affine map.

    Args:
        in_shape: Shape [C, H, W] of an image; the model sets it.
        out_shape: Shape of the features; the model sets it.
        channels: Output channels of each convolution; there is one convolution for each entry.
        hidden_size: Units of the hidden layer.
        activation: Class of the activation function between layers.
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
        sizes = pyramid(in_shape, channels)
        layers: list[nn.Module] = []
        for in_channels, out_channels in pairwise([in_shape[0], *channels]):
            layers += [nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1), activation()]
        self.layers = nn.Sequential(
            *layers, *to_features((channels[-1], *sizes[-1]), out_shape, hidden_size, activation)
        )


class ConvDecoder(Network):
    """features -> [C, H, W]: the mirror of `ConvEncoder`, also for features that are maps.

    Each transposed convolution doubles H and W, and drops the last row or column where the encoder rounded up.

    Args:
        in_shape: Shape of the features; the model sets it.
        out_shape: Shape [C, H, W] of the output; the model sets it.
        channels: Channels in the order of the encoder's `channels`; the decoder reads them from the end.
        hidden_size: Units of the hidden layer.
        activation: Class of the activation function between layers.
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
        layers = from_features(in_shape, (channels[-1], *sizes[-1]), hidden_size, activation)
        widths = [*channels[::-1], out_shape[0]]
        for (in_channels, out_channels), size in zip(pairwise(widths), sizes[-2::-1], strict=True):
            layers += [activation(), _Double(in_channels, out_channels, size)]
        self.layers = nn.Sequential(*layers)


class _Double(nn.ConvTranspose2d):
    """[c, h, w] -> [c', H, W] with H in {2h - 1, 2h}.

    Kernel 4 at stride 2 overlaps evenly, which avoids a checkerboard.
    """

    def __init__(self, in_channels: int, out_channels: int, size: tuple[int, int]) -> None:
        super().__init__(in_channels, out_channels, kernel_size=4, stride=2, padding=1)
        self.size = size

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        height, width = self.size
        return super().forward(input)[..., :height, :width]


def to_features(
    maps: Shape, out_shape: Shape, hidden_size: int, activation: Callable[[], nn.Module]
) -> list[nn.Module]:
    """Layers from maps [C', h, w].

    A 1 x 1 convolution makes maps of the same h and w, and a hidden layer any other shape.
    """
    if len(out_shape) == 3 and tuple(out_shape[1:]) == tuple(maps[1:]):
        return [nn.Conv2d(maps[0], out_shape[0], kernel_size=1)]
    hidden = nn.Linear(math.prod(maps), hidden_size)
    return [nn.Flatten(), hidden, activation(), nn.Linear(hidden_size, math.prod(out_shape))]


def from_features(
    in_shape: Shape, maps: Shape, hidden_size: int, activation: Callable[[], nn.Module]
) -> list[nn.Module]:
    """The mirror of `to_features`."""
    if len(in_shape) == 3 and tuple(in_shape[1:]) == tuple(maps[1:]):
        return [nn.Conv2d(in_shape[0], maps[0], kernel_size=1)]
    hidden = nn.Linear(math.prod(in_shape), hidden_size)
    return [nn.Flatten(), hidden, activation(), nn.Linear(hidden_size, math.prod(maps)), nn.Unflatten(1, maps)]


def pyramid(image_shape: Shape, channels: Sequence[int]) -> list[tuple[int, int]]:
    """(H, W), and its halves, rounded up: one entry more than `channels` has.

    Raises:
        UserError: if `image_shape` is not [channels, height, width], or `channels` is empty or has a width below 1.
    """
    if len(image_shape) != 3:
        raise UserError(
            f"a convolution needs images [channels, height, width], but the shape is {image_shape}; use an MLP"
        )
    if not channels or any(width < 1 for width in channels):
        raise UserError(f"channels {list(channels)}: must be one or more positive widths, such as (32, 64, 128)")
    sizes = [(image_shape[1], image_shape[2])]
    for _ in channels:
        height, width = sizes[-1]
        sizes.append((-(-height // 2), -(-width // 2)))
    return sizes
