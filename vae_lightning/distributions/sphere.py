"""Distributions on the unit sphere {x : |x| = 1} of R^D: uniform, and von Mises-Fisher. D is at least 2.

Densities are with respect to the sphere's surface. Functions of kappa alone are computed in float64, because they are
small differences of large numbers, for example 1 - A(kappa) of a concentrated distribution.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Beta, Distribution, constraints

_SHIFT = 50  # lower orders are computed by recurrence
_NODES, _WEIGHTS = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(48))


class _UnitSphere(constraints.Constraint):
    """|x| = 1, up to the rounding of float32."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value.norm(dim=-1) - 1).abs() < 1e-4


unit_sphere = _UnitSphere()


def log_area(size: int) -> float:
    """log of the surface of the unit sphere of R^D: log 2 + D/2 log pi - log Gamma(D/2)."""
    return math.log(2) + size / 2 * math.log(math.pi) - math.lgamma(size / 2)


class UniformOnSphere(Distribution):
    """p(x) = 1 / area.

    Args:
        zeros: [..., D]; gives the shape, the dtype and the device.
        validate_args: Whether arguments are checked; None: torch's default.
    """

    arg_constraints: ClassVar = {}
    support = unit_sphere
    has_rsample = True

    def __init__(self, zeros: Tensor, validate_args: bool | None = None) -> None:
        self.zeros = zeros
        super().__init__(zeros.shape[:-1], zeros.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> UniformOnSphere:
        return UniformOnSphere(self.zeros.expand(*batch_shape, *self.event_shape), self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self.zeros

    @property
    def variance(self) -> Tensor:
        return torch.full_like(self.zeros, 1 / self.event_shape[0])

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return _unit(torch.randn(shape, dtype=self.zeros.dtype, device=self.zeros.device))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape, self.zeros.shape)[:-1]
        return torch.full(shape, -log_area(self.event_shape[0]), dtype=self.zeros.dtype, device=self.zeros.device)

    def entropy(self) -> Tensor:
        return torch.full_like(self.zeros[..., 0], log_area(self.event_shape[0]))


class VonMisesFisherDistribution(Distribution):
    """p(x) = C_D(kappa) e^(kappa mu^T x), |mu| = 1, kappa >= 0, C_D = kappa^v / ((2 pi)^(D/2) I_v(kappa)), v = D/2 - 1.

    Args:
        mu: The mean direction, [..., D], of length 1.
        kappa: The concentration, [...]; 0 is uniform.
        validate_args: Whether arguments are checked; None: torch's default.
    """

    arg_constraints: ClassVar = {"mu": unit_sphere, "kappa": constraints.nonnegative}
    support = unit_sphere
    has_rsample = True

    def __init__(self, mu: Tensor, kappa: Tensor, validate_args: bool | None = None) -> None:
        batch_shape = torch.broadcast_shapes(mu.shape[:-1], kappa.shape)
        self.mu, self.kappa = mu.expand(*batch_shape, mu.shape[-1]), kappa.expand(batch_shape)
        super().__init__(batch_shape, mu.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> VonMisesFisherDistribution:
        mu, kappa = self.mu.expand(*batch_shape, *self.event_shape), self.kappa.expand(batch_shape)
        return VonMisesFisherDistribution(mu, kappa, self._validate_args)

    @property
    def size(self) -> int:
        """D."""
        return self.event_shape[0]

    @property
    def mean(self) -> Tensor:
        """A(kappa) mu."""
        return mean_cosine(self.kappa, self.size).to(self.mu)[..., None] * self.mu

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate: E[t^2] mu^2 + E[1 - t^2] (1 - mu^2) / (D - 1) - (A mu)^2, t = mu^T x."""
        a, kappa = mean_cosine(self.kappa, self.size), self.kappa.double()
        across = torch.where(kappa > 1e-6, a / kappa.clamp(min=1e-6), 1 / self.size)  # E[1 - t^2] / (D - 1)
        along = 1 - (self.size - 1) * across - a**2
        mu2 = self.mu.square()
        return along.to(mu2)[..., None] * mu2 + across.to(mu2)[..., None] * (1 - mu2)

    def log_prob(self, value: Tensor) -> Tensor:
        """kappa (mu^T x - 1) + log C e^kappa. With 1 - mu^T x = |x - mu|^2 / 2 no large numbers cancel."""
        if self._validate_args:
            self._validate_sample(value)
        return self._log_peak().to(self.mu) - self.kappa * (value - self.mu).square().sum(-1) / 2

    def entropy(self) -> Tensor:
        """-kappa A - log C."""
        spread = self.kappa.double() * (1 - mean_cosine(self.kappa, self.size))
        return (spread - self._log_peak()).to(self.mu)

    def kl_to_uniform(self) -> Tensor:
        """log area - H: [...]."""
        spread = self.kappa.double() * (1 - mean_cosine(self.kappa, self.size))
        return (log_area(self.size) + self._log_peak() - spread).to(self.mu)

    def _log_peak(self) -> Tensor:
        """log C_D(kappa) + kappa, the density at mu: float64."""
        kappa = self.kappa.double()
        return log_power_over_bessel(self.size / 2 - 1, kappa) + kappa - self.size / 2 * math.log(2 * math.pi)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """x = t mu + (1 - t^2)^(1/2) v, t from its own density, v uniform on the unit vectors orthogonal to mu."""
        shape = self._extended_shape(torch.Size(sample_shape))
        kappa = self.kappa.double().expand(shape[:-1])
        t = _Cosine.apply(kappa, self.size)[..., None]
        noise = torch.randn(shape, dtype=self.mu.dtype, device=self.mu.device)
        across = _unit(noise - (noise * self.mu).sum(-1, keepdim=True) * self.mu)
        return t.to(self.mu) * self.mu + (1 - t.square()).clamp(min=0).sqrt().to(self.mu) * across


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


# -- Bessel functions --------------------------------------------------------------------------------------------------


def log_power_over_bessel(order: float, kappa: Tensor) -> Tensor:
    """log(kappa^v / I_v(kappa)), v = `order` >= 0, kappa >= 0 in float64: smooth at 0, with an error of about 1e-10.

    From order 50 on by the uniform asymptotic expansion (https://dlmf.nist.gov/10.41.E3). Lower orders follow by the
    recurrence I_(n-1) / I_n = 2n / kappa + I_(n+1) / I_n, which is stable in the direction of falling n.
    """
    steps = max(0, math.ceil(_SHIFT - order))
    top = order + steps
    result = _expansion(top, kappa)
    ratio = torch.exp(result - _expansion(top + 1, kappa))  # I_(n+1) / (kappa I_n)
    for step in range(steps):
        bracket = 2 * (top - step) + kappa.square() * ratio  # kappa I_(n-1) / I_n
        result = result - torch.log(bracket)
        ratio = 1 / bracket
    return result


def _expansion(order: float, kappa: Tensor) -> Tensor:
    """log(kappa^v / I_v(kappa)) for a large v."""
    root = torch.sqrt(order**2 + kappa.square())
    p = order / root
    p2 = p.square()
    u1 = p * (3 - 5 * p2) / 24
    u2 = p2 * (81 - p2 * (462 - 385 * p2)) / 1152
    u3 = p * p2 * (30375 - p2 * (369603 - p2 * (765765 - 425425 * p2))) / 414720
    u4 = p2**2 * (4465125 - p2 * (94121676 - p2 * (349922430 - p2 * (446185740 - 185910725 * p2)))) / 39813120
    series = u1 / order + u2 / order**2 + u3 / order**3 + u4 / order**4
    return order * torch.log(order + root) - root + 0.5 * torch.log(2 * math.pi * root) - torch.log1p(series)


def mean_cosine(kappa: Tensor, size: int) -> Tensor:
    """A(kappa) = E[mu^T x] = I_(D/2)(kappa) / I_(D/2-1)(kappa): float64."""
    kappa, order = kappa.double(), size / 2 - 1
    return kappa * torch.exp(log_power_over_bessel(order, kappa) - log_power_over_bessel(order + 1, kappa))


# -- t = mu^T x, of density ~ e^(kappa t) (1 - t^2)^((D - 3) / 2) on [-1, 1] ------------------------------------------


class _Cosine(torch.autograd.Function):
    """t ~ p(t; kappa), with dt/dkappa = -(dF/dkappa) / p(t): the gradient of implicit reparameterisation.

    Figurnov et al. 2018 (https://arxiv.org/abs/1805.08498), eq. 6. This gradient is exact; that of the accepted
    proposal alone is not.
    """

    @staticmethod
    def forward(ctx: Any, kappa: Tensor, size: int) -> Tensor:
        t = _sample_cosine(kappa, size)
        ctx.save_for_backward(t, kappa)
        ctx.size = size
        return t

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        t, kappa = ctx.saved_tensors
        return grad * _cosine_slope(t, kappa, ctx.size), None


def _sample_cosine(kappa: Tensor, size: int) -> Tensor:
    """By rejection; about two of three proposals are kept. Wood 1994 (https://doi.org/10.1080/03610919408813161)."""
    m = size - 1
    b = m / (2 * kappa + torch.sqrt(4 * kappa.square() + m**2))
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + m * torch.log1p(-x0.square())
    proposals = Beta(torch.full_like(kappa, m / 2), m / 2, validate_args=False)
    t, waiting = torch.zeros_like(kappa), torch.ones_like(kappa, dtype=torch.bool)
    while waiting.any():
        z = proposals.sample()
        w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
        kept = kappa * w + m * torch.log1p(-x0 * w) - c >= torch.rand_like(w).log()
        t = torch.where(waiting & kept, w, t)
        waiting = waiting & ~kept
    return t.clamp(-1 + 1e-14, 1 - 1e-14)


def _cosine_slope(t: Tensor, kappa: Tensor, size: int) -> Tensor:
    """dt/dkappa = -1/p(t) int_-1^t p(s) (s - A) ds, by Gauss-Legendre quadrature over the tail on t's side of the mode.

    With t = cos a, the density of the angle, g(a) ~ e^(kappa cos a) sin^(D-2) a, is smooth for D = 2 too.
    """
    half, n = (size - 2) / 2, size - 2
    root = torch.sqrt(half**2 + kappa.square())
    sharpness = (half + root).clamp(min=1e-12)  # the variance of the angle is at most about 1 / sharpness
    mode, angle = torch.acos((kappa / sharpness).clamp(max=1 - 1e-12)), torch.acos(t)
    reach = 12 / torch.sqrt(sharpness)
    end = torch.where(angle < mode, (angle - reach).clamp(min=0), (angle + reach).clamp(max=math.pi))
    nodes, weights = (part.to(t.device) for part in (_NODES, _WEIGHTS))
    length = (end - angle)[..., None]  # negative below the mode
    points = angle[..., None] + length * (nodes + 1) / 2  # [..., nodes]
    log_ratio = kappa[..., None] * (torch.cos(points) - t[..., None])
    log_ratio = log_ratio + n * (torch.log(torch.sin(points)) - torch.log(torch.sin(angle))[..., None])
    excess = torch.cos(points) - mean_cosine(kappa, size)[..., None]
    integral = (torch.exp(log_ratio) * excess * weights).sum(-1) * length[..., 0] / 2
    return -torch.sin(angle) * integral
