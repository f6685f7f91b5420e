"""Families: modules that turn raw features into a distribution. Posteriors and likelihoods are both families.

To add a family, subclass `Family`, state how many numbers each dimension needs (`num_params`), and build the
distribution of one dimension from these numbers (`pointwise`). If the dimensions depend on each other, override
`param_shape` and `distribution` instead. Add a row to the table in `tests/distributions/`, so that every law is
checked.

A density without a source in its docstring is in textbooks (Bishop, "Pattern Recognition and Machine Learning", 2006).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent
from torch.distributions import Laplace as TorchLaplace
from torch.distributions import Normal as TorchNormal
from torch.distributions import StudentT as TorchStudentT
from torch.nn import functional as F

from vae_lightning.distributions import pixels
from vae_lightning.distributions.masks import MaskedPositions
from vae_lightning.types import Shape, UserError


class Family(nn.Module):
    """features [..., *param_shape] -> a distribution with batch shape [...] and event shape `event_shape`.

    `param_shape` is `event_shape` with its first dimension (features or channels) repeated `num_params` times; of one
    number, whose event shape is (), it is [num_params]. Features are cast to float32 with autocast off, so no density
    is computed in half precision (float64 stays float64). `log_prob` is in nats, summed over the event.

    Args:
        event_shape: Shape of one variable (of z for a posterior, of x for a likelihood); the model sets it.
    """

    num_params: int = 1
    validate_args: ClassVar[bool] = False
    """Off, because checking arguments synchronises with the device at each step. The test suite turns it on."""

    def __init__(self, event_shape: Shape) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)

    @property
    def param_shape(self) -> Shape:
        """The shape of the features of one distribution."""
        first, *others = self.event_shape or (1,)
        return (self.num_params * first, *others)

    def forward(self, features: Tensor) -> Distribution:
        if torch.compiler.is_exporting():  # outside of autocast; a graph with nested regions of autocast is not saved
            return self._in_full_precision(features)
        with torch.autocast(features.device.type, enabled=False):
            return self._in_full_precision(features)

    def _in_full_precision(self, features: Tensor) -> Distribution:
        full = features if features.dtype == torch.float64 else features.float()
        return name_distribution(self.distribution(full), type(self).__name__)

    def distribution(self, features: Tensor) -> Distribution:
        """The distribution of features in full precision.

        Here the dimensions are independent, each from `pointwise`.
        """
        if self.event_shape:
            params = features.chunk(self.num_params, dim=-len(self.event_shape))  # num_params x [..., *event_shape]
        else:
            params = features.unbind(-1)
        return Independent(self.pointwise(*params), len(self.event_shape), validate_args=self.validate_args)

    def pointwise(self, *params: Tensor) -> Distribution:
        """The distribution of each dimension alone, with batch shape [..., *event_shape].

        A family that overrides `distribution` does not need it.
        """
        raise NotImplementedError(f"{type(self).__name__} defines neither pointwise nor distribution")


FamilyRecipe: TypeAlias = Callable[[Shape], Family]
"""A `Family` class, or a `functools.partial` of one: called as `recipe(event_shape)`."""


def name_distribution(p: Distribution, name: str) -> Distribution:
    """Tag p with the name of the `Family` or `Prior` that built it; error messages use the tag (`distribution_name`).

    The tag is set on the innermost base distribution because `Given` re-wraps it. A first tag is not overwritten.
    """
    inner = p
    while isinstance(inner, Independent):
        inner = inner.base_dist
    if not hasattr(inner, "distribution_name"):
        inner.distribution_name = name  # type: ignore[attr-defined]
    return p


def positive(raw: Tensor, floor: float) -> Tensor:
    """floor + softplus(raw + c), with the c that makes the result 1 at raw = 0.

    So features of 0 give the simplest member.
    """
    return floor + F.softplus(raw + inverse_softplus(1 - floor))


def inverse_softplus(value: float) -> float:
    """The raw number with softplus(raw) = `value`."""
    return value + math.log(-math.expm1(-value))


class _LocationScale(Family):
    """mu + s eps in each dimension. The features hold mu, and also a raw s unless s is one fixed or learned number."""

    raw_sigma: Tensor
    """The raw s, also of a Laplace or Student-t; checkpoints of a learned s have this name as a key, so it stays."""

    scale_name: ClassVar[str] = "scale"

    def __init__(self, event_shape: Shape, scale: float | None, learn_scale: bool, min_scale: float) -> None:
        super().__init__(event_shape)
        owner, name = type(self).__name__, self.scale_name
        if min_scale < 0 or (scale is not None and scale <= min_scale):
            raise UserError(f"{owner}: {name} {scale} must be above min_{name} {min_scale}, which must be at least 0")
        if learn_scale and scale is None:
            raise UserError(f"{owner}: learn_{name} needs a {name} to start from, such as 0.1")
        self.num_params = 2 if scale is None else 1
        self.min_scale = min_scale
        if scale is not None:
            raw = torch.tensor(inverse_softplus(scale - min_scale))
            if learn_scale:
                self.raw_sigma = nn.Parameter(raw)
            else:
                self.register_buffer("raw_sigma", raw, persistent=False)

    def location_and_scale(self, params: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        mu, raw = params if self.num_params == 2 else (params[0], self.raw_sigma.to(params[0].dtype))
        return mu, (self.min_scale + F.softplus(raw)).expand_as(mu)


class DiagonalNormal(_LocationScale):
    """N(mu, diag sigma^2), with sigma predicted, fixed, or learned as one number.

    The usual posterior. As a likelihood it is a squared error with a stated weight; `learn_sigma` then gives the
    sigma-VAE of Rybkin et al. 2021 (https://arxiv.org/abs/2006.13202).

    Args:
        event_shape: Shape of one variable (of z for a posterior, of x for a likelihood); the model sets it.
        sigma: The standard deviation, in the units of the variable. None: the features hold a raw sigma for every
            dimension, sigma = min_sigma + softplus(raw).
        learn_sigma: Whether `sigma` is the start of one learned parameter that all dimensions share.
        min_sigma: Floor of sigma, in the units of the variable. Without a floor, a likelihood that fits a pixel exactly
            has no upper bound; for pixels in [0, 1] choose at most about 1/255.

    Raises:
        UserError: if sigma is not above min_sigma, or learn_sigma has no sigma to start from.
    """

    scale_name = "sigma"

    def __init__(
        self, event_shape: Shape, sigma: float | None = None, learn_sigma: bool = False, min_sigma: float = 1e-3
    ) -> None:
        super().__init__(event_shape, sigma, learn_sigma, min_sigma)

    def pointwise(self, *params: Tensor) -> pixels.Normal:
        return pixels.Normal(*self.location_and_scale(params), validate_args=self.validate_args)


class Laplace(_LocationScale):
    """p(x) = e^(-|x - mu| / b) / 2b in each dimension.

    As a likelihood it is the absolute error with a stated weight. As a posterior it has a closed-form KL against
    `StandardNormal` and against itself (`FamilyPrior`).

    Args:
        event_shape: Shape of one variable (of z for a posterior, of x for a likelihood); the model sets it.
        scale: b, in the units of the variable. None: the features hold a raw b for every dimension,
            b = min_scale + softplus(raw).
        learn_scale: Whether `scale` is the start of one learned parameter that all dimensions share.
        min_scale: Floor of b, in the units of the variable.
    """

    def __init__(
        self, event_shape: Shape, scale: float | None = None, learn_scale: bool = False, min_scale: float = 1e-3
    ) -> None:
        super().__init__(event_shape, scale, learn_scale, min_scale)

    def pointwise(self, *params: Tensor) -> TorchLaplace:
        return TorchLaplace(*self.location_and_scale(params), validate_args=self.validate_args)


class StudentT(_LocationScale):
    """p(x) ~ (1 + ((x - mu) / s)^2 / df)^(-(df + 1) / 2) in each dimension: heavier tails than a Gaussian's.

    Choose it as a likelihood if a few pixels lie far from their mean. As a posterior its KL is sampled.

    Args:
        event_shape: Shape of one variable (of z for a posterior, of x for a likelihood); the model sets it.
        df: Degrees of freedom, fixed; above 1, because the mean exists only there.
        scale: s, in the units of the variable. None: the features hold a raw s for every dimension,
            s = min_scale + softplus(raw).
        learn_scale: Whether `scale` is the start of one learned parameter that all dimensions share.
        min_scale: Floor of s, in the units of the variable.
    """

    def __init__(
        self,
        event_shape: Shape,
        df: float = 4.0,
        scale: float | None = None,
        learn_scale: bool = False,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(event_shape, scale, learn_scale, min_scale)
        if not df > 1:
            raise UserError(f"StudentT: df is {df}; it must be above 1, because the mean exists only there")
        self.df = df

    def pointwise(self, *params: Tensor) -> TorchStudentT:
        mu, scale = self.location_and_scale(params)
        return TorchStudentT(torch.full_like(mu, self.df), mu, scale, validate_args=self.validate_args)


class Bernoulli(Family):
    """Bern(x; sigmoid(logit)), for pixels that are 0 or 1. A grey pixel has no probability under it.

    Args:
        event_shape: Shape of one x; the model sets it.
    """

    def pointwise(self, *params: Tensor) -> pixels.BernoulliDistribution:
        return pixels.BernoulliDistribution(logits=params[0], validate_args=self.validate_args)


class ContinuousBernoulli(Family):
    """CB(x; logit), a density of grey values in [0, 1].

    Choose it where a Bernoulli's cross-entropy is used for grey pixels, which is not a likelihood. Loaiza-Ganem &
    Cunningham 2019 (https://arxiv.org/abs/1907.06845); the formula is in `pixels.ContinuousBernoulliDistribution`.

    Args:
        event_shape: Shape of one x; the model sets it.
    """

    def pointwise(self, *params: Tensor) -> pixels.ContinuousBernoulliDistribution:
        return pixels.ContinuousBernoulliDistribution(params[0], validate_args=self.validate_args)


class Binomial(Family):
    """Bin(n x; n, sigmoid(logit)), for pixels with n + 1 grey levels 0, 1/n, ..., 1.

    Args:
        event_shape: Shape of one x; the model sets it.
        num_steps: n, the number of grey levels minus 1; at least 1.
    """

    def __init__(self, event_shape: Shape, num_steps: int) -> None:
        super().__init__(event_shape)
        if num_steps < 1:
            raise UserError(f"Binomial: num_steps is {num_steps}; pixels with L grey levels need L - 1, at least 1")
        self.num_steps = num_steps

    def pointwise(self, *params: Tensor) -> pixels.BinomialDistribution:
        return pixels.BinomialDistribution(self.num_steps, params[0], validate_args=self.validate_args)


def noise_scale(p_x: Distribution) -> Tensor | None:
    """The standard deviation of a Gaussian p(x|z), averaged over pixels and examples; None for any other likelihood.

    Positions that a mask hides are left out. Logged as `sigma`, because the likelihood in nats depends on
    the sigma: a weighted squared error is a Gaussian with some sigma.
    """
    base: Distribution = p_x.base_dist if isinstance(p_x, Independent) else p_x
    seen: Tensor | None = None
    if isinstance(base, MaskedPositions):
        seen = base.seen
        base = base.base_dist
    if not isinstance(base, TorchNormal):
        return None
    if seen is None:
        return pixels.without_repeats(base.scale).mean()
    counted = seen.expand(base.scale.shape)
    return torch.where(counted, base.scale, 0.0).sum() / counted.sum()
