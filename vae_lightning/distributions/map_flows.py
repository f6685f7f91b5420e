"""A flow of latent maps [C, H, W]: the inverse autoregressive flow, with masked convolutions in the place of MADE."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from vae_lightning.distributions.flows import Flow, GatedStep, check_gate, load_zuko
from vae_lightning.types import Shape, UserError

_ALL = (-3, -2, -1)


class ConvIAF(Flow):
    """z <- g z + (1 - g) m with (m_i, s_i) = convolutions(z_1 .. z_(i-1), h), g = sigmoid(s): `IAF`, of maps [C, H, W].

    Choose it for a flexible q(z|x) over a latent of maps. Kingma et al. 2016 (https://arxiv.org/abs/1606.04934),
    algorithm 1, from z ~ N(mu(x), diag sigma(x)^2); log q falls by sum log g. The order is that of pixels, row by row,
    and within a pixel that of channels; each step reverses the order. A step is one masked convolution for each width
    of `hidden_channels`, and one more to m and s; the maps of h are added after the first.

    Deviations: the sigmoid update is the paper's, which its own code replaces by (z - 0.1 m) / exp(0.1 s); there is no
    weight normalisation. A kernel narrower than 2 W - 1 misses pixels, above all those up and far to the right (van den
    Oord et al. 2016, https://arxiv.org/abs/1606.05328); later steps, in reversed order, see them. Sampling takes one
    pass; the density at another point takes one pass for each of the C H W numbers.

    Args:
        event_shape: Shape [C, H, W] of one z; the model sets it.
        num_steps: The number of steps, at least 1.
        hidden_channels: Channels of the hidden layers of each step.
        kernel_size: Size of the kernels, odd and at least 3.
        context_size: The number of maps in h.
        gate_bias: Added to s, so that a step starts near the identity.
        min_gate: Floor of g, between 0 and 1.
        min_sigma: Floor of sigma, in the units of z.
        activation: Class of the activation function between convolutions.
    """

    event_dims: ClassVar[int] = 3

    def __init__(
        self,
        event_shape: Shape,
        num_steps: int = 2,
        hidden_channels: Sequence[int] = (64,),
        kernel_size: int = 3,
        context_size: int = 16,
        gate_bias: float = 1.5,
        min_gate: float = 1e-3,
        min_sigma: float = 1e-3,
        activation: Callable[[], nn.Module] = nn.ELU,
    ) -> None:
        super().__init__(event_shape, context_size, min_sigma)
        _check_convolutions(num_steps, hidden_channels, kernel_size)
        check_gate("ConvIAF", min_gate)
        widths = (*hidden_channels, 2 * self.event_shape[0])
        steps = [
            _ConvStep(self.event_shape, context_size, k % 2 == 1, widths, kernel_size, activation, gate_bias, min_gate)
            for k in range(num_steps)
        ]
        self.flow = load_zuko().lazy.LazyComposedTransform(*steps)

    def _wrong_shape_message(self) -> str:
        return (
            f"ConvIAF: is a flow of maps [C, H, W]; the latent has shape {self.event_shape}; give a VAE a latent of "
            "maps (--model.latent_size=[4,7,7]), or choose IAF, which is a flow of vectors"
        )


class _ConvStep(GatedStep):
    """A step in the order of rows, columns, channels. With `reverse`, z and h are turned around."""

    def __init__(
        self,
        event_shape: Shape,
        context_size: int,
        reverse: bool,
        widths: Sequence[int],
        kernel_size: int,
        activation: Callable[[], nn.Module],
        gate_bias: float,
        min_gate: float,
    ) -> None:
        super().__init__(event_shape, gate_bias, min_gate)
        size, self.reverse = event_shape[0], reverse
        sees = [torch.arange(size) + 1, *(torch.arange(width) % size for width in widths)]  # a and b of `_MaskedConv`
        convolutions = [_MaskedConv(a, b, kernel_size) for a, b in pairwise(sees)]
        self.first, self.from_context = convolutions[0], nn.Conv2d(context_size, widths[0], kernel_size=1)
        self.rest = nn.Sequential(*(layer for conv in convolutions[1:] for layer in (activation(), conv)))

    def shift_and_gate(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        if self.reverse:
            z, context = z.flip(_ALL), context.flip(-2, -1)
        hidden = _over_leading(self.first, z) + _over_leading(self.from_context, context)  # [K, B, C', H, W]
        m, s = _over_leading(self.rest, hidden).chunk(2, dim=-3)
        return (m.flip(_ALL), s.flip(_ALL)) if self.reverse else (m, s)


class _MaskedConv(nn.Conv2d):
    """A convolution whose output at a pixel depends on the pixels before it, and on some channels of the pixel itself.

    a_i is the highest z-channel (1-based) that input channel i depends on; a connection i -> j is kept if a_i <= b_j,
    so no output depends on its own z.
    """

    mask: Tensor

    def __init__(self, a: Tensor, b: Tensor, kernel_size: int) -> None:
        super().__init__(len(a), len(b), kernel_size, padding=kernel_size // 2)
        middle = kernel_size // 2
        mask = torch.zeros(len(b), len(a), kernel_size, kernel_size)
        mask[:, :, :middle] = 1
        mask[:, :, middle, :middle] = 1
        mask[:, :, middle, middle] = (a <= b[:, None]).float()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight * self.mask, self.bias)


def _over_leading(layers: nn.Module, x: Tensor) -> Tensor:
    """Convolutions of x [..., C, H, W], with any leading dimensions."""
    y: Tensor = layers(x.reshape(-1, *x.shape[-3:]))
    return y.reshape(*x.shape[:-3], *y.shape[-3:])


def _check_convolutions(num_steps: int, hidden_channels: Sequence[int], kernel_size: int) -> None:
    if num_steps < 1:
        raise UserError(f"ConvIAF: num_steps is {num_steps}; it must be at least 1")
    if not hidden_channels or min(hidden_channels) < 1:
        raise UserError(
            f"ConvIAF: hidden_channels {list(hidden_channels)}: must be one or more positive widths, such as (64,)"
        )
    if kernel_size < 3 or kernel_size % 2 == 0:
        raise UserError(f"ConvIAF: kernel_size is {kernel_size}; it must be odd, and at least 3")
