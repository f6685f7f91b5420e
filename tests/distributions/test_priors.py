"""Laws of priors. To add a prior: one row in PRIORS."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch

from vae_lightning.distributions import (
    Beta,
    Categorical,
    DiagonalNormal,
    Dirichlet,
    FamilyPrior,
    FamilyRecipe,
    FullNormal,
    Gamma,
    Laplace,
    LowRankNormal,
    Prior,
    RelaxedCategorical,
    StandardNormal,
    UniformSphere,
    VonMisesFisher,
    share_support,
)
from vae_lightning.types import Shape, UserError

PRIORS: dict[str, Callable[[Shape], Prior]] = {
    "standard normal": StandardNormal,
    "family": partial(FamilyPrior, family=partial(Laplace, scale=1.0)),
    "family, learned": partial(FamilyPrior, family=DiagonalNormal, learn=True),
}
ROWS = pytest.mark.parametrize("name", PRIORS)


@ROWS
def test_normalised_in_one_dimension(name: str) -> None:
    z = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    density = PRIORS[name]((1,)).double()().log_prob(z[:, None]).exp()
    assert torch.trapezoid(density, z).item() == pytest.approx(1, abs=1e-6)


@ROWS
@pytest.mark.parametrize("event_shape", [(3,), (2, 4, 4)])
def test_shapes_and_dtype_follow_the_module(name: str, event_shape: Shape) -> None:
    """Batch shape [], event shaped; a move of the module moves the distribution."""
    p = PRIORS[name](event_shape).double()()
    assert (p.batch_shape, p.event_shape) == ((), event_shape)
    assert p.sample((5,)).shape == (5, *event_shape)
    assert p.sample().dtype == torch.float64


def test_standard_normal_at_zero() -> None:
    """log N(0; 0, I) = -D/2 log 2 pi."""
    assert StandardNormal((4,))().log_prob(torch.zeros(4)).item() == pytest.approx(-2 * 1.8378770664)


@pytest.mark.parametrize(
    ("family", "log_density"),
    [
        (Beta, 0.0),
        (Dirichlet, math.lgamma(4)),
        (Categorical, -math.log(4)),
        (partial(Laplace, scale=1.0), -4 * math.log(2) - 1),
        (Gamma, -1.0),
    ],
)
def test_features_of_zero_are_the_plainest_member(family: FamilyRecipe, log_density: float) -> None:
    """Uniform where that is possible, else Laplace(0, 1) and Gamma(1, 1): their log p at a point with |z|_1 = 1."""
    p = FamilyPrior((4,), family).double()()
    z = torch.tensor([1.0, 0, 0, 0] if family is Categorical else [0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    assert p.log_prob(z).item() == pytest.approx(log_density, abs=1e-6)


@pytest.mark.parametrize("family", [DiagonalNormal, LowRankNormal, Gamma, Beta, Dirichlet])
def test_a_learned_prior_gets_a_gradient_everywhere(family: FamilyRecipe) -> None:
    prior = FamilyPrior((4,), family, learn=True)
    z = torch.tensor([0.1, 0.2, 0.3, 0.4])
    prior().log_prob(z).backward()
    assert prior.theta.grad is not None
    assert (prior.theta.grad.abs() > 0).all()
    assert not list(FamilyPrior((4,), family).parameters())


@pytest.mark.parametrize("group_size", [None, 2, 3])
def test_uniform_sphere(group_size: int | None) -> None:
    """Samples of norm 1 in each group, mean 0; the density of each is 1 / area."""
    p = UniformSphere((6,), group_size).double()()
    z = p.sample((5000,))
    size = group_size or 6
    norms = z.unflatten(-1, (-1, size)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    assert z.mean(0).abs().max() < 4.5 / (5000 * size) ** 0.5
    area = 2 * math.pi ** (size / 2) / math.gamma(size / 2)
    torch.testing.assert_close(p.log_prob(z), torch.full((5000,), -(6 // size) * math.log(area)).double())
    torch.testing.assert_close(p.entropy(), -p.log_prob(z[0]))


def test_a_sphere_of_one_number_is_refused() -> None:
    with pytest.raises(UserError, match="UniformSphere: group_size is 1; it must be at least 2"):
        UniformSphere((1,))
    with pytest.raises(UserError, match=r"group_size is 4.*divide the 6"):
        UniformSphere((6,), group_size=4)


@pytest.mark.parametrize(
    ("posterior", "prior", "fits"),
    [
        (FullNormal, StandardNormal, True),
        (Gamma, StandardNormal, True),
        (DiagonalNormal, partial(FamilyPrior, family=Gamma), False),
        (Gamma, partial(FamilyPrior, family=Gamma), True),
        (VonMisesFisher, StandardNormal, False),
        (DiagonalNormal, UniformSphere, False),
        (VonMisesFisher, UniformSphere, True),
        (partial(VonMisesFisher, group_size=2), UniformSphere, False),
        (partial(VonMisesFisher, group_size=2), partial(UniformSphere, group_size=2), True),
        (Dirichlet, UniformSphere, False),
        (RelaxedCategorical, partial(FamilyPrior, family=Dirichlet), True),
        (RelaxedCategorical, partial(FamilyPrior, family=Categorical), False),
    ],
)
def test_which_prior_fits_which_posterior(posterior: FamilyRecipe, prior: Callable[[Shape], Prior], fits: bool) -> None:
    """Over one space, and with z possible: a Normal's density and one on a sphere have no ratio."""
    family = posterior((4,))
    q, p = family(torch.randn(50, *family.param_shape)), prior((4,))()
    assert share_support(q, p, q.rsample()) == fits
