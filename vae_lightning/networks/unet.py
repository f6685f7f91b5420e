"""A U-Net: maps in, maps of the same height and width out, with the whole image in view."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning.types import Network, Shape, UserError


class UNet(Network):
    """[C, H, W] -> [C', H, W]: blocks that halve the maps, an MLP over all of the smallest, blocks that double them.

    Choose it where a pixel of the output depends on the same pixel and on the whole image, as the pixels of masks do.
    Ronneberger et al. 2015 (https://arxiv.org/abs/1505.04597), with the MLP of MONet, Burgess et al. 2019
    (https://arxiv.org/abs/1901.11390). A block is a 3 x 3 convolution, a normalisation of each map to mean 0 and
    deviation 1 within the image, so that no running statistics are kept, and a ReLU. A block on the way up also reads
    the maps of its size from the way down.

    Args:
        in_shape: Shape [C, H, W] of the input; the model sets it.
        out_shape: Shape [C', H, W] of the output; the model sets it.
        channels: The maps of each block on the way down. Height and width are halved between two blocks.
        hidden_size: The units of the two hidden layers of the MLP.

    Raises:
        UserError: if the shapes differ in height or width, or if these cannot be halved between all blocks.
    """

    def __init__(
        self, in_shape: Shape, out_shape: Shape, channels: Sequence[int] = (12, 12, 24, 24), hidden_size: int = 128
    ) -> None:
        super().__init__(in_shape, out_shape)
        bottom = _bottom(in_shape, out_shape, channels)
        self.layers = _DownAndUp(in_shape[0], out_shape[0], channels, bottom, hidden_size)


class _DownAndUp(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, channels: Sequence[int], bottom: tuple[int, int], hidden_size: int
    ) -> None:
        super().__init__()
        self.maps = (channels[-1], *bottom)
        size = channels[-1] * bottom[0] * bottom[1]
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise([inputs, *channels]))
        dense: list[nn.Module] = []
        for a, b in pairwise([size, hidden_size, hidden_size, size]):
            dense += [nn.Linear(a, b), nn.ReLU()]
        self.bottom = nn.Sequential(*dense)
        widths = [channels[-1], *channels[-2::-1], channels[0]]  # of the maps on the way up, from the bottom
        self.up = nn.ModuleList(
            _block(a + skipped, b) for (a, b), skipped in zip(pairwise(widths), channels[::-1], strict=True)
        )
        self.last = nn.Conv2d(channels[0], outputs, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for i, block in enumerate(self.down):
            x = block(x[..., ::2, ::2] if i else x)
            skipped.append(x)
        x = self.bottom(x.flatten(1)).unflatten(1, self.maps)
        for i, block in enumerate(self.up):
            x = F.interpolate(x, scale_factor=2, mode="nearest") if i else x
            x = block(torch.cat((x, skipped.pop()), 1))
        y: Tensor = self.last(x)
        return y


def _block(inputs: int, outputs: int) -> nn.Sequential:
    """3 x 3 convolution, one group of the normalisation for each map, ReLU."""
    # without a bias, which the normalisation would remove
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False), nn.GroupNorm(outputs, outputs), nn.ReLU()
    )


def _bottom(in_shape: Shape, out_shape: Shape, channels: Sequence[int]) -> tuple[int, int]:
    """Return height and width of the smallest maps."""
    if len(in_shape) != 3 or len(out_shape) != 3 or tuple(in_shape[1:]) != tuple(out_shape[1:]):
        raise UserError(
            f"UNet: maps {tuple(in_shape)} to {tuple(out_shape)}; both must be [channels, height, width], with the "
            "same height and width"
        )
    if not channels or min(channels) < 1:
        raise UserError(f"UNet: channels {list(channels)}: must be one or more positive widths, such as (12, 12, 24)")
    height, width = in_shape[1:]
    factor = 2 ** (len(channels) - 1)
    if height % factor or width % factor or height * width == factor**2:
        raise UserError(
            f"UNet: images of {height} x {width} pixels: {len(channels)} blocks halve them {len(channels) - 1} times, "
            f"so height and width must be multiples of {factor}, one of them {2 * factor} or more; choose another size "
            "or fewer channels (--model.attention.channels)"
        )
    return height // factor, width // factor
