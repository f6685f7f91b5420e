"""Likelihoods over grey levels: masses that sum to one, exact tails, and bits per dimension."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from vae_lightning.distributions import (
    Bernoulli,
    Binomial,
    CategoricalLevels,
    ContinuousBernoulli,
    DiagonalNormal,
    DiscretizedLogistic,
    FamilyRecipe,
    Given,
    MixtureOfDiscretizedLogistics,
    StudentT,
    bits_per_dimension,
    is_mass,
    pixels,
)
from vae_lightning.types import UserError

LOCATIONS = torch.tensor([-50.0, -0.3, 0.0, 0.001, 0.5, 0.7, 1.0, 1.2, 50.0], dtype=torch.float64)
SCALES = torch.tensor([1e-3, 0.01, 0.3, 1.0, 100.0], dtype=torch.float64)


def levels(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) / (count - 1)


@pytest.mark.parametrize("count", [2, 3, 17, 256])
def test_masses_add_up_to_one_wherever_the_centre_and_however_wide(count: int) -> None:
    """With the edge bins. A centre far outside [0, 1] has all its mass in one edge bin."""
    p = pixels.DiscretizedLogisticDistribution(count - 1, LOCATIONS[:, None], SCALES)
    total = p.log_prob(levels(count)[:, None, None]).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-12)


def test_edge_bins_are_open_and_inner_bins_are_a_difference() -> None:
    """P(0) = F(1/2n), P(1) = 1 - F(1 - 1/2n), P(k/n) = F((k + 1/2)/n) - F((k - 1/2)/n)."""
    n, mu, s = 255, torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    edges = torch.sigmoid(((torch.arange(n, dtype=torch.float64) + 0.5) / n - mu) / s)
    expected = torch.cat([edges[:1], edges.diff(), 1 - edges[-1:]])
    found = pixels.DiscretizedLogisticDistribution(n, mu, s).log_prob(levels(n + 1)).exp()
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=0)


def test_far_tails_are_exact_in_float32() -> None:
    """log P of a level far from all mass is linear in the distance, not the logarithm of a rounded 0."""
    p = pixels.DiscretizedLogisticDistribution(255, torch.tensor(0.0), torch.tensor(1e-3))
    q = pixels.DiscretizedLogisticDistribution(255, torch.tensor(0.0).double(), torch.tensor(1e-3).double())
    k = torch.tensor([1, 30, 200, 255])
    found, exact = p.log_prob(k.float() / 255), q.log_prob(k.double() / 255)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert found[-1].item() == pytest.approx(-(254.5 / 255) / 1e-3, rel=1e-5)


def test_a_mixture_of_one_is_the_one() -> None:
    raw = torch.randn(5, 2, 3, 3, dtype=torch.float64)  # mu and s of one channel
    x = torch.randint(256, (5, 1, 3, 3)).double() / 255
    mixture = MixtureOfDiscretizedLogistics((1, 3, 3), num_components=1)
    logits = torch.randn(5, 1, 3, 3, dtype=torch.float64)
    found = mixture(torch.cat([logits, raw], dim=1)).log_prob(x)
    torch.testing.assert_close(found, DiscretizedLogistic((1, 3, 3))(raw).log_prob(x))


def test_components_differ_at_features_of_zero() -> None:
    """Otherwise all components would always have equal gradients."""
    family = MixtureOfDiscretizedLogistics((2,), num_components=4)
    raw = torch.zeros(1, *family.param_shape, requires_grad=True)
    family(raw).log_prob(torch.zeros(1, 2)).sum().backward()
    assert raw.grad is not None
    _, means, _ = raw.grad.view(3, 4, 2).unbind()
    assert len(set(means[:, 0].tolist())) == 4


@pytest.mark.parametrize("value", [0.5, -0.01, 1.01])
def test_a_value_between_levels_has_no_mass(value: float) -> None:
    for p in (
        pixels.DiscretizedLogisticDistribution(255, torch.zeros(1), torch.ones(1)),
        pixels.CategoricalLevelsDistribution(torch.zeros(6)),
    ):
        assert not p.support.check(torch.tensor([value])).any()  # type: ignore[union-attr]


MASSES = [Bernoulli, partial(Binomial, num_steps=16), DiscretizedLogistic, MixtureOfDiscretizedLogistics]
DENSITIES = [DiagonalNormal, ContinuousBernoulli, StudentT]


@pytest.mark.parametrize("recipe", MASSES)
def test_bits_of_a_mass(recipe: FamilyRecipe) -> None:
    """-log P / (D log 2)."""
    family = recipe((2, 5))
    p_x = family(torch.zeros(3, *family.param_shape))
    assert is_mass(p_x)
    assert bits_per_dimension(torch.tensor(7.0), p_x).item() == pytest.approx(7 / 10 / math.log(2))


def test_bits_of_an_image_given_in_part_are_of_the_rest() -> None:
    """A fair coin has one bit. 2 of 6 pixels are given, or 2 and 4 in the two images of a batch."""
    p_x = Bernoulli((1, 2, 3))(torch.zeros(1, 2, 1, 2, 3))
    x = torch.ones(2, 1, 2, 3)
    for columns in ([1, 1], [1, 2]):
        mask = torch.stack([torch.arange(3) < n for n in columns])[:, None, None].expand(2, 1, 2, 3)
        given = Given(p_x, mask, x)
        torch.testing.assert_close(bits_per_dimension(-given.log_prob(x).mean(), given), torch.tensor(1.0))


def test_bits_of_a_uniform_pixel_are_eight() -> None:
    """For 256 equal levels, and for a dequantised uniform density on [0, 1]."""
    x = torch.randint(256, (4, 1, 3, 3)) / 255
    equal = CategoricalLevels((1, 3, 3))(torch.zeros(4, 256, 3, 3))
    torch.testing.assert_close(bits_per_dimension(-equal.log_prob(x), equal), torch.full((4,), 8.0))
    uniform = ContinuousBernoulli((1, 3, 3))(torch.zeros(4, 1, 3, 3))
    nats = -uniform.log_prob((x * 255 + torch.rand_like(x)) / 256)
    torch.testing.assert_close(bits_per_dimension(nats, uniform, 256), torch.full((4,), 8.0))


@pytest.mark.parametrize("recipe", DENSITIES)
def test_bits_of_a_density_are_refused(recipe: FamilyRecipe) -> None:
    family = recipe((4,))
    p_x = family(torch.zeros(3, *family.param_shape))
    assert not is_mass(p_x)
    with pytest.raises(UserError, match=r"DiscretizedLogistic.*--data.dequantise=true") as error:
        bits_per_dimension(torch.zeros(3), p_x)
    assert "\n" not in str(error.value)
