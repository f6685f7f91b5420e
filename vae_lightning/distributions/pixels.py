"""Distributions, most of them of pixels in [0, 1], that torch lacks or has in a form that loses digits or time.

`families.py` and `levels.py` make them from features: the family `Binomial` makes a `BinomialDistribution`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, constraints
from torch.distributions import Normal as TorchNormal
from torch.nn import functional as F


class BernoulliDistribution(TorchBernoulli):
    """torch's Bernoulli from a logit eta, with log p(x) = log sigmoid((2x - 1) eta) for x in {0, 1} only.

    torch's own log_prob reads and writes all pixels three times more often, which is a twentieth of a small network's
    step.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return F.logsigmoid((2 * value.to(self.logits) - 1) * self.logits)


class Normal(TorchNormal):
    """torch's Normal, with log p(x) = -((x - mu) / sigma)^2 / 2 - log sigma - log(2 pi) / 2.

    torch's own log_prob reads and writes all pixels twice as often, and takes the logarithm of one sigma for every
    pixel.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        sigma = without_repeats(self.scale)
        distance = (value - self.loc) * sigma.reciprocal()
        return torch.addcmul(-torch.log(sigma) - math.log(2 * math.pi) / 2, distance, distance, value=-0.5)


def without_repeats(expanded: Tensor) -> Tensor:
    """The numbers without the repetitions of `expand`: repeated dimensions get size 1."""
    for dim, (size, stride) in enumerate(zip(expanded.shape, expanded.stride(), strict=True)):
        if size > 1 and stride == 0:
            expanded = expanded.narrow(dim, 0, 1)
    return expanded


class _LogitPixels(Distribution):
    """A distribution of one pixel with one logit as its parameter. The shape of the logits is the batch shape."""

    arg_constraints: ClassVar = {"logits": constraints.real}

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        return self._like(self.logits.expand(batch_shape))

    @abstractmethod
    def _like(self, logits: Tensor) -> Distribution:
        """The same distribution with other logits."""


_NEAR_ZERO = 1.0
"""The |eta| below which 1 - e^-eta has lost digits, so that a continuous Bernoulli is computed by series."""


def _log_sinh_ratio(y: Tensor) -> Tensor:
    """log(sinh(y) / y) by the series 1 + y^2/6 (1 + y^2/20 (1 + ...)); exact to 1e-14 for |y| <= 1/2."""
    square, total = y * y, torch.ones_like(y)
    for n in range(6, 1, -1):
        total = 1 + total * square / (2 * n * (2 * n + 1))
    return torch.log1p(total * square / 6)


def _langevin(y: Tensor) -> Tensor:
    """coth(y) - 1/y by the continued fraction y / (3 + y^2 / (5 + y^2 / (7 + ...))); exact to 1e-14 for |y| <= 1/2."""
    square, total = y * y, torch.full_like(y, 13.0)
    for n in range(11, 1, -2):
        total = n + square / total
    return y / total


class ContinuousBernoulliDistribution(_LogitPixels):
    """p(x) = eta e^(eta x) / (e^eta - 1) on [0, 1]: the Bernoulli's shape, normalised for grey values.

    Loaiza-Ganem & Cunningham 2019 (https://arxiv.org/abs/1907.06845), who write lambda = sigmoid(eta). In the form with
    eta the density stays exact where lambda rounds to 0 or 1; torch's own class stops at |eta| = 16.

    Args:
        logits: eta, any shape.
        validate_args: Whether arguments are checked; None: torch's default.
    """

    support = constraints.unit_interval
    has_rsample = True

    def _like(self, logits: Tensor) -> ContinuousBernoulliDistribution:
        return ContinuousBernoulliDistribution(logits, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - self._log_normaliser()

    def _log_normaliser(self) -> Tensor:
        """log((e^eta - 1) / eta) = eta / 2 + log(sinh(eta / 2) / (eta / 2)), by a series of sinh if eta is small."""
        size = self.logits.abs()
        near_zero = size < _NEAR_ZERO
        far, near = torch.where(near_zero, _NEAR_ZERO, size), torch.where(near_zero, self.logits, 0.0)
        exact = size / 2 + torch.log1p(-torch.exp(-far)) - torch.log(far)
        return self.logits / 2 + torch.where(near_zero, _log_sinh_ratio(near / 2), exact)

    @property
    def mean(self) -> Tensor:
        """E[x] = 1 / (1 - e^-eta) - 1 / eta = 1/2 + L(eta / 2) / 2, where L is Langevin's function.

        The first form subtracts two large numbers if eta is small, so there the second is used.
        """
        near_zero = self.logits.abs() < _NEAR_ZERO
        far, near = torch.where(near_zero, _NEAR_ZERO, self.logits), torch.where(near_zero, self.logits, 0.0)
        exact = -1 / torch.expm1(-far.clamp(min=-80)) - 1 / far  # below -80 the first term is negligible beside 1 / eta
        return torch.where(near_zero, 0.5 + _langevin(near / 2) / 2, exact)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """x = log(1 + u (e^eta - 1)) / eta, the inverse distribution function, in a form that cannot overflow."""
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        size = self.logits.abs().expand(shape)
        near_zero = size < 1e-3
        safe = torch.where(near_zero, torch.ones_like(size), size)
        from_one = torch.log1p(torch.expm1(-safe) * u) / -safe  # the distance from the end that the logit favours
        x = torch.where(near_zero, u, from_one)
        return torch.where(self.logits > 0, 1 - x, x).clamp(0, 1)


class BinomialDistribution(_LogitPixels):
    """p(x) = C(n, nx) p^(nx) (1-p)^(n-nx) for x in {0, 1/n, ..., 1}: a pixel with n + 1 grey levels.

    This is a probability mass, so its nats can be compared with those of every other mass over the same levels.

    Args:
        num_steps: n, the number of grey levels minus 1.
        logits: The logit of p, any shape.
        validate_args: Whether arguments are checked; None: torch's default.
    """

    has_rsample = False

    def __init__(self, num_steps: int, logits: Tensor, validate_args: bool | None = None) -> None:
        self.num_steps = num_steps
        super().__init__(logits, validate_args)

    def _like(self, logits: Tensor) -> BinomialDistribution:
        return BinomialDistribution(self.num_steps, logits, validate_args=self._validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _Levels(self.num_steps)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        n, k = self.num_steps, torch.round(value * self.num_steps)
        log_choose = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        return log_choose + k * F.logsigmoid(self.logits) + (n - k) * F.logsigmoid(-self.logits)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(self.logits)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            n = torch.full(shape, float(self.num_steps), dtype=self.logits.dtype, device=self.logits.device)
            return torch.binomial(n, torch.sigmoid(self.logits).expand(shape)) / self.num_steps


class DiscretizedLogisticDistribution(Distribution):
    """P(x) = F(x + 1/2n) - F(x - 1/2n) for x in {0, 1/n, ..., 1}, F the distribution function of a logistic(mu, s).

    The first bin starts at -infinity and the last ends at infinity, so the masses of all n + 1 levels have sum 1.
    Salimans et al. 2017 (https://arxiv.org/abs/1701.05517), section 2.1. The form sigmoid(a) - sigmoid(b) = sigmoid(a)
    sigmoid(-b) (1 - e^(b - a)) makes the logarithm exact in the far tails too, without a floor or a second formula.

    Args:
        num_steps: n, the number of grey levels minus 1.
        loc: mu, any shape.
        scale: s > 0, in the units of x.
        validate_args: Whether arguments are checked; None: torch's default.
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    has_rsample = False

    def __init__(self, num_steps: int, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        self.num_steps = num_steps
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogisticDistribution:
        parts = (self.loc.expand(batch_shape), self.scale.expand(batch_shape))
        return DiscretizedLogisticDistribution(self.num_steps, *parts, validate_args=self._validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _Levels(self.num_steps)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        k = torch.round(value * self.num_steps)
        first, last = k == 0, k == self.num_steps
        middle, width = (k / self.num_steps - self.loc) / self.scale, 1 / (self.num_steps * self.scale)
        below_upper = F.logsigmoid(middle + width / 2).masked_fill(last, 0)  # log sigmoid(a); 0 if a is infinite
        above_lower = F.logsigmoid(width / 2 - middle).masked_fill(first, 0)  # log sigmoid(-b)
        return below_upper + above_lower + torch.log(-torch.expm1(-width)).masked_fill(first | last, 0)

    @property
    def mean(self) -> Tensor:
        """E[x] = 1/n sum_k P(x > (k - 1/2) / n), k = 1 .. n: an exact sum over levels."""
        total = torch.zeros_like(self.loc)
        for k in range(1, self.num_steps + 1):
            total = total + torch.sigmoid((self.loc - (k - 0.5) / self.num_steps) / self.scale)
        return total / self.num_steps

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """A logistic number, rounded to the nearest level."""
        with torch.no_grad():
            shape = self._extended_shape(torch.Size(sample_shape))
            u = torch.rand(shape, dtype=self.loc.dtype, device=self.loc.device).clamp(min=1e-7, max=1 - 1e-7)
            x = self.loc + self.scale * torch.logit(u)
            return torch.round(x * self.num_steps).clamp(0, self.num_steps) / self.num_steps


class CategoricalLevelsDistribution(Distribution):
    """P(x = k/n) = softmax(logits)_k, k = 0 .. n: any distribution over n + 1 grey levels.

    Args:
        logits: [..., n + 1].
        validate_args: Whether arguments are checked; None: torch's default.
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    has_rsample = False

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        self.num_steps = logits.shape[-1] - 1
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> CategoricalLevelsDistribution:
        return CategoricalLevelsDistribution(self.logits.expand(*batch_shape, self.num_steps + 1), self._validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _Levels(self.num_steps)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        k = torch.round(value * self.num_steps).long()
        k, _ = torch.broadcast_tensors(k, self.logits[..., 0])
        log_p = self.logits.log_softmax(-1).expand(*k.shape, -1)
        return log_p.gather(-1, k[..., None]).squeeze(-1)

    @property
    def mean(self) -> Tensor:
        levels = torch.linspace(0, 1, self.num_steps + 1, dtype=self.logits.dtype, device=self.logits.device)
        return (self.logits.softmax(-1) * levels).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        with torch.no_grad():
            k = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(
                torch.Size(sample_shape)
            )
            return k.to(self.logits) / self.num_steps


class _Levels(constraints.Constraint):
    """{0, 1/n, ..., 1}, up to the rounding of float32."""

    is_discrete = True

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def check(self, value: Tensor) -> Tensor:
        scaled = value * self.num_steps
        return (value >= 0) & (value <= 1) & ((scaled - scaled.round()).abs() < 1e-3)
