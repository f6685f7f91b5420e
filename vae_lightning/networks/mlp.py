"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from vae_lightning.types import Network, Shape, UserError


class MLP(Network):
    """y = W_L a(... a(norm(W_1 x + b_1)) ...) + b_L, over flattened shapes.

    Choose it for small images and for latents that are vectors.

    Args:
        in_shape: Shape of one input; the model sets it.
        out_shape: Shape of one output; the model sets it.
        hidden_sizes: Units of each hidden layer; () gives one affine map.
        activation: Class of the activation function between layers.
        normalisation: Class of the layer `norm`, called with the number of units; null for none.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden_sizes: Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalisation: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__(in_shape, out_shape)
        _check_sizes("MLP", hidden_sizes)
        sizes = [math.prod(in_shape), *hidden_sizes]
        layers: list[nn.Module] = [nn.Flatten()]
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, next_size), *([normalisation(next_size)] if normalisation else []), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], math.prod(out_shape)))


class GatedMLP(Network):
    """An MLP with h' = (A h + a) sigmoid(B h + b) for each hidden layer, elementwise: gated dense layers.

    Dauphin et al. 2017 (https://arxiv.org/abs/1612.08083). Choose it to repeat the experiments of the VampPrior, which
    have two layers of 300 units (Tomczak & Welling 2018, https://arxiv.org/abs/1705.07120).

    Args:
        in_shape: Shape of one input; the model sets it.
        out_shape: Shape of one output; the model sets it.
        hidden_sizes: Units of each hidden layer.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, hidden_sizes: Sequence[int] = (300, 300)) -> None:
        super().__init__(in_shape, out_shape)
        _check_sizes("GatedMLP", hidden_sizes)
        sizes = [math.prod(in_shape), *hidden_sizes]
        layers: list[nn.Module] = [nn.Flatten()]
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, 2 * next_size), nn.GLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], math.prod(out_shape)))


class LadderMLP(Network):
    """An MLP with `width` times min(D_in, D_out) units in each hidden layer, h' = a(norm(W h + b)).

    Choose it for the layers of a hierarchy that become smaller from x upwards (`HVAE`): one setting then gives each
    layer's network its own size. With 8 units for each dimension of z, latents of 64, 32, 16, 8 and 4 dimensions have
    the hidden layers of 512, 256, 128, 64 and 32 units of Sønderby et al. 2016 (https://arxiv.org/abs/1602.02282), who
    normalise over the batch (`torch.nn.BatchNorm1d`). In training, the bound of an image then depends on the other
    images of the batch; in evaluation it does not, because the running mean and variance take their place.

    Args:
        in_shape: Shape of one input; the model sets it.
        out_shape: Shape of one output; the model sets it.
        width: Units of a hidden layer for each dimension of the smaller end, at least 1.
        num_layers: Hidden layers, at least 1.
        activation: Class of the activation function a.
        normalisation: Class of the layer `norm`, called with the number of units.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        width: int = 8,
        num_layers: int = 2,
        activation: Callable[[], nn.Module] = nn.LeakyReLU,
        normalisation: Callable[[int], nn.Module] = nn.LayerNorm,
    ) -> None:
        super().__init__(in_shape, out_shape)
        if width < 1 or num_layers < 1:
            raise UserError(f"LadderMLP: width {width} and num_layers {num_layers} must both be at least 1")
        size_in, size_out = math.prod(in_shape), math.prod(out_shape)
        hidden = width * min(size_in, size_out)
        if hidden < 2:
            raise UserError("LadderMLP: normalises a layer of one unit to 0; choose a width of at least 2")
        layers: list[nn.Module] = [nn.Flatten()]
        for size in [size_in, *[hidden] * (num_layers - 1)]:
            layers += [nn.Linear(size, hidden), normalisation(hidden), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, size_out))


def _check_sizes(owner: str, hidden_sizes: Sequence[int]) -> None:
    if any(size < 1 for size in hidden_sizes):
        raise UserError(f"{owner}: hidden_sizes {list(hidden_sizes)} has a size below 1; every size must be positive")
