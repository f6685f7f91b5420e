"""Multi-layer perceptrons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from vae_lightning.types import Network, Shape, UserError


class MLP(Network):
    """y = W_L a(... a(W_1 x + b_1) ...) + b_L, over flattened shapes.

    Choose it for small images and for latents that are vectors.

    Args:
        in_shape: Shape of one input; the model sets it.
        out_shape: Shape of one output; the model sets it.
        hidden_sizes: Units of each hidden layer; () gives one affine map.
        activation: Class of the activation function between layers.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden_sizes: Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(in_shape, out_shape)
        _check_sizes("MLP", hidden_sizes)
        sizes = [math.prod(in_shape), *hidden_sizes]
        layers: list[nn.Module] = [nn.Flatten()]
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, next_size), activation()]
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


def _check_sizes(owner: str, hidden_sizes: Sequence[int]) -> None:
    if any(size < 1 for size in hidden_sizes):
        raise UserError(f"{owner}: hidden_sizes {list(hidden_sizes)} has a size below 1; every size must be positive")
