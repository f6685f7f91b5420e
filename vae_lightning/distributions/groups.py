"""Posteriors on vectors whose numbers depend on each other: points of a simplex or of a sphere, and one-hot vectors.

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
    Independent,
    MixtureSameFamily,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    RelaxedOneHotCategorical,
    constraints,
)

from vae_lightning.distributions import sphere
from vae_lightning.distributions.families import Family, positive
from vae_lightning.distributions.intervals import checked_floor
from vae_lightning.distributions.masks import MaskedPositions
from vae_lightning.types import Shape, UserError


def checked_group_size(owner: str, event_shape: Shape, group_size: int | None) -> int:
    """K = `group_size`, or D if it is None. K must be at least 2 and divide D."""
    if len(event_shape) != 1:
        raise UserError(f"{owner}: its groups are cut from vectors [D], but event_shape is {tuple(event_shape)}")
    if event_shape[0] < 2:
        raise UserError(
            f"{owner}: z has one dimension, and a group needs 2; raise latent_size (of a hierarchy: latent_sizes)"
        )
    size = event_shape[0] if group_size is None else group_size
    if size < 2 or event_shape[0] % size:
        raise UserError(
            f"{owner}: group_size is {size}; it must be at least 2, and divide the {event_shape[0]} dimensions of z"
        )
    return size


class GroupSupport(constraints.Constraint):
    """The vectors whose groups all lie in `base`.

    Args:
        base: The support of one group.
        group_size: K.
    """

    event_dim = 1

    def __init__(self, base: constraints.Constraint, group_size: int) -> None:
        self.base, self.group_size = base, group_size
        self.is_discrete = base.is_discrete

    def check(self, value: Tensor) -> Tensor:
        return self.base.check(value.unflatten(-1, (-1, self.group_size))).all(-1)

    def element(self, like: Tensor) -> Tensor:
        """One vector of the support, [D], at which densities are finite: the centre of a simplex, or first axes."""
        groups = like.new_zeros(like.shape[-1] // self.group_size, self.group_size)
        if self.base is constraints.simplex:
            return groups.flatten() + 1 / self.group_size
        groups[:, 0] = 1
        return groups.flatten()

    def __repr__(self) -> str:
        return f"groups of {self.group_size} in {self.base!r}"


class Groups(Distribution):
    """p(z) = prod_g p(z_g), of vectors z that are cut into groups.

    Args:
        base: The distribution of each group, with batch shape [..., G] and event shape [K]; z is [..., G K].
    """

    arg_constraints: ClassVar = {}  # `base` checks its own arguments

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
    """Whether log q(z) - log p(z) has a meaning: both are densities over one space, and z ~ q is possible under p.

    A simplex or a sphere has a lower dimension than R^D, so a density on it cannot be compared with that of a Normal.
    """
    supports = [_group_support(q), _group_support(p)]
    if supports != [None, None]:
        return supports[0] == supports[1]
    with suppress(NotImplementedError):  # a distribution need not define its support
        if p.support is not None and not constraints.is_dependent(p.support):
            return bool(p.support.check(z).all())
    return True


def _group_support(p: Distribution) -> str | None:
    """The name of the space that the groups of z lie in, for `Groups`, steps and mixtures of them; None for others."""
    component = p.component_distribution if isinstance(p, MixtureSameFamily) else p
    while isinstance(component, (Independent, MaskedPositions)):
        component = component.base_dist
    return repr(component.support) if isinstance(component, Groups) else None


class _GroupFamily(Family):
    """Features [..., G P] to `Groups`, with P numbers for each group."""

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
    """p(z) ~ prod_k z_k^(alpha_k - 1) on the simplex: K positive numbers with sum 1. Uniform at features of 0.

    A posterior for proportions. The features are raw alphas. Its prior is `FamilyPrior` with this family, which gives a
    closed-form KL. The density is over the first K - 1 numbers.

    Args:
        event_shape: Shape of one z; the model sets it.
        group_size: K, at least 2 and a divisor of D. None: one group of all D numbers.
        min_concentration: Floor of alpha, in (0, 1).
    """

    def __init__(self, event_shape: Shape, group_size: int | None = None, min_concentration: float = 0.1) -> None:
        super().__init__(event_shape, group_size)
        self.min_concentration = checked_floor(self, min_concentration)

    def group(self, features: Tensor) -> TorchDirichlet:
        return TorchDirichlet(positive(features, self.min_concentration), validate_args=self.validate_args)


class Categorical(_GroupFamily):
    """P(z = e_k) = softmax(logits)_k: one-hot vectors of K classes; uniform at features of 0.

    A posterior for discrete latents. Its prior is `FamilyPrior` with this family: closed-form KL. One-hot samples have
    no pathwise gradient, so a model that needs one refuses this family unless `straight_through` is set.

    Args:
        event_shape: Shape of one z; the model sets it.
        group_size: K, at least 2 and a divisor of D. None: one group of all D numbers.
        straight_through: Whether the gradient is taken as if the sample were the vector of probabilities (Bengio et al.
            2013, https://arxiv.org/abs/1308.3432). This gradient is biased, except that of a sampled KL, because
            log q(z) - log p(z) is linear in z.
    """

    def __init__(self, event_shape: Shape, group_size: int | None = None, straight_through: bool = False) -> None:
        super().__init__(event_shape, group_size)
        self.straight_through = straight_through

    def group(self, features: Tensor) -> OneHotCategorical:
        one_hot = OneHotStraightThrough if self.straight_through else OneHot
        return one_hot(logits=features, validate_args=self.validate_args)


class OneHot(OneHotCategorical):
    """torch's OneHotCategorical, with log P(z) = sum_k z_k log pi_k.

    torch's own log_prob has no slope in z. A sampled KL would then have no gradient through a straight-through sample,
    so the encoder would not be trained on it.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)


