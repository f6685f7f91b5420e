"""Priors p(z): modules that hold parameters or buffers, and build their distribution when called."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lightning.distributions.families import Family, FamilyRecipe
from vae_lightning.distributions.groups import Groups, checked_group_size
from vae_lightning.distributions.sphere import UniformOnSphere
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


class FamilyPrior(Prior):
    """p(z) = family(theta), theta = 0, or learned from near there: the prior for a posterior of the same family.

    Features of 0 are a family's plainest member: Gamma(1, 1), the uniform Beta, Dirichlet and Categorical, and with
    `family=partial(Laplace, scale=1.0)` a Laplace(0, 1).
    """

    theta: Tensor

    def __init__(self, event_shape: Shape, family: FamilyRecipe, learn: bool = False) -> None:
        super().__init__(event_shape)
        self.family = family(self.event_shape)
        theta = torch.zeros(self.family.param_shape)
        if learn:
            self.theta = nn.Parameter(theta.normal_(std=0.01))  # at 0 itself a low rank has no gradient
        else:
            self.register_buffer("theta", theta, persistent=False)

    def forward(self) -> Distribution:
        return self.family(self.theta)


class UniformSphere(Prior):
    """p(z) = 1 / area on the unit sphere of R^K, or on G of them: the prior for `VonMisesFisher`.

    z [D] is G = D / K groups of K = `group_size` numbers (None: one group), as in the posterior.
    """

    zeros: Tensor

    def __init__(self, event_shape: Shape, group_size: int | None = None) -> None:
        super().__init__(event_shape)
        size = checked_group_size("UniformSphere", self.event_shape, group_size)
        self.register_buffer("zeros", torch.zeros(self.event_shape[0] // size, size), persistent=False)

    def forward(self) -> Distribution:
        return Groups(UniformOnSphere(self.zeros, validate_args=Family.validate_args))
