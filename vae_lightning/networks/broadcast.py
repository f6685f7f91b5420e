"""A decoder that draws one vector at every place of an image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from vae_lightning.types import Network, Shape, UserError


class SpatialBroadcast(Network):
    """features -> [C, H, W]: the features at each place beside the place's two coordinates, then convolutions.

    Choose it for objects that can be anywhere: the maps hold the coordinates, so that the convolutions need not learn
    places. Watters et al. 2019 (https://arxiv.org/abs/1901.07017). All maps of the paper have the size of the image.
    The first maps of this class have 1 / 2^len(channels) of the image's height and width, and each layer doubles both:
    a convolution makes four maps of one, the four corners of squares of 2 x 2 pixels (Shi et al. 2016,
    https://arxiv.org/abs/1609.05158).

    Args:
        in_shape: Shape of the features; the model sets it.
        out_shape: Shape [C, H, W] of the output; the model sets it.
        channels: The maps of each size, the smallest first; the next size is twice as large.

    Raises:
        UserError: if the height or width of the output cannot be halved once for each entry of channels.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, channels: Sequence[int] = (32, 16)) -> None:
        super().__init__(in_shape, out_shape)
        factor = 2 ** len(channels)
        _check(out_shape, channels, factor)
        first = nn.Conv2d(prod(in_shape) + 2, channels[0], kernel_size=3, padding=1)
        layers: list[nn.Module] = [_Broadcast(out_shape[1] // factor, out_shape[2] // factor), first]
        for a, b in pairwise([*channels, out_shape[0]]):
            layers += [nn.ReLU(), nn.Conv2d(a, 4 * b, kernel_size=3, padding=1), nn.PixelShuffle(2)]
        self.layers = nn.Sequential(nn.Flatten(), *layers)


class _Broadcast(nn.Module):
    """[N, D] -> [N, D + 2, H, W], with the coordinates from -1 to 1."""

    places: Tensor

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # [2, H, W]
        self.register_buffer("places", places, persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        size = self.places.shape[-2:]
        return torch.cat(
            (z[..., None, None].expand(*z.shape, *size), self.places.to(z.dtype).expand(z.shape[0], 2, *size)), 1
        )


def _check(out_shape: Shape, channels: Sequence[int], factor: int) -> None:
    if len(out_shape) != 3:
        raise UserError(f"SpatialBroadcast: its output {tuple(out_shape)} must be [channels, height, width]")
    if not channels or min(channels) < 1:
        raise UserError(f"SpatialBroadcast: channels {list(channels)}: must be one or more positive widths")
    if out_shape[1] % factor or out_shape[2] % factor:
        raise UserError(
            f"SpatialBroadcast: images of {out_shape[1]} x {out_shape[2]} pixels: {len(channels)} layers double their "
            f"maps, so height and width must be multiples of {factor}; choose another size or fewer channels "
            "(--model.decoder.channels)"
        )
