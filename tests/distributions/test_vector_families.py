"""Laws of the families over vectors with dependent dimensions. To add a family, add a row to FAMILIES."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from tests.distributions.test_families import FAMILIES as POINTWISE
from tests.distributions.test_flows import FLOWS, shape_of
from vae_lightning import distributions
from vae_lightning.distributions import (
    Categorical,
    Dirichlet,
    Family,
    FamilyPrior,
    FullNormal,
    LinearIAF,
    LowRankNormal,
    RankOneNormal,
    RelaxedCategorical,
    StandardNormal,
    VonMisesFisher,
)
from vae_lightning.trace import distribution_name, draw
from vae_lightning.types import Shape, UserError


@dataclass(frozen=True)
class Grid:
    """Points [N, D] of a support and weights [N]: sum_n w_n f(x_n) is the integral, or the sum, of f over it."""

    points: Tensor
    weights: Tensor


def gauss(count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1]; twice smoothed towards the ends, where a density may be infinite."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    u, w = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    for _ in range(2):
        u, w = u**2 * (3 - 2 * u), w * 6 * u * (1 - u)
    return u, w


def plane() -> Grid:
    line = torch.linspace(-12, 12, 361, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    return Grid(points, torch.full((len(points),), (24 / 360) ** 2, dtype=torch.float64))


def simplex() -> Grid:
    """(a, (1 - a) b, (1 - a)(1 - b)): area 1 - a in the first two coordinates."""
    u, w = gauss(120)
    a, b = torch.cartesian_prod(u, u).unbind(-1)
    points = torch.stack([a, (1 - a) * b, (1 - a) * (1 - b)], dim=-1)
    return Grid(points, torch.cartesian_prod(w, w).prod(-1) * (1 - a))


def corners() -> Grid:
    return Grid(torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))


def circle() -> Grid:
    angle = torch.arange(360, dtype=torch.float64) * 2 * math.pi / 360
    return Grid(torch.stack([angle.cos(), angle.sin()], dim=-1), torch.full_like(angle, 2 * math.pi / 360))


def ball_surface() -> Grid:
    """Area elements are d cos(polar) d azimuth."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    around = circle()
    height = torch.from_numpy(nodes)[:, None]
    ring = (1 - height**2).sqrt()[..., None] * around.points  # [80, 360, 2]
    points = torch.cat([ring, height.expand(-1, 360)[..., None]], dim=-1).flatten(0, 1)
    return Grid(points, torch.outer(torch.from_numpy(weights), around.weights).flatten())


# recipe, and a grid over its support in few enough dimensions to integrate
FAMILIES: dict[str, tuple[Callable[[Shape], Family], Callable[[], Grid]]] = {
    "full normal": (FullNormal, plane),
    "low-rank normal": (LowRankNormal, plane),
    "rank-2 normal": (partial(LowRankNormal, rank=2), plane),
    "rank-one normal": (RankOneNormal, plane),
    "Dirichlet": (partial(Dirichlet, min_concentration=0.5), simplex),
    "categorical": (Categorical, corners),
    "relaxed categorical": (partial(RelaxedCategorical, temperature=0.8), simplex),
    "von Mises-Fisher, circle": (VonMisesFisher, circle),
    "von Mises-Fisher, sphere": (VonMisesFisher, ball_surface),
}
ROWS = pytest.mark.parametrize("name", FAMILIES)
PATHWISE = pytest.mark.parametrize("name", [name for name in FAMILIES if name != "categorical"])
GROUPED = pytest.mark.parametrize("family_class", [Dirichlet, Categorical, RelaxedCategorical, VonMisesFisher])


def make(name: str) -> tuple[Family, Grid]:
    recipe, grid = FAMILIES[name]
    points = grid()
    return recipe((points.points.shape[-1],)), points


def features(family: Family, *batch_shape: int, scale: float = 0.7) -> Tensor:
    return scale * torch.randn(*batch_shape, *family.param_shape, dtype=torch.float64)