class OneHotStraightThrough(OneHot, OneHotCategoricalStraightThrough): ...


def is_straight_through(distribution: Distribution) -> bool:
    """Whether samples have the gradient of the probabilities in place of their own, which biases the gradient."""
    while not isinstance(distribution, OneHotCategoricalStraightThrough):
        inner = getattr(distribution, "base_dist", getattr(distribution, "base", None))
        if inner is None:
            return False
        distribution = inner
    return True


class RelaxedCategorical(_GroupFamily):
    """z = softmax((logits + Gumbel noise) / temperature): a point of the simplex, near a corner at a low temperature.

    A posterior for nearly discrete latents with a pathwise gradient. Maddison, Mnih & Teh 2017
    (https://arxiv.org/abs/1611.00712), Jang, Gu & Poole 2017 (https://arxiv.org/abs/1611.01144). Its KL is sampled, and
    is not the KL of the categorical that it relaxes. Its prior is `FamilyPrior` with this family at the same
    temperature.

    Args:
        event_shape: Shape of one z; the model sets it.
        group_size: K, at least 2 and a divisor of D. None: one group of all D numbers.
        temperature: Above 0; lower values are nearer to one-hot vectors, and their gradients are noisier.
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
    """torch's RelaxedOneHotCategorical.

    Samples are at least the smallest normal number, because log z is not finite at 0.
    """

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelaxedOneHot:
        return super().expand(batch_shape, self._get_checked_instance(RelaxedOneHot, _instance))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        z = super().rsample(torch.Size(sample_shape))
        return z.clamp(min=torch.finfo(z.dtype).tiny)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)


class VonMisesFisher(_GroupFamily):
    """p(z) ~ e^(kappa mu^T z) on the unit sphere of R^K, |mu| = 1: the analogue of a Gaussian on a sphere.

    Davidson et al. 2018 (https://arxiv.org/abs/1804.00891). The features of a group are mu, of any length above 0, and
    a raw kappa. Its prior is `UniformSphere` with the same `group_size`: closed-form KL. Samples are drawn by
    rejection, which synchronises with the device; their pathwise gradient is exact.

    Args:
        event_shape: Shape of one z; the model sets it.
        group_size: K, at least 2 and a divisor of D. None: one group of all D numbers.
        min_kappa: Floor of kappa, at least 0 and below 1. kappa = 0 is uniform.
    """

    def __init__(self, event_shape: Shape, group_size: int | None = None, min_kappa: float = 0.1) -> None:
        super().__init__(event_shape, group_size)
        if not 0 <= min_kappa < 1:
            raise UserError(f"VonMisesFisher: min_kappa is {min_kappa}; it must be at least 0 and below 1")
        self.min_kappa = min_kappa

    @property
    def param_shape(self) -> Shape:
        return (self.event_shape[0] + self.num_groups,)

    def group(self, features: Tensor) -> sphere.VonMisesFisherDistribution:
        raw, raw_kappa = features[..., :-1], features[..., -1]
        north = torch.zeros_like(raw)
        north[..., 0] = 1
        length = raw.norm(dim=-1, keepdim=True)
        mu = torch.where(length > 0, raw, north)  # features of 0 have no direction
        mu = mu / mu.norm(dim=-1, keepdim=True)
        kappa = positive(raw_kappa, self.min_kappa)
        return sphere.VonMisesFisherDistribution(mu, kappa, validate_args=self.validate_args)
