"""Residual networks: a convolutional encoder and its mirror for images of any size, and a perceptron."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn

from vae_lightning.networks.conv import from_features, pyramid, to_features
from vae_lightning.types import Network, Shape, UserError


class ResNetEncoder(Network):
    """[C, H, W] -> features: one stage of residual blocks for each entry of `channels`, then a hidden layer.

    Choose it if `ConvEncoder` is too shallow. Each stage halves H and W, rounding up, before its first block. If the
    features are maps of the last stage's height and width, one 1 x 1 convolution replaces the hidden layer. The blocks
    are pre-activation blocks without normalisation (He et al. 2016, https://arxiv.org/abs/1603.05027). With ELU they
    are those of the inverse autoregressive flow's experiments (Kingma et al. 2016, https://arxiv.org/abs/1606.04934),
    except for the weight normalisation there.

    Args:
        in_shape: Shape [C, H, W] of an image; the model sets it.
        out_shape: Shape of the features; the model sets it.
        channels: Channels of each stage.
        num_blocks: Residual blocks in each stage, at least 1.
        hidden_size: Units of the hidden layer.
        activation: Class of the activation function between layers.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (32, 64),
        num_blocks: int = 2,
        hidden_size: int = 450,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(in_shape, out_shape)
        sizes = pyramid(in_shape, channels)
        _at_least_one_block(self, num_blocks)
        layers: list[nn.Module] = [_conv(in_shape[0], channels[0])]
        for width, next_width in pairwise([channels[0], *channels]):
            layers += [nn.AvgPool2d(2, ceil_mode=True), *_blocks(width, next_width, num_blocks, activation)]
        layers += [activation(), *to_features((channels[-1], *sizes[-1]), out_shape, hidden_size, activation)]
        self.layers = nn.Sequential(*layers)


class ResNetDecoder(Network):
    """features -> [C, H, W]: the mirror of `ResNetEncoder`, also for features that are maps.

    Args:
        in_shape: Shape of the features; the model sets it.
        out_shape: Shape [C, H, W] of the output; the model sets it.
        channels: Channels in the order of the encoder's `channels`; the decoder reads them from the end.
        num_blocks: Residual blocks in each stage, at least 1.
        hidden_size: Units of the hidden layer.
        activation: Class of the activation function between layers.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (32, 64),
        num_blocks: int = 2,
        hidden_size: int = 450,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(in_shape, out_shape)
        sizes = pyramid(out_shape, channels)
        _at_least_one_block(self, num_blocks)
        layers = from_features(in_shape, (channels[-1], *sizes[-1]), hidden_size, activation)
        widths = [*channels[::-1], channels[0]]
        for (width, next_width), size in zip(pairwise(widths), sizes[-2::-1], strict=True):
            layers += [nn.Upsample(size), *_blocks(width, next_width, num_blocks, activation)]
        self.layers = nn.Sequential(*layers, activation(), _conv(channels[0], out_shape[0]))


class ResidualMLP(Network):
    """h_0 = W x + b, h_i = h_(i-1) + V_i a(U_i norm(h_(i-1))), y = W' a(h_L) + b', over flattened shapes.

    Choose it if an MLP of more than about three layers trains badly.

    Args:
        in_shape: Shape of one input; the model sets it.
        out_shape: Shape of one output; the model sets it.
        hidden_size: Units of every layer.
        num_blocks: Residual blocks, at least 1.
        activation: Class of the activation function between layers.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden_size: int = 256,
        num_blocks: int = 2,
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(in_shape, out_shape)
        _at_least_one_block(self, num_blocks)
        if hidden_size < 1:
            raise UserError(f"ResidualMLP: hidden_size is {hidden_size}; it must be at least 1")
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(math.prod(in_shape), hidden_size)]
        for _ in range(num_blocks):
            inner = [nn.Linear(hidden_size, hidden_size), activation(), nn.Linear(hidden_size, hidden_size)]
            layers.append(_Residual(nn.Sequential(nn.LayerNorm(hidden_size), *inner), nn.Identity()))
        self.layers = nn.Sequential(*layers, activation(), nn.Linear(hidden_size, math.prod(out_shape)))


class _Residual(nn.Module):
    """y = skip(x) + branch(x)."""

    def __init__(self, branch: nn.Module, skip: nn.Module) -> None:
        super().__init__()
        self.branch, self.skip = branch, skip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.skip(x) + self.branch(x)
        return y


def _blocks(width: int, next_width: int, count: int, activation: Callable[[], nn.Module]) -> list[nn.Module]:
    """`count` residual blocks of two convolutions. The skip of the first is an affine map if the width changes."""
    blocks: list[nn.Module] = []
    for in_channels in [width, *[next_width] * (count - 1)]:
        branch = [activation(), _conv(in_channels, next_width), activation(), _conv(next_width, next_width)]
        skip = nn.Identity() if in_channels == next_width else nn.Conv2d(in_channels, next_width, kernel_size=1)
        blocks.append(_Residual(nn.Sequential(*branch), skip))
    return blocks


def _conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


def _at_least_one_block(network: Network, num_blocks: int) -> None:
    if num_blocks < 1:
        raise UserError(f"{type(network).__name__}: num_blocks is {num_blocks}; it must be at least 1")
