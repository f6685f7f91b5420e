"""The Bessel functions behind the sphere's distributions, at every size and concentration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import kl_divergence

from vae_lightning.distributions.sphere import (
    UniformOnSphere,
    VonMisesFisherDistribution,
    log_area,
    log_power_over_bessel,
    mean_cosine,
)

KAPPA = torch.tensor([1e-6, 1e-2, 1.0, 7.0, 60.0, 900.0, 1e5], dtype=torch.float64)


def by_quadrature(order: float, kappa: Tensor) -> Tensor:
    """log(kappa^v / I_v) from I_v = (kappa/2)^v / (pi^(1/2) Gamma(v + 1/2)) int_0^pi e^(kappa cos a) sin^2v a da.

    https://dlmf.nist.gov/10.32.E2. The integral covers the angles at which the integrand is above e^-50 of its peak.
    """
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(400))
    peak = torch.acos(kappa / (order + torch.sqrt(order**2 + kappa**2)))
    reach = 14 / torch.sqrt(order + kappa + 1e-9)
    low, high = (peak - reach).clamp(min=0)[:, None], (peak + reach).clamp(max=math.pi)[:, None]
    angle = low + (high - low) * (nodes + 1) / 2  # [kappas, nodes]
    exponent = kappa[:, None] * angle.cos() + 2 * order * angle.sin().log()
    log_integral = torch.logsumexp(exponent + (weights * (high - low) / 2).log(), dim=1)
    return order * math.log(2) + 0.5 * math.log(math.pi) + math.lgamma(order + 0.5) - log_integral


@pytest.mark.parametrize("order", [0.0, 0.5, 1.0, 4.5, 31.0, 49.5, 50.0, 400.0])
def test_bessel_function_by_its_integral(order: float) -> None:
    found, expected = log_power_over_bessel(order, KAPPA), by_quadrature(order, KAPPA)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=2e-10)


def test_bessel_function_at_zero() -> None:
    """kappa^v / I_v -> 2^v Gamma(v + 1), with the gradient 0."""
    for order in (0.0, 2.5, 80.0):
        kappa = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        value = log_power_over_bessel(order, kappa)
        value.sum().backward()
        assert value.item() == pytest.approx(order * math.log(2) + math.lgamma(order + 1), abs=1e-10)
        assert kappa.grad is not None
        assert kappa.grad.item() == 0


@pytest.mark.parametrize("size", [2, 3, 4, 50, 1000])
def test_mean_cosine_is_the_slope_of_the_normaliser(size: int) -> None:
    """A = -d log C / d kappa, between 0 and 1, rising; its own slope is 1 - A^2 - (D - 1) A / kappa."""
    kappa = KAPPA.clone().requires_grad_()
    a = mean_cosine(kappa, size)
    (slope,) = torch.autograd.grad(-log_power_over_bessel(size / 2 - 1, kappa).sum(), kappa)
    torch.testing.assert_close(a, slope, rtol=0, atol=1e-10)
    assert (a.diff() > 0).all()
    assert a[0] > 0
    assert a[-1] < 1
    (second,) = torch.autograd.grad(a.sum(), kappa)
    expected = 1 - a**2 - (size - 1) * a / kappa
    torch.testing.assert_close(second[1:5], expected[1:5], rtol=1e-6, atol=0)


def test_three_dimensions_have_elementary_functions() -> None:
    """C_3 = kappa / (4 pi sinh kappa), A = coth kappa - 1 / kappa, KL = kappa A + log(kappa / sinh kappa)."""
    kappa = torch.tensor([0.01, 0.5, 3.0, 40.0], dtype=torch.float64)
    mu = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64).expand(4, 3)
    q, p = VonMisesFisherDistribution(mu, kappa), UniformOnSphere(torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(q.log_prob(mu), (kappa / (4 * math.pi * kappa.sinh())).log() + kappa)
    a = 1 / kappa.tanh() - 1 / kappa
    torch.testing.assert_close(mean_cosine(kappa, 3), a, rtol=1e-8, atol=1e-10)
    expected = kappa * a + (kappa / kappa.sinh()).log()
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-8, atol=1e-9)


def test_area() -> None:
    found = [log_area(size) for size in (2, 3, 4)]
    assert found == pytest.approx([math.log(2 * math.pi), math.log(4 * math.pi), math.log(2 * math.pi**2)])


@pytest.mark.parametrize("size", [2, 3, 10, 300])
@pytest.mark.parametrize("kappa", [0.0, 1e-3, 1.0, 30.0, 1e4])
def test_samples_and_their_gradient_in_any_dimension(size: int, kappa: float) -> None:
    """E[mu^T x] = A, and by the path gradient d E[mu^T x] / d kappa = A', within 4.5 standard errors."""
    mu = torch.nn.functional.normalize(torch.randn(size, dtype=torch.float64), dim=0)
    each = torch.full((2000,), kappa, dtype=torch.float64, requires_grad=True)
    x = VonMisesFisherDistribution(mu.expand(2000, size), each).rsample()
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(2000, dtype=torch.float64))
    cosine = x @ mu
    (path,) = torch.autograd.grad(cosine.sum(), each)
    one = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    a = mean_cosine(one, size)
    (slope,) = torch.autograd.grad(a, one)
    for values, expected in ((cosine, a), (path, slope)):
        error = values.std() / 2000**0.5 + 1e-12
        assert (values.mean() - expected).abs() / error < 4.5


def test_float32_density_of_a_concentrated_distribution() -> None:
    """At kappa = 10^4 in 50 dimensions log p agrees with float64 to 1e-3, because no large numbers cancel."""
    mu = torch.nn.functional.normalize(torch.randn(20, 50), dim=-1)
    q = VonMisesFisherDistribution(mu, torch.full((20,), 1e4))
    x = q.sample()
    exact_mu, exact_x = (torch.nn.functional.normalize(part.double(), dim=-1) for part in (mu, x))
    exact = VonMisesFisherDistribution(exact_mu, torch.full((20,), 1e4, dtype=torch.float64)).log_prob(exact_x)
    torch.testing.assert_close(q.log_prob(x).double(), exact, rtol=0, atol=1e-3)
