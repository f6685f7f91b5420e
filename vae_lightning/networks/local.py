"""A convolution that keeps the height and the width: one local rule, applied at every place of maps of any size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from vae_lightning.types import Network, Shape, UserError


class LocalConv(Network):
    """[C, H, W] -> [C', H, W] by convolutions without stride, or -> [F] by their maximum over places, then affine.

    Choose it for grids of cells that follow one local rule, such as mazes. No weight depends on H or W, so the trained
    network takes maps of any size; an output of maps has the height and the width of its input. Beyond the border all
    channels are 0.

    Args:
        in_shape: Shape [C, H, W] of the maps; the model sets it. H and W are those of training.
        out_shape: Shape [C', H, W] of maps or [F] of a vector; the model sets it.
        channels: Output channels of each hidden convolution.
        kernel_sizes: The side of the kernel of each hidden convolution, odd; 1 looks at one place alone.
        activation: Class of the activation function after each hidden convolution.

    Raises:
        UserError: if the shapes are no maps, or if channels and kernel_sizes are not possible.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (32, 32),
        kernel_sizes: Sequence[int] = (3, 3),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(in_shape, out_shape)
        is_map = len(out_shape) == 3 and tuple(out_shape[1:]) == tuple(in_shape[1:])
        if len(in_shape) != 3 or not (is_map or len(out_shape) == 1):
            raise UserError(
                f"LocalConv: it takes maps [C, H, W] to maps of the same H and W or to a vector, not {tuple(in_shape)} "
                f"to {tuple(out_shape)}; use an MLP"
            )
        _check_kernels(channels, kernel_sizes)
        layers: list[nn.Module] = []
        width = in_shape[0]
        for next_width, kernel in zip(channels, kernel_sizes, strict=True):
            layers += [nn.Conv2d(width, next_width, kernel, padding=kernel // 2), activation()]
            width = next_width
        layers += (
            [nn.Conv2d(width, out_shape[0], kernel_size=1)] if is_map else [Highest(), nn.Linear(width, out_shape[0])]
        )
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of maps of any height and width.

        Args:
            x: [..., C, H, W].
        """
        if x.dim() < 3 or x.shape[-3] != self.in_shape[0] or not x.is_floating_point():
            raise UserError(
                f"LocalConv: its input is {str(x.dtype).removeprefix('torch.')} {list(x.shape)}; it takes "
                f"floating-point maps [..., {self.in_shape[0]}, H, W]"
            )
        leading = x.shape[:-3]
        features = self.layers(x.reshape(math.prod(leading), *x.shape[-3:]))  # [N, C', H, W] or [N, F]
        return features.reshape(*leading, *features.shape[1:])


class Highest(nn.Module):
    """max over places: [N, C, H, W] -> [N, C]. Whether something is anywhere, whatever the size of the map."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.amax((-2, -1))


def _check_kernels(channels: Sequence[int], kernel_sizes: Sequence[int]) -> None:
    if len(channels) != len(kernel_sizes):
        raise UserError(
            f"LocalConv: channels {list(channels)} and kernel_sizes {list(kernel_sizes)} differ in length; each hidden "
            "convolution has one of both"
        )
    if any(width < 1 for width in channels):
        raise UserError(f"LocalConv: channels {list(channels)} has a width below 1; every width must be positive")
    if any(kernel < 1 or kernel % 2 == 0 for kernel in kernel_sizes):
        raise UserError(f"LocalConv: kernel_sizes {list(kernel_sizes)} must be odd and positive, such as (3, 1)")