def z_score(samples: Tensor, expected: Tensor) -> float:
    """The largest deviation of a mean over the first dimension, in standard errors."""
    error = samples.std(0) / len(samples) ** 0.5
    return ((samples.mean(0) - expected).abs() / (error + 1e-9)).max().item()


def test_every_family_has_a_row() -> None:
    """Every family is in this table, in that of independent dimensions, in that of flows, or it repeats one of them."""
    exported = {cls for cls in vars(distributions).values() if isinstance(cls, type) and issubclass(cls, Family)}
    rows = [(row[0], (1,)) for row in POINTWISE.values()] + [(row[0], (4,)) for row in FAMILIES.values()]
    rows += [(recipe, shape_of(name, 4)) for name, recipe in FLOWS.items()]
    assert exported - {Family, distributions.Repeated} == {type(recipe(shape)) for recipe, shape in rows}


def test_a_message_names_the_family_that_was_chosen() -> None:
    rows = [(row[0], (1,)) for row in POINTWISE.values()] + [(row[0], (4,)) for row in FAMILIES.values()]
    for recipe, shape in rows + [(recipe, shape_of(name, 4)) for name, recipe in FLOWS.items()]:
        family = recipe(shape)
        assert distribution_name(family(torch.zeros(5, *family.param_shape))) == type(family).__name__


@ROWS
def test_normalised_with_its_mean_variance_and_entropy(name: str) -> None:
    """By quadrature over the support: 1, E[z], Var[z] and -E[log p]. Moments without a closed form are left out."""
    family, grid = make(name)
    p = family(features(family, 3))
    log_p = p.log_prob(grid.points[:, None])  # [N, 3]
    mass = log_p.exp() * grid.weights[:, None]
    torch.testing.assert_close(mass.sum(0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-5)
    if isinstance(family, RelaxedCategorical):
        return
    m1, m2 = (torch.einsum("nb,nd->bd", mass, grid.points**k) for k in (1, 2))
    torch.testing.assert_close(p.mean, m1, rtol=0, atol=1e-5)
    torch.testing.assert_close(p.variance, m2 - m1**2, rtol=0, atol=1e-5)
    torch.testing.assert_close(p.entropy(), -torch.xlogy(mass, log_p.exp()).sum(0), rtol=0, atol=1e-4)


@ROWS
def test_samples_agree_with_the_density(name: str) -> None:
    """First and second moments agree, also between dimensions, and every sample lies in the support."""
    family, grid = make(name)
    p = family(features(family, 3))
    mass = p.log_prob(grid.points[:, None]).exp() * grid.weights[:, None]
    z = p.sample((10_000,))  # [n, 3, D]
    assert p.support is not None
    assert p.support.check(z).all()
    assert z_score(z, torch.einsum("nb,nd->bd", mass, grid.points)) < 4.5
    products = torch.einsum("nb,nd,ne->bde", mass, grid.points, grid.points)
    assert z_score(z[..., None] * z[..., None, :], products) < 4.5


@PATHWISE
def test_pathwise_gradient_is_that_of_the_expectation(name: str) -> None:
    """d/dphi E[f(z)] by `rsample` is within its standard error of the quadrature's. f has odd and even parts."""
    family, grid = make(name)
    raw = features(family)
    slope = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)[: grid.points.shape[-1]]

    def f(z: Tensor) -> Tensor:
        return (z @ slope) + (z @ slope.flip(0)) ** 2 + (3 * z[..., 0]).sin()

    exact_raw = raw.clone().requires_grad_()
    (family(exact_raw).log_prob(grid.points).exp() * grid.weights * f(grid.points)).sum().backward()
    copies = raw.expand(10_000, -1).clone().requires_grad_()  # so that each z has its own gradient
    f(family(copies).rsample()).sum().backward()
    assert exact_raw.grad is not None
    assert copies.grad is not None
    assert exact_raw.grad.abs().max() > 0.05
    assert z_score(copies.grad, exact_raw.grad) < 4.5


