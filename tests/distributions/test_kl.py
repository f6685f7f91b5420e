"""Every closed-form KL against Monte Carlo, and the KLs of Gaussians against dense algebra.

To add a KL, add a row to PAIRS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
)

from vae_lightning.distributions import (
    Beta,
    Categorical,
    DiagonalNormal,
    Dirichlet,
    Family,
    FamilyPrior,
    FullNormal,
    Gamma,
    Laplace,
    LowRankNormal,
    Masked,
    RankOneNormal,
    Repeated,
    StandardNormal,
    UniformSphere,
    VonMisesFisher,
)
from vae_lightning.distributions.gaussians import LowRankMultivariateNormal, RankOneMultivariateNormal
from vae_lightning.trace import Latent
from vae_lightning.types import Shape

D = 4


def member(recipe: Callable[[Shape], Family], *batch_shape: int) -> Distribution:
    family = recipe((D,))
    return family(0.7 * torch.randn(*batch_shape, *family.param_shape, dtype=torch.float64))


def diagonal(*batch_shape: int) -> Independent:
    shape = (*batch_shape, D)
    loc, scale = torch.randn(shape, dtype=torch.float64), 0.5 + torch.rand(shape, dtype=torch.float64)
    return Independent(Normal(loc, scale), 1)


def bernoulli(*batch_shape: int) -> Independent:
    return Independent(Bernoulli(logits=2 * torch.randn(*batch_shape, D, dtype=torch.float64)), 1)


def prior(family: Callable[[Shape], Family]) -> Distribution:
    return FamilyPrior((D,), family).double()()


def steps(recipe: Callable[[Shape], Family], *batch_shape: int) -> Distribution:
    """Two steps of half the size, [2, D / 2]."""
    family = Repeated((D // 2,), recipe)
    return family(0.7 * torch.randn(*batch_shape, 2, *family.param_shape, dtype=torch.float64))


def one_step_hidden(p: Distribution) -> Distribution:
    return Masked(p, torch.tensor([True, False]), event_dims=1)


LOW_RANK = partial(LowRankNormal, rank=2)
# q with batch shape [3], and p with batch shape []
PAIRS: dict[str, tuple[Callable[[], Distribution], Callable[[], Distribution]]] = {
    "full | standard normal": (partial(member, FullNormal, 3), StandardNormal((D,)).double()),
    "full | diagonal": (partial(member, FullNormal, 3), diagonal),
    "low rank | diagonal": (partial(member, LOW_RANK, 3), diagonal),
    "rank one | diagonal": (partial(member, RankOneNormal, 3), diagonal),
    "diagonal | full": (partial(diagonal, 3), partial(member, FullNormal)),
    "diagonal | low rank": (partial(diagonal, 3), partial(member, LOW_RANK)),
    "diagonal | rank one": (partial(diagonal, 3), partial(member, RankOneNormal)),
    "rank one | rank one": (partial(member, RankOneNormal, 3), partial(member, RankOneNormal)),
    "rank one | full": (partial(member, RankOneNormal, 3), partial(member, FullNormal)),
    "rank one | low rank": (partial(member, RankOneNormal, 3), partial(member, LOW_RANK)),
    "full | rank one": (partial(member, FullNormal, 3), partial(member, RankOneNormal)),
    "low rank | rank one": (partial(member, LOW_RANK, 3), partial(member, RankOneNormal)),
    "full | low rank": (partial(member, FullNormal, 3), partial(member, LOW_RANK)),
    "low rank | full": (partial(member, LOW_RANK, 3), partial(member, FullNormal)),
    "low rank | low rank": (partial(member, LOW_RANK, 3), partial(member, LOW_RANK)),
    "full | full": (partial(member, FullNormal, 3), partial(member, FullNormal)),
    "Laplace | standard normal": (partial(member, Laplace, 3), StandardNormal((D,)).double()),
    "Laplace | Laplace": (partial(member, Laplace, 3), partial(prior, partial(Laplace, scale=1.0))),
    "gamma | gamma": (partial(member, Gamma, 3), partial(prior, Gamma)),
    "beta | uniform": (partial(member, Beta, 3), partial(prior, Beta)),
    "Dirichlet | uniform": (partial(member, Dirichlet, 3), partial(prior, Dirichlet)),
    "categorical | uniform, two groups": (
        partial(member, partial(Categorical, group_size=2), 3),
        partial(prior, partial(Categorical, group_size=2)),
    ),
    "von Mises-Fisher | uniform": (partial(member, VonMisesFisher, 3), UniformSphere((D,)).double()),
    "von Mises-Fisher | uniform, two circles": (
        partial(member, partial(VonMisesFisher, group_size=2), 3),
        UniformSphere((D,), group_size=2).double(),
    ),
    "steps | standard normal": (partial(steps, DiagonalNormal, 3), StandardNormal((2, D // 2)).double()),
    "steps of full normals | standard normal": (partial(steps, FullNormal, 3), StandardNormal((2, D // 2)).double()),
    "steps of full normals | steps of rank one": (partial(steps, FullNormal, 3), partial(steps, RankOneNormal)),
    "steps of categoricals | the same": (partial(steps, Categorical, 3), partial(steps, Categorical)),
    "masked | masked": (
        lambda: one_step_hidden(steps(FullNormal, 3)),
        lambda: one_step_hidden(StandardNormal((2, D // 2)).double()()),
    ),
    "Bernoulli | Bernoulli": (partial(bernoulli, 3), bernoulli),
}
ROWS = pytest.mark.parametrize("name", PAIRS)


@ROWS
def test_closed_form_equals_monte_carlo(name: str) -> None:
    """KL = E_q[log q - log p] within 4.5 standard errors, for each of 3 batch entries. `Latent.kl` uses it."""
    q, p = (make() for make in PAIRS[name])
    kl, z = kl_divergence(q, p), q.sample((10_000,))
    assert kl.shape == (3,)
    assert Latent(z, q, p).kl_estimator == "closed form"
    ratio = Latent(z, q, p).log_ratio()
    error = (ratio.mean(0) - kl).abs() / (ratio.std(0) / len(ratio) ** 0.5 + 1e-12)
    assert error.max() < 4.5


@ROWS
def test_zero_from_itself_and_above_zero_otherwise(name: str) -> None:
    q, p = (make() for make in PAIRS[name])
    assert (kl_divergence(q, p) > 0).all()
    if type(q) is type(p) and "sphere" not in name and "von Mises" not in name:
        torch.testing.assert_close(kl_divergence(q, q), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


@ROWS
def test_batch_shapes_broadcast(name: str) -> None:
    """q [3] beside p [2, 1] gives [2, 3]; such a p depends on a sample, as in a hierarchy."""
    q, p = (make() for make in PAIRS[name])
    torch.testing.assert_close(kl_divergence(q, p.expand((2, 1))), kl_divergence(q, p).expand(2, 3))


def dense(p: Distribution) -> MultivariateNormal:
    """Return the same Gaussian with its [D, D] covariance."""
    if isinstance(p, RankOneMultivariateNormal):
        u = p.precision_factor[..., None]
        return MultivariateNormal(p.loc, precision_matrix=torch.diag_embed(p.precision_diag) + u * u.mT)
    if isinstance(p, (MultivariateNormal, LowRankMultivariateNormal)):
        return MultivariateNormal(p.loc, p.covariance_matrix)
    return MultivariateNormal(p.mean, torch.diag_embed(p.variance))


GAUSSIANS = [
    name
    for name in PAIRS
    if not any(word in name for word in ("La", "ga", "be", "Di", "ca", "von", "Be", "steps", "masked"))
]


@pytest.mark.parametrize("name", GAUSSIANS)
def test_gaussians_equal_dense_algebra(name: str) -> None:
    q, p = (make() for make in PAIRS[name])
    expected = kl_divergence(dense(q), dense(p))
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-10, atol=1e-10)


def test_the_dense_checks_cover_every_gaussian_pair() -> None:
    assert len(GAUSSIANS) == 16


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-6, 1e-3, 1.0, 30.0])
def test_rank_one_algebra(size: float) -> None:
    """C = (D + u u^T)^-1: R R^T = C, log |C|, variances, entropy, density and C v to 1e-10, also as a -> 0."""
    d = 0.3 + 3 * torch.rand(5, 6, dtype=torch.float64)
    u, loc = size * torch.randn(5, 6, dtype=torch.float64), torch.randn(5, 6, dtype=torch.float64)
    q = RankOneMultivariateNormal(loc, d, u)
    precision = torch.diag_embed(d) + u[..., None] * u[..., None, :]
    covariance = torch.linalg.inv(precision)
    factor = torch.stack([q.factor_times(row) for row in torch.eye(6, dtype=torch.float64)], dim=-1)
    x = loc + torch.randn(5, 6, dtype=torch.float64)
    expected = MultivariateNormal(loc, precision_matrix=precision)
    pairs: list[tuple[Tensor, Tensor]] = [
        (factor @ factor.mT, covariance),
        (q.covariance_matrix, covariance),
        (q.precision_matrix, precision),
        (q.variance, covariance.diagonal(dim1=-2, dim2=-1)),
        (q.log_det_covariance, -torch.linalg.slogdet(precision).logabsdet),
        (q.covariance_times(x), (covariance @ x[..., None])[..., 0]),
        (q.entropy(), expected.entropy()),
        (q.log_prob(x), expected.log_prob(x)),
    ]
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_rank_one_has_the_papers_factor_and_its_gradient_at_no_direction() -> None:
    """b = (1 - eta^(1/2)) / a away from 0; at u = 0 the KL's gradient is finite, and 0 by symmetry."""
    u = torch.randn(6, dtype=torch.float64)
    a = u.square().sum()
    eta = 1 / (1 + a)
    torch.testing.assert_close(eta / (1 + eta.sqrt()), (1 - eta.sqrt()) / a)
    zero = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    q = RankOneMultivariateNormal(u, torch.ones_like(u), zero)
    (kl_divergence(q, StandardNormal((6,)).double()()) + q.rsample().sum()).backward()
    assert zero.grad is not None
    assert zero.grad.abs().max() < 10


