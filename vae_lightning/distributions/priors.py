"""Priors p(z): modules that hold parameters or buffers, and build their distribution when called."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lightning.distributions.families import Family
from vae_lightning.types import Shape


class Prior(nn.Module):
    """p(z), with batch shape [] and event shape `event_shape`.

    A distribution kept as an attribute would not move to the GPU with its module: so it is built on call.
    """

    def __init__(self, event_shape: Shape) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)

    @abstractmethod
    def forward(self) -> Distribution: ...


PriorRecipe: TypeAlias = Callable[[Shape], Prior]
"""A `Prior` class, or a `functools.partial` of one: called as `recipe(event_shape)`."""


class StandardNormal(Prior):
    """p(z) = N(0, I)."""

    zeros: Tensor
    ones: Tensor

    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape)
        self.register_buffer("zeros", torch.zeros(self.event_shape), persistent=False)
        self.register_buffer("ones", torch.ones(self.event_shape), persistent=False)

    def forward(self) -> Distribution:
        normal = Normal(self.zeros, self.ones, validate_args=Family.validate_args)
        return Independent(normal, len(self.event_shape), validate_args=Family.validate_args)