@ROWS
@pytest.mark.parametrize("size", [2, 6])
def test_shapes(name: str, size: int) -> None:
    """log_prob is [*sample, *batch], z [*sample, *batch, D]."""
    family = FAMILIES[name][0]((size,))
    p = family(features(family, 2, 7))
    assert (p.batch_shape, p.event_shape) == ((2, 7), (size,))
    z = p.sample((5,))
    assert z.shape == (5, 2, 7, size)
    assert p.log_prob(z).shape == (5, 2, 7)
    wide = p.expand((4, 2, 7))
    assert wide.batch_shape == (4, 2, 7)
    torch.testing.assert_close(wide.log_prob(z[:4]), p.log_prob(z)[:4])
    assert wide.sample().shape == (4, 2, 7, size)


@ROWS
def test_gradient_reaches_every_feature(name: str) -> None:
    family = FAMILIES[name][0]((6,))
    raw = features(family, 8).requires_grad_()
    p = family(raw)
    p.log_prob(p.sample()).sum().backward()
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()
    assert (raw.grad.abs().sum(0) > 0).all()


@ROWS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e3])
def test_finite_at_extreme_features(name: str, dtype: torch.dtype, size: float) -> None:
    """All float32: a sample, its log_prob, and the gradient through both are finite at features of +-1000."""
    family = FAMILIES[name][0]((4,))
    (length,) = family.param_shape
    pattern = torch.tensor([-1.0, 1.0, -0.5, 0.0, 0.5]).repeat(length)
    raw = (size * pattern[:length]).to(dtype).requires_grad_()
    Family.validate_args = False  # a float32 simplex sometimes misses 1 by more than 1e-6
    p = family(raw[None])
    z = p.rsample((50,)) if p.has_rsample else p.sample((50,))
    log_prob = p.log_prob(z)
    assert log_prob.dtype == z.dtype == torch.float32
    assert torch.isfinite(z).all()
    assert torch.isfinite(log_prob).all()
    log_prob.sum().backward()
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()


EVERY: dict[str, tuple[Callable[[Shape], Family], Shape]] = {
    **{name: (row[0], (2,)) for name, row in POINTWISE.items()},
    **{name: (row[0], (4,)) for name, row in FAMILIES.items()},
    **{name: (recipe, shape_of(name, 4)) for name, recipe in FLOWS.items()},
}
EXTREMES = (0.0, 1e-8, 1e-3, 10.0, 88.0, 89.0, 100.0, 1e4)  # e^x overflows float32 at 88.7


@pytest.mark.parametrize("name", EVERY)
def test_what_a_family_computes_has_a_finite_gradient_at_extreme_features(name: str) -> None:
    """Mean, variance, entropy, density and KL. A branch that `where` discards must not overflow either."""
    recipe, shape = EVERY[name]
    Family.validate_args = False
    family, standard, own = recipe(shape), StandardNormal(shape)(), FamilyPrior(shape, recipe)()
    length = math.prod(family.param_shape)
    turns = torch.tensor([-1.0, 1.0, -0.5, 0.0, 0.5]).repeat(length)[:length]
    for size, pattern in itertools.product(EXTREMES, (torch.ones(length), -torch.ones(length), turns)):
        raw = (size * pattern).reshape(1, *family.param_shape).requires_grad_()
        p = family(raw)
        z = p.rsample((5,)) if p.has_rsample else p.sample((5,))
        for value in computed(p, z, standard, own):
            assert value.isfinite().all(), size
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.sum(), raw, retain_graph=True, allow_unused=True)
                assert slope is None or slope.isfinite().all(), size


def computed(p: Distribution, z: Tensor, *others: Distribution) -> Iterator[Tensor]:
    """Return what p computes in closed form, and its density at z."""
    known = (lambda: p.mean, lambda: p.variance, p.entropy, lambda: p.log_prob(z))
    if distribution_name(p) == "Classes":  # which have no mean
        known = known[2:]
    for what in (*known, *(partial(kl_divergence, p, other) for other in others)):
        with suppress(NotImplementedError):
            yield what()


