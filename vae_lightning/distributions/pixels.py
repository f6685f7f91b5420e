"""Distributions of pixels in [0, 1] that torch lacks, or has in a form that loses digits."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints
from torch.nn import functional as F


class _LogitPixels(Distribution):
    """A distribution of one pixel, with one logit as its parameter. Any shape of logits is the batch shape."""

    arg_constraints: ClassVar = {"logits": constraints.real}

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        return self._like(self.logits.expand(batch_shape))

    @abstractmethod
    def _like(self, logits: Tensor) -> Distribution:
        """This distribution, with other logits."""


class ContinuousBernoulli(_LogitPixels):
    """p(x) = eta e^(eta x) / (e^eta - 1) on [0, 1]: the Bernoulli's shape, normalised for grey values.

    `eta` is the logit. Written in it (Loaiza-Ganem & Cunningham 2019, https://arxiv.org/abs/1907.06845, write lambda =
    sigmoid(eta)) the density stays exact where lambda rounds to 0 or 1; torch's own class stops at |eta| = 16.
    """

    support = constraints.unit_interval
    has_rsample = True

    def _like(self, logits: Tensor) -> ContinuousBernoulli:
        return ContinuousBernoulli(logits, validate_args=self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * value - self._log_normaliser()

    def _log_normaliser(self) -> Tensor:
        """log((e^eta - 1) / eta), by its series where eta is small."""
        size = self.logits.abs()
        near_zero = size < 1e-2
        safe = torch.where(near_zero, torch.ones_like(size), size)
        tail = torch.where(near_zero, self._series(size), torch.log1p(-torch.exp(-safe)) - torch.log(safe))
        return (self.logits + size) / 2 + tail  # max(eta, 0), with its right gradient at 0

    @staticmethod
    def _series(size: Tensor) -> Tensor:
        """log((1 - e^-s) / s) = -s/2 + s^2/24 - s^4/2880 + O(s^6)."""
        return -size / 2 + size**2 / 24 - size**4 / 2880

    @property
    def mean(self) -> Tensor:
        """E[x] = 1 / (1 - e^-eta) - 1 / eta."""
        near_zero = self.logits.abs() < 1e-2
        safe = torch.where(near_zero, torch.ones_like(self.logits), self.logits)
        exact = -1 / torch.expm1(-safe) - 1 / safe
        return torch.where(near_zero, 0.5 + self.logits / 12, exact)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """x = log(1 + u (e^eta - 1)) / eta, the inverse of the distribution function, where it cannot overflow."""
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        size = self.logits.abs().expand(shape)
        near_zero = size < 1e-3
        safe = torch.where(near_zero, torch.ones_like(size), size)
        from_one = torch.log1p(torch.expm1(-safe) * u) / -safe  # distance from the side that the logit favours
        x = torch.where(near_zero, u, from_one)
        return torch.where(self.logits > 0, 1 - x, x).clamp(0, 1)


class Binomial(_LogitPixels):
    """p(x) = C(n, nx) p^(nx) (1-p)^(n-nx) for x in {0, 1/n, ..., 1}: a pixel with n + 1 grey levels.

    A probability mass, so its nats are comparable with those of every other discrete likelihood of the same levels.
    """

    has_rsample = False

    def __init__(self, num_steps: int, logits: Tensor, validate_args: bool | None = None) -> None:
        self.num_steps = num_steps
        super().__init__(logits, validate_args)

    def _like(self, logits: Tensor) -> Binomial:
        return Binomial(self.num_steps, logits, validate_args=self._validate_args)

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


class _Levels(constraints.Constraint):
    """{0, 1/n, ..., 1}, to float32's rounding."""

    is_discrete = True

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def check(self, value: Tensor) -> Tensor:
        scaled = value * self.num_steps
        return (value >= 0) & (value <= 1) & ((scaled - scaled.round()).abs() < 1e-3)
