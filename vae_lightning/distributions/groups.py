"""Posteriors on vectors whose numbers hang together: points of a simplex or of a sphere, and one-hot vectors.

z [D] is cut into G independent groups of K = `group_size` numbers each (None: one group of all D).
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Dirichlet as TorchDirichlet
from torch.distributions import (
    Distribution,
    MixtureSameFamily,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    RelaxedOneHotCategorical,
    constraints,
)

from vae_lightning.distributions import sphere
from vae_lightning.distributions.families import Family, positive
from vae_lightning.distributions.intervals import checked_floor
from vae_lightning.types import Shape, UserError


def checked_group_size(owner: str, event_shape: Shape, group_size: int | None) -> int:
    """K: at least 2, and a divisor of D."""
    if len(event_shape) != 1:
        raise UserError(f"{owner}: its groups are cut from vectors [D], event_shape is {tuple(event_shape)}")
    if event_shape[0] < 2:
        raise UserError(
            f"{owner}: z has one dimension, and a group wants 2; raise latent_size (of a hierarchy: latent_sizes)"
        )
    size = event_shape[0] if group_size is None else group_size
    if size < 2 or event_shape[0] % size:
        raise UserError(
            f"{owner}: group_size is {size}; it must be at least 2, and divide the {event_shape[0]} dimensions of z"
        )
    return size


class GroupSupport(constraints.Constraint):
    """Vectors of which each group lies in `base`."""

    event_dim = 1

    def __init__(self, base: constraints.Constraint, group_size: int) -> None:
        self.base, self.group_size = base, group_size
        self.is_discrete = base.is_discrete

    def check(self, value: Tensor) -> Tensor:
        return self.base.check(value.unflatten(-1, (-1, self.group_size))).all(-1)

    def __repr__(self) -> str:
        return f"groups of {self.group_size} in {self.base!r}"


class Groups(Distribution):
    """p(z) = prod_g p(z_g): `base` has batch shape [..., G] and event shape [K], z is [..., G K]."""

    arg_constraints: ClassVar = {}  # `base` checks its own

    def __init__(self, base: Distribution) -> None:
        self.base = base
        self.group_size = base.event_shape[0]
        *batch, groups = base.batch_shape
        super().__init__(torch.Size(batch), torch.Size((groups * self.group_size,)), validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Groups:
        return Groups(self.base.expand((*batch_shape, self.base.batch_shape[-1])))

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base.has_rsample

    @constraints.dependent_property(event_dim=1)
    def support(self) -> constraints.Constraint:
        assert self.base.support is not None
        return GroupSupport(self.base.support, self.group_size)

    @property
    def mean(self) -> Tensor:
        return self.base.mean.flatten(-2)

    @property
    def variance(self) -> Tensor:
        return self.base.variance.flatten(-2)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.sample(torch.Size(sample_shape)).flatten(-2)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base.rsample(torch.Size(sample_shape)).flatten(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value.unflatten(-1, (-1, self.group_size))).sum(-1)

    def entropy(self) -> Tensor:
        return self.base.entropy().sum(-1)


def share_support(q: Distribution, p: Distribution, z: Tensor) -> bool:
    """Whether log q(z) - log p(z) means something: both are densities over one space, and z ~ q is possible under p.

    A simplex or a sphere is a thin sheet in R^D: a density on it and a Normal's are not of the same thing.
    """
    sheets = [_sheet(q), _sheet(p)]
    if sheets != [None, None]:
        return sheets[0] == sheets[1]
    with suppress(NotImplementedError):  # of a distribution that does not say
        if p.support is not None and not constraints.is_dependent(p.support):
            return bool(p.support.check(z).all())
    return True


def _sheet(p: Distribution) -> str | None:
    """Where the groups of z lie, for `Groups` and mixtures of them."""
    one = p.component_distribution if isinstance(p, MixtureSameFamily) else p
    return repr(one.support) if isinstance(one, Groups) else None


class _GroupFamily(Family):
    """Features [..., G P] to `Groups`, P numbers for each group."""

    def __init__(self, event_shape: Shape, group_size: int | None = None) -> None:
        super().__init__(event_shape)
        self.group_size = checked_group_size(type(self).__name__, self.event_shape, group_size)
        self.num_groups = self.event_shape[0] // self.group_size

    def distribution(self, features: Tensor) -> Groups:
        return Groups(self.group(features.unflatten(-1, (self.num_groups, -1))))

    @abstractmethod
    def group(self, features: Tensor) -> Distribution:
        """Features [..., G, P] to a distribution with batch shape [..., G] and event shape [K]."""


class Dirichlet(_GroupFamily):
    """p(z) ~ prod_k z_k^(alpha_k - 1) on the simplex of K numbers that add up to 1; uniform at features of 0.

    The features are raw alphas, with the floor `min_concentration`. Its prior is `FamilyPrior` with this family,
    against which the KL has a closed form. The density is one of the first K - 1 numbers.
    """

    def __init__(self, event_shape: Shape, group_size: int | None = None, min_concentration: float = 0.1) -> None:
        super().__init__(event_shape, group_size)
        self.min_concentration = checked_floor(self, min_concentration)

    def group(self, features: Tensor) -> TorchDirichlet:
        return TorchDirichlet(positive(features, self.min_concentration), validate_args=self.validate_args)


class Categorical(_GroupFamily):
    """P(z = e_k) = softmax(logits)_k: one-hot vectors of K classes; uniform at features of 0.

    Its prior is `FamilyPrior` with this family: closed-form KL. A one-hot sample has no pathwise gradient, and a model
    that asks for one is refused, unless `straight_through`: then the gradient is taken as if the sample were the vector
    of probabilities (Bengio et al. 2013, https://arxiv.org/abs/1308.3432), which is biased; but not that of a sampled
    KL, whose log q(z) - log p(z) is linear in z.
    """

    def __init__(self, event_shape: Shape, group_size: int | None = None, straight_through: bool = False) -> None:
        super().__init__(event_shape, group_size)
        self.straight_through = straight_through

    def group(self, features: Tensor) -> OneHotCategorical:
        kind = OneHotStraightThrough if self.straight_through else OneHot
        return kind(logits=features, validate_args=self.validate_args)


class OneHot(OneHotCategorical):
    """torch's, with log P(z) = sum_k z_k log pi_k: torch's own has no slope in z, so that a sampled KL would have no
    gradient through a straight-through sample, and cost an encoder nothing."""

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)


class OneHotStraightThrough(OneHot, OneHotCategoricalStraightThrough): ...


class RelaxedCategorical(_GroupFamily):
    """z = softmax((logits + Gumbel noise) / temperature): a point of the simplex, near a corner for a low temperature.

    Maddison, Mnih & Teh 2017 (https://arxiv.org/abs/1611.00712), Jang, Gu & Poole 2017
    (https://arxiv.org/abs/1611.01144). It is a density, and its KL is sampled: it is not the KL of the categorical that
    it relaxes. Its prior is `FamilyPrior` with this family, the temperature included.
    """

    def __init__(self, event_shape: Shape, group_size: int | None = None, temperature: float = 0.5) -> None:
        super().__init__(event_shape, group_size)
        if not temperature > 0:
            raise UserError(f"RelaxedCategorical: temperature is {temperature}; it must be above 0, such as 0.5")
        self.temperature = temperature

    def group(self, features: Tensor) -> RelaxedOneHot:
        temperature = torch.full((), self.temperature, dtype=features.dtype, device=features.device)
        return RelaxedOneHot(temperature, logits=features, validate_args=self.validate_args)


class RelaxedOneHot(RelaxedOneHotCategorical):
    """torch's, with samples that keep away from 0, where log z is not finite, by the smallest normal number."""

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedOneHot:
        return super().expand(batch_shape, self._get_checked_instance(RelaxedOneHot, _instance))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        z = super().rsample(torch.Size(sample_shape))
        return z.clamp(min=torch.finfo(z.dtype).tiny)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


class VonMisesFisher(_GroupFamily):
    """p(z) ~ e^(kappa mu^T z) on the unit sphere of R^K, |mu| = 1: a Gaussian's place on a sphere.

    Davidson et al. 2018 (https://arxiv.org/abs/1804.00891). The features of a group are mu, of any length above 0, and
    a raw kappa >= `min_kappa`. Its prior is `UniformSphere` with the same `group_size`: closed-form KL. Samples wait
    for the device (they are drawn by rejection); their pathwise gradient is exact.
    """

    def __init__(self, event_shape: Shape, group_size: int | None = None, min_kappa: float = 0.1) -> None:
        super().__init__(event_shape, group_size)
        if not 0 <= min_kappa < 1:
            raise UserError(f"VonMisesFisher: min_kappa is {min_kappa}; it must be at least 0 and below 1")
        self.min_kappa = min_kappa

    @property
    def param_shape(self) -> Shape:
        return (self.event_shape[0] + self.num_groups,)

    def group(self, features: Tensor) -> sphere.VonMisesFisher:
        raw, raw_kappa = features[..., :-1], features[..., -1]
        north = torch.zeros_like(raw)
        north[..., 0] = 1
        length = raw.norm(dim=-1, keepdim=True)
        mu = torch.where(length > 0, raw, north)  # features of 0 have no direction of their own
        mu = mu / mu.norm(dim=-1, keepdim=True)
        return sphere.VonMisesFisher(mu, positive(raw_kappa, self.min_kappa), validate_args=self.validate_args)