GAUSSIANS: dict[str, Callable[[Shape], Family]] = {
    "full normal": FullNormal,
    "linear IAF": LinearIAF,
    "low-rank normal": LowRankNormal,
    "rank-2 normal": partial(LowRankNormal, rank=2),
    "rank-one normal": RankOneNormal,
}


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize(("scale", "size"), [(1.0, 2), (1.0, 16), (10.0, 8), (100.0, 8), (1e4, 2)])
def test_a_density_in_float32_is_that_of_float64_to_rounding(name: str, scale: float, size: int) -> None:
    """Also its gradient, entropy and KL, with sigma at its floor beside directions up to 10^7 times wider."""
    family = GAUSSIANS[name]((size,))
    raw = scale * torch.randn(6, *family.param_shape)
    raw[::2, size : 2 * size] = -1000.0
    Family.validate_args = False
    z, found = family(raw).sample((3,)), []
    for dtype in (torch.float32, torch.float64):
        leaf = raw.to(dtype).requires_grad_()
        q, p = family(leaf), StandardNormal((size,)).to(dtype)()
        log_q = q.log_prob(z.to(dtype))
        (slope,) = torch.autograd.grad(log_q.sum(), leaf, retain_graph=True)
        found.append([log_q, slope, kl_divergence(q, p), q.entropy()])
    for single, double in zip(*found, strict=True):
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize(("q_name", "p_name"), [*itertools.product(GAUSSIANS, GAUSSIANS)])
def test_a_kl_between_correlated_gaussians_in_float32_is_that_of_float64(q_name: str, p_name: str) -> None:
    """The Gaussians are narrow (precisions of a million), and one is expanded to a batch shape."""
    families = [GAUSSIANS[name]((4,)) for name in (q_name, p_name)]
    raws = [torch.randn(3, *families[0].param_shape), torch.randn(families[1].param_shape)]
    for raw in raws:
        raw[..., 4:6] = -1000.0
    found = []
    for dtype in (torch.float32, torch.float64):
        q, p = (family(raw.to(dtype)) for family, raw in zip(families, raws, strict=True))
        found.append(kl_divergence(q, p.expand((2, 1))))
    assert found[0].dtype == torch.float32
    assert found[0].shape == (2, 3)
    torch.testing.assert_close(found[0].double(), found[1], rtol=1e-6, atol=2e-5)


@pytest.mark.parametrize("name", GAUSSIANS)
def test_an_expanded_posterior_in_float32_has_its_batch_shape(name: str) -> None:
    """Also if z has a smaller one."""
    family = GAUSSIANS[name]((4,))
    q = family(torch.randn(3, *family.param_shape))
    z, wide = q.sample(), q.expand((2, 3))
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z).expand(2, 3))
    torch.testing.assert_close(wide.entropy(), q.entropy().expand(2, 3))
    assert wide.rsample().shape == (2, 3, 4)


@pytest.mark.parametrize("apart", [1.0, 1e-5])
def test_a_low_rank_density_in_exact_arithmetic(apart: float) -> None:
    """log N(z; mu, diag sigma^2 + W W^T) by fractions. W is a million times sigma, also with nearly equal columns."""
    raw = torch.randn(12)  # mu, raw sigma, W by rows of two
    raw[3:6] = torch.tensor([-1000.0, -5.0, -1000.0])
    raw[6:] *= 1000
    raw[7::2] = raw[6::2] + apart * raw[7::2]
    family = LowRankNormal((3,), rank=2)
    q = family(raw)
    z = q.sample()
    sigma = [Fraction(s) for s in (1e-3 + torch.nn.functional.softplus(raw[3:6].double())).tolist()]
    w = [[Fraction(one) for one in row] for row in raw[6:].view(3, 2).tolist()]
    y = [Fraction(a) - Fraction(b) for a, b in zip(z.tolist(), raw[:3].tolist(), strict=True)]
    c = [[sum(a * b for a, b in zip(w[i], w[j], strict=True)) for j in range(3)] for i in range(3)]
    for i in range(3):
        c[i][i] += sigma[i] ** 2
    replaced = [[[y[r] if k == j else c[r][k] for k in range(3)] for r in range(3)] for j in range(3)]
    distance = sum(y[j] * determinant(replaced[j]) for j in range(3)) / determinant(c)  # Cramer's rule
    log_det = math.log(determinant(c)) + 3 * math.log(2 * math.pi)
    assert q.log_prob(z).item() == pytest.approx(-0.5 * (float(distance) + log_det), rel=1e-6, abs=1e-6)
    assert q.entropy().item() == pytest.approx(0.5 * (3 + log_det), rel=1e-6, abs=1e-6)


