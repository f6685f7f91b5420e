"""The multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from vae_lightning.types import Network, Shape, UserError


class MLP(Network):
    """y = W_L a(... a(W_1 x + b_1) ...) + b_L, over flattened shapes; `hidden_sizes=()` is one affine map."""

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden_sizes: Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(in_shape, out_shape)
        if any(size < 1 for size in hidden_sizes):
            raise UserError(f"MLP: hidden_sizes {list(hidden_sizes)} has a size below 1; every size must be positive")
        sizes = [math.prod(in_shape), *hidden_sizes]
        layers: list[nn.Module] = [nn.Flatten()]
        for size, next_size in pairwise(sizes):
            layers += [nn.Linear(size, next_size), activation()]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], math.prod(out_shape)))