def test_rank_one_never_makes_a_matrix() -> None:
    """Cost is O(D): 300,000 dimensions, whose covariance would take 720 GB.

    With |u| = 1 the KL is (log 2 - 1/2) / 2.
    """
    zeros = torch.zeros(300_000, dtype=torch.float64)
    q = RankOneMultivariateNormal(zeros, zeros + 1, zeros + 300_000**-0.5)
    assert q.log_prob(q.rsample()).isfinite()
    p = Independent(Normal(zeros, 1.0), 1)
    assert kl_divergence(q, p).item() == pytest.approx(0.5 * (math.log(2) - 0.5), abs=1e-6)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_bernoulli_at_certainty(p: float) -> None:
    """Like torch's KL: infinite if p excludes a value that q allows, 0 log 0 = 0, and equal to torch's otherwise."""
    inside, certain = Bernoulli(torch.tensor([0.3, 0.6])), Bernoulli(torch.tensor([p, p]))
    assert kl_divergence(inside, certain).isinf().all()
    torch.testing.assert_close(kl_divergence(certain, inside), -inside.log_prob(torch.tensor([p, p])))
    torch.testing.assert_close(kl_divergence(certain, certain), torch.zeros(2))


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (member(FullNormal), Independent(Bernoulli(torch.full((D,), 0.5)), 1)),
        (Independent(Normal(torch.zeros(2, D), 1.0), 2), member(FullNormal)),
        (
            FamilyPrior((D,), partial(Dirichlet, group_size=2))(),
            FamilyPrior((D,), Dirichlet)(),
        ),
    ],
)
def test_a_pair_without_a_closed_form_says_so(q: Distribution, p: Distribution) -> None:
    with pytest.raises(NotImplementedError):
        kl_divergence(q, p)