def determinant(m: list[list[Fraction]]) -> Fraction:
    (a, b, c), (d, e, f), (g, h, i) = m
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


@GROUPED
def test_groups_are_independent(family_class: type[Family]) -> None:
    """log p(z) of 3 groups of 2 is the sum over groups. Mean, samples and entropy are concatenated."""
    whole, single = family_class((6,), group_size=2), family_class((2,))
    raw = features(whole, 5)
    parts = raw.chunk(3, dim=-1)
    p, each = whole(raw), [single(part) for part in parts]
    z = p.sample()
    expected = sum(q.log_prob(part) for q, part in zip(each, z.chunk(3, dim=-1), strict=True))
    torch.testing.assert_close(p.log_prob(z), expected)
    if family_class is not RelaxedCategorical:
        torch.testing.assert_close(p.mean, torch.cat([q.mean for q in each], dim=-1))
        torch.testing.assert_close(p.entropy(), sum(q.entropy() for q in each))


def test_a_one_hot_sample_has_no_pathwise_gradient() -> None:
    with pytest.raises(UserError, match=r"posterior Categorical: .* no pathwise gradient.*RelaxedCategorical"):
        draw(Categorical((3,))(torch.zeros(4, 3)))


def test_a_sampled_kl_of_one_hot_vectors_has_the_gradient_of_the_exact_one() -> None:
    """On average, through straight-through samples. Without this gradient the KL would not train the encoder."""
    family = Categorical((3,), straight_through=True)
    raw, p = torch.tensor([1.0, 0.0, -0.5], dtype=torch.float64), family(torch.tensor([0.3, -0.2, 0.0]).double())
    of_each = raw.expand(200_000, 3).clone().requires_grad_()
    q = family(of_each)
    z = draw(q)
    (q.log_prob(z) - p.log_prob(z)).sum().backward()
    one = raw.clone().requires_grad_()
    kl_divergence(family(one), p).backward()
    assert of_each.grad is not None
    assert one.grad is not None
    assert one.grad.abs().max() > 0.1
    assert z_score(of_each.grad, one.grad) < 5


def test_straight_through_samples_are_one_hot_and_carry_the_gradient_of_the_probabilities() -> None:
    raw = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    z = Categorical((3,), straight_through=True)(raw).rsample()
    assert set(z.detach().unique().tolist()) == {0.0, 1.0}
    z[:, 0].sum().backward()
    expected = torch.autograd.functional.jacobian(lambda r: r.softmax(-1)[:, 0].sum(), raw.detach())
    assert raw.grad is not None
    torch.testing.assert_close(raw.grad, expected)


def test_a_cold_relaxation_is_nearly_one_hot_with_the_categorical_frequencies() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    z = RelaxedCategorical((3,), temperature=0.01)(logits).sample((20_000,))
    hot = (z > 0.99).double()
    assert hot.sum(-1).mean() > 0.97
    torch.testing.assert_close(hot.mean(0), logits.softmax(-1), rtol=0, atol=0.03)


