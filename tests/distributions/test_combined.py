"""Distributions made from others. The laws of a `Given` image are in tests/models/test_cvae.py."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, StudentT

from vae_lightning.distributions import ConvIAF, Given, MixtureOfDiscretizedLogistics, normal_product
from vae_lightning.trace import distribution_name
from vae_lightning.types import UserError


def normal(*batch: int) -> Independent:
    loc, scale = torch.randn(*batch, 3, dtype=torch.float64), torch.rand(*batch, 3, dtype=torch.float64) + 0.1
    return Independent(Normal(loc, scale), 1)


def test_a_product_of_normals_is_proportional_to_it() -> None:
    """log a(x) + log b(x) - log ab(x) is the same number at every x, over batch shapes that broadcast."""
    a, b = normal(4), normal(2, 4)
    product = normal_product(a, b)
    assert product.batch_shape == (2, 4)
    x = 3 * torch.randn(50, 2, 4, 3, dtype=torch.float64)
    constant = a.log_prob(x) + b.log_prob(x) - product.log_prob(x)  # [50, 2, 4]
    torch.testing.assert_close(constant, constant[:1].expand(50, -1, -1), rtol=0, atol=1e-9)


def test_a_flat_factor_changes_nothing() -> None:
    a = normal(4)
    flat = Independent(Normal(torch.zeros(4, 3).double(), torch.full((4, 3), 1e6).double()), 1)
    product = normal_product(a, flat)
    torch.testing.assert_close(product.mean, a.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(product.stddev, a.stddev, rtol=0, atol=1e-9)


def test_a_product_with_another_distribution_is_refused() -> None:
    with pytest.raises(UserError, match="both must be diagonal normals"):
        normal_product(normal(4), Independent(StudentT(torch.full((4, 3), 3.0)), 1))


def test_pixels_that_depend_on_each_other_cannot_be_given_in_part() -> None:
    with pytest.raises(UserError, match="only if the likelihood's pixels are independent"):
        Given(MultivariateNormal(torch.zeros(3), torch.eye(3)), torch.ones(3, dtype=torch.bool), torch.zeros(3))


def test_a_message_names_the_likelihood_of_an_image_given_in_part() -> None:
    pixels, flow = MixtureOfDiscretizedLogistics((1, 2, 2)), ConvIAF((1, 2, 2))
    none = torch.zeros(1, 2, 2, dtype=torch.bool)
    assert (
        distribution_name(Given(pixels(torch.zeros(pixels.param_shape)), none, none.float()))
        == "MixtureOfDiscretizedLogistics"
    )
    with pytest.raises(UserError, match="those of ConvIAF are not"):
        Given(flow(torch.zeros(flow.param_shape)), none, none.float())
