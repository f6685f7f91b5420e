"""A Trace's numbers against known answers."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Beta, Distribution, Gamma, Independent, MultivariateNormal, Normal, StudentT

from vae_lightning.trace import Latent, Trace


def normal(loc: float, scale: float, *shape: int) -> Independent:
    full = torch.full(shape, loc, dtype=torch.float64)
    return Independent(Normal(full, torch.full_like(full, scale)), 1)


def latent(q: Distribution, p: Distribution, num_samples: int = 1) -> Latent:
    return Latent(q.sample((num_samples,)), q, p)


def test_closed_form_kl_equals_monte_carlo() -> None:
    """KL(N(1, 0.5^2) || N(0, 1)) = (0.25 + 1 - 1) / 2 + log 2, in each of 3 dimensions."""
    one = latent(normal(1, 0.5, 4, 3), normal(0, 1, 3), num_samples=50_000)
    expected = 3 * ((0.25 + 1 - 1) / 2 + 0.6931471806)
    assert one.kl_estimator == "closed form"
    torch.testing.assert_close(one.kl(), torch.full((4,), expected, dtype=torch.float64))
    torch.testing.assert_close(one.log_ratio().mean(0), one.kl(), atol=0.05, rtol=0)


def test_kl_without_a_closed_form_is_sampled_and_says_so() -> None:
    q = Independent(StudentT(torch.full((4, 3), 3.0).double()), 1)
    one = latent(q, normal(0, 1, 3), num_samples=2)
    assert one.kl_estimator == "sampled"
    assert torch.equal(one.kl(), one.log_ratio())
    assert one.kl().shape == (2, 4)


def test_log_weight_is_the_sum_of_its_parts_over_latents() -> None:
    """log w = log p(x|z) + sum over latents of log p(z) - log q(z|x)."""
    latents = {"a": latent(normal(1, 2, 5, 3), normal(0, 1, 3), 2), "b": latent(normal(0, 1, 5, 4), normal(1, 1, 4), 2)}
    x = torch.ones(5, 6).double()
    p_x = Independent(Bernoulli(logits=torch.randn(2, 5, 6).double()), 1)
    trace = Trace(x, p_x, latents)
    expected = p_x.log_prob(x)
    for one in latents.values():
        expected = expected + one.p.log_prob(one.z) - one.q.log_prob(one.z)
    torch.testing.assert_close(trace.log_weight(), expected)
    assert {name: kl.shape for name, kl in trace.kl().items()} == {"a": (5,), "b": (5,)}


def test_the_kl_of_products_is_the_sum_over_dimensions() -> None:
    """For maps [2, 3, 3], and for a latent whose q and p depend on an earlier sample.

    A full covariance has no KL by dimension.
    """
    maps = Independent(Normal(torch.randn(5, 2, 3, 3).double(), 0.5), 3)
    below = Independent(Normal(torch.randn(2, 5, 4).double(), 0.7), 1)
    full = MultivariateNormal(torch.zeros(5, 4).double(), torch.eye(4).double())
    latents = {
        "maps": latent(maps, Independent(Normal(torch.zeros(2, 3, 3).double(), 1.0), 3), 2),
        "below": Latent(below.sample(), below, Independent(Normal(torch.ones(2, 5, 4).double(), 2.0), 1)),
        "full": latent(full, full, 2),
    }
    trace = Trace(torch.ones(5, 6), Independent(Bernoulli(logits=torch.zeros(2, 5, 6)), 1), latents)
    parts = trace.kl_by_dimension()
    assert {name: kl.shape for name, kl in parts.items()} == {"maps": (5, 2, 3, 3), "below": (5, 4)}
    for name, kl in parts.items():
        torch.testing.assert_close(kl.flatten(1).sum(1), trace.kl()[name])


@pytest.mark.parametrize(("value", "found"), [(0.0, None), (1.0, None), (0.25, 0.25)])
def test_outside_support(value: float, found: float | None) -> None:
    x = torch.zeros(2, 3)
    x[1, 2] = value
    assert Trace(x, Independent(Bernoulli(logits=torch.zeros(1, 2, 3)), 1)).outside_support() == found


@pytest.mark.parametrize(
    ("p_x", "value"),
    [
        (Beta(torch.tensor(2.0), torch.tensor(2.0)), 0.0),  # log p = -inf
        (Beta(torch.tensor(0.5), torch.tensor(0.5)), 1.0),  # +inf
        (Gamma(torch.tensor(2.0), torch.tensor(1.0), validate_args=False), 0.0),
    ],
)
def test_a_density_that_is_0_or_infinite_at_a_pixel(p_x: Distribution, value: float) -> None:
    """Found at the ends of the support, which torch includes. Not found inside, and not if the density is NaN."""
    x = torch.full((2, 3), 0.5)
    whole = Independent(p_x.expand((4, 2, 3)), 1)
    assert Trace(x, whole).outside_support() is None
    x[1, 2] = value
    assert Trace(x, whole).outside_support() == value
    lost = Independent(Normal(torch.full((4, 2, 3), torch.nan), 1.0, validate_args=False), 1)
    assert Trace(x, lost).outside_support() is None


def test_a_kl_that_all_samples_share_is_that_of_each() -> None:
    """A q of batch shape [B], [1, B] or [K, B] has the same KL."""
    mu, x = torch.randn(3, 2, dtype=torch.float64), torch.zeros(3, 1, dtype=torch.float64)
    p_x = Independent(Normal(torch.zeros(4, 3, 1, dtype=torch.float64), 1.0), 1)
    p = Independent(Normal(torch.zeros(2, dtype=torch.float64), 1.0), 1)
    for shape in ((3, 2), (1, 3, 2), (4, 3, 2)):
        q = Independent(Normal(mu.expand(shape), 1.0), 1)
        latent = Latent(torch.zeros(4, 3, 2, dtype=torch.float64), q, p)
        torch.testing.assert_close(Trace(x, p_x, {"z": latent}).kl()["z"], mu.square().sum(-1) / 2)