@pytest.mark.parametrize("name", ["full normal", "low-rank normal", "rank-one normal"])
def test_sigma_has_its_floor(name: str) -> None:
    """At raw scales of -1000 each conditional standard deviation is `min_sigma`, not 0."""
    family = FAMILIES[name][0]((2,))
    raw = torch.zeros(family.param_shape, dtype=torch.float64)
    raw[2:4] = -1000
    torch.testing.assert_close(family(raw).stddev, torch.full((2,), 1e-3, dtype=torch.float64))


def test_a_full_covariance_is_made_of_sigma_and_w_by_rows() -> None:
    """L = diag(sigma) (I + W / 3^1/2), with W = [[0, 0, 0], [1, 0, 0], [2, 3, 0]]."""
    raw = torch.tensor([0.5, -1, 2, 0.1, 0.2, 0.3, 1, 2, 3], dtype=torch.float64)
    sigma = 1e-3 + torch.nn.functional.softplus(raw[3:6])
    w = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 3, 0]], dtype=torch.float64)
    factor = sigma.diag() @ (torch.eye(3, dtype=torch.float64) + w / 3**0.5)
    q = FullNormal((3,))(raw)
    torch.testing.assert_close(q.mean, raw[:3])
    torch.testing.assert_close(q.covariance_matrix, factor @ factor.mT)


@pytest.mark.parametrize("size", [10, 100])
@pytest.mark.parametrize("family_class", [FullNormal, LinearIAF])
def test_the_gradient_through_a_full_covariance_is_no_louder_than_through_the_mean(
    family_class: Callable[[Shape], Family], size: int
) -> None:
    """For any D. All features share the encoder's weights, so the noise of D^2 / 2 of them could hide the rest."""
    raw = torch.zeros(1000, *family_class((size,)).param_shape, requires_grad=True)
    draw(family_class((size,))(raw)).sum().backward()
    assert raw.grad is not None
    of_mean, of_sigma, of_w = raw.grad.square().split([size, size, raw.shape[1] - 2 * size], dim=1)
    assert of_w.sum() < of_mean.sum()
    assert of_w.sum() > 0.1 * of_sigma.sum()


@pytest.mark.parametrize("name", [name for name in FAMILIES if "normal" in name])
def test_density_is_float32_under_autocast(name: str) -> None:
    """With bfloat16 networks, density and samples are those of the rounded features, in float32."""
    family = FAMILIES[name][0]((6,))
    raw, z = features(family, 8).bfloat16(), torch.randn(8, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_prob = family(raw).log_prob(z)
        torch.manual_seed(1)
        sample = family(raw).rsample((5,))
    exact = family(raw.double()).log_prob(z.double())
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-5)
    torch.manual_seed(1)
    torch.testing.assert_close(sample, family(raw.float()).rsample((5,)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("recipe", "shape", "said"),
    [
        (FullNormal, (2, 4, 4), r"vectors \[D\].*DiagonalNormal takes any shape"),
        (RankOneNormal, (1, 4), "vectors"),
        (partial(FullNormal, min_sigma=-1.0), (4,), "min_sigma is -1.0"),
        (partial(LowRankNormal, rank=0), (4,), "rank is 0; it must be from 1 to the 4"),
        (partial(LowRankNormal, rank=5), (4,), "rank is 5"),
        (partial(Dirichlet, group_size=3), (4,), "group_size is 3.*divide the 4"),
        (partial(Categorical, group_size=1), (4,), "at least 2"),
        (Dirichlet, (1,), "Dirichlet: z has one dimension.*raise latent_size"),
        (VonMisesFisher, (2, 4, 4), r"vectors \[D\]"),
        (partial(Dirichlet, min_concentration=0.0), (4,), "above 0 and below 1"),
        (partial(RelaxedCategorical, temperature=0.0), (4,), "temperature is 0.0; it must be above 0"),
        (partial(VonMisesFisher, min_kappa=-1.0), (4,), "min_kappa is -1.0"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(
    recipe: Callable[[Shape], Family], shape: Shape, said: str
) -> None:
    with pytest.raises(UserError, match=said) as error:
        recipe(shape)
    assert "\n" not in str(error.value)
