"""Laws of the families whose dimensions are independent. To add a family, add a row to FAMILIES.

Families over vectors with dependent dimensions are in test_vector_families.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Independent

from vae_lightning.distributions import (
    Bernoulli,
    Beta,
    Binomial,
    CategoricalLevels,
    Classes,
    ContinuousBernoulli,
    DiagonalNormal,
    DiscretizedLogistic,
    Family,
    Gamma,
    Laplace,
    MixtureOfDiscretizedLogistics,
    StudentT,
    noise_scale,
    pixels,
)
from vae_lightning.types import Shape, UserError

LINE = torch.linspace(-60, 60, 60_001, dtype=torch.float64)
UNIT = torch.linspace(0, 1, 200_001, dtype=torch.float64)
HALF_LINE = torch.logspace(-30, 2.5, 60_001, dtype=torch.float64)  # dense near 0, where a density may be infinite
NEAR_ZERO = torch.logspace(-6, math.log10(0.5), 40_001, dtype=torch.float64)
OPEN_UNIT = torch.cat([NEAR_ZERO, 1 - NEAR_ZERO[:-1].flip(0)])


def levels(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64) / (count - 1)


# recipe, the points of its 1-D support, and whether it is a density (integrated) or a mass (summed)
FAMILIES: dict[str, tuple[Callable[[Shape], Family], Tensor, bool]] = {
    "normal, predicted sigma": (DiagonalNormal, LINE, True),
    "normal, fixed sigma": (partial(DiagonalNormal, sigma=0.3), LINE, True),
    "normal, learned sigma": (partial(DiagonalNormal, sigma=0.3, learn_sigma=True), LINE, True),
    "Laplace": (partial(Laplace, min_scale=0.2), LINE, True),
    "Laplace, learned scale": (partial(Laplace, scale=0.5, learn_scale=True), LINE, True),
    "Student's t": (partial(StudentT, df=8.0), LINE, True),
    "gamma": (partial(Gamma, min_concentration=0.5), HALF_LINE, True),
    "beta": (partial(Beta, min_concentration=0.9), OPEN_UNIT, True),
    "Bernoulli": (Bernoulli, torch.tensor([0.0, 1.0], dtype=torch.float64), False),
    "continuous Bernoulli": (ContinuousBernoulli, UNIT, True),
    "binomial": (partial(Binomial, num_steps=16), levels(17), False),
    "discretised logistic": (DiscretizedLogistic, levels(256), False),
    "discretised logistic, two levels": (partial(DiscretizedLogistic, num_levels=2), levels(2), False),
    "mixture of discretised logistics": (partial(MixtureOfDiscretizedLogistics, num_levels=17), levels(17), False),
    "classes": (partial(Classes, num_classes=5), torch.arange(5, dtype=torch.float64), False),
    "categorical over levels": (partial(CategoricalLevels, num_levels=17), levels(17), False),
}
ROWS = pytest.mark.parametrize("name", FAMILIES)


def make(name: str, event_shape: Shape) -> Family:
    return FAMILIES[name][0](event_shape).double()


def features(family: Family, *batch_shape: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(*batch_shape, *family.param_shape, dtype=torch.float64)


@ROWS
@pytest.mark.parametrize("scale", [0.1, 1.5])
def test_normalised(name: str, scale: float) -> None:
    """sum or integral of p over its support = 1."""
    _, points, is_density = FAMILIES[name]
    family = make(name, (1,))
    p = family(features(family, 5, scale=scale))
    mass = p.log_prob(points[:, None, None]).exp()  # [points, 5]
    total = torch.trapezoid(mass, points, dim=0) if is_density else mass.sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "classes"])  # which have no mean
def test_mean_and_samples_agree_with_the_density(name: str) -> None:
    """E[x] by the density = `mean` = the average of samples, for every batch entry."""
    _, points, is_density = FAMILIES[name]
    family = make(name, (1,))
    p = family(features(family, 4))
    mass = p.log_prob(points[:, None, None]).exp()
    moments = [mass * points[:, None] ** k for k in (1, 2)]
    m1, m2 = (torch.trapezoid(m, points, dim=0) if is_density else m.sum(0) for m in moments)
    torch.testing.assert_close(p.mean[:, 0].expand_as(m1), m1, rtol=0, atol=1e-3)
    n = 40_000
    error = (p.sample((n,))[..., 0].mean(0) - m1).abs() / ((m2 - m1**2) / n).sqrt()
    assert error.max() < 4.5


@ROWS
@pytest.mark.parametrize("event_shape", [(), (3,), (1, 4, 4), (3, 5, 2)])
def test_shapes(name: str, event_shape: Shape) -> None:
    """log_prob has shape [*sample, *batch] for any event shape."""
    family = make(name, event_shape)
    p = family(features(family, 2, 7))
    assert isinstance(p, Independent)
    assert (p.batch_shape, p.event_shape) == ((2, 7), event_shape)
    x = p.sample((5,))
    assert x.shape == (5, 2, 7, *event_shape)
    assert p.log_prob(x).shape == (5, 2, 7)
    assert p.expand((4, 2, 7)).log_prob(x[:4]).shape == (4, 2, 7)


@ROWS
def test_dimensions_are_independent(name: str) -> None:
    """log p(x) of an event is the sum over its dimensions."""
    family, single = make(name, (2, 3, 4)), make(name, (1,))
    raw = features(family, 6)
    x = family(raw).sample()
    params = torch.stack(raw.chunk(family.num_params, dim=1), dim=-1)  # [6, 2, 3, 4, num_params]
    each = single(params).log_prob(x[..., None])
    torch.testing.assert_close(family(raw).log_prob(x), each.sum((1, 2, 3)))


@ROWS
def test_gradient_reaches_features_and_parameters(name: str) -> None:
    family = make(name, (3,))
    raw = features(family, 8).requires_grad_()
    p = family(raw)
    p.log_prob(p.sample()).sum().backward()
    for tensor in (raw, *family.parameters()):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


@ROWS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4])
def test_finite_at_extreme_features(name: str, dtype: torch.dtype, size: float) -> None:
    """float32 for any dtype of the network; log_prob and its gradient are finite at features of +-1e4."""
    family = FAMILIES[name][0]((4,))
    raw = (size * torch.tensor([-1.0, 1.0, -0.5, 0.0]).repeat(family.num_params)).to(dtype).requires_grad_()
    p = family(raw[None])
    points = FAMILIES[name][1]
    x = torch.stack([points[0], points[-1], points[len(points) // 2], points[0]]).float()[None].clamp(-1, 1)
    log_prob = p.log_prob(x)
    assert log_prob.dtype == torch.float32
    assert torch.isfinite(log_prob).all()
    log_prob.sum().backward()
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()
    assert torch.isfinite(p.sample()).all()


@pytest.mark.parametrize("logit", [-700.0, -40.0, -1.0, -1e-3, 0.0, 1e-6, 0.02, 3.0, 40.0, 700.0])
def test_continuous_bernoulli_against_its_own_formula(logit: float) -> None:
    """log p(x) = eta x - log((e^eta - 1) / eta) in high precision, also if sigmoid(eta) rounds to 1."""
    eta = torch.tensor([logit], dtype=torch.float64)
    family = ContinuousBernoulli((1,))
    x = torch.tensor([0.3], dtype=torch.float64)
    big, small = abs(logit), abs(logit) < 1e-2
    log_ratio = max(logit, 0.0) + (
        -big / 2 + big**2 / 24 if small else float(torch.log1p(-torch.exp(-eta.abs())) - eta.abs().log())
    )
    assert family(eta).log_prob(x).item() == pytest.approx(logit * 0.3 - log_ratio, rel=1e-9, abs=1e-9)
    assert 0 < family(eta).mean.item() < 1


@pytest.mark.parametrize("eta", [-9.9e-3, -1e-3, -1e-8, 0.0, 1e-8, 1e-3, 9.9e-3])
def test_the_mean_of_a_continuous_bernoulli_near_zero(eta: float) -> None:
    """E[x] = 1/2 + eta/12 - eta^3/720 + ...

    near 0, where the formula is 0/0. The mean is exact to 1e-8, the slope to 1e-5.
    """
    raw = torch.tensor([eta], dtype=torch.float64, requires_grad=True)
    mean = ContinuousBernoulli((1,))(raw).mean
    (slope,) = torch.autograd.grad(mean.sum(), raw)
    assert mean.item() == pytest.approx(0.5 + eta / 12 - eta**3 / 720, abs=1e-8)
    assert slope.item() == pytest.approx(1 / 12 - eta**2 / 240, abs=1e-5)


@pytest.mark.parametrize("eta", [0.02, 1.0, 10.0, 79.0, 81.0, 88.0, 89.0, 100.0, 1e4])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_mean_of_a_continuous_bernoulli_and_its_slope(eta: float, sign: int, dtype: torch.dtype) -> None:
    """E[x] = 1 / (1 - e^-eta) - 1 / eta, dE[x]/d eta = Var[x] = 1 / eta^2 - 1 / (2 sinh(eta / 2))^2."""
    raw = torch.tensor([sign * eta], dtype=dtype, requires_grad=True)
    mean = ContinuousBernoulli((1,))(raw).mean
    (slope,) = torch.autograd.grad(mean.sum(), raw)
    tail = math.exp(-eta) / -math.expm1(-eta)  # 1 / (e^eta - 1)
    below = 1 / eta - tail
    assert mean.item() == pytest.approx(below if sign < 0 else 1 - below, abs=3e-7)
    assert slope.item() == pytest.approx(1 / eta**2 - tail * (1 + tail), abs=1e-6)


def test_a_continuous_bernoulli_keeps_its_digits_in_float32() -> None:
    """The mean, log p and its slope agree with float64 to 1e-6, also near a mean of 1/2 and where the formulas meet."""
    eta = torch.cat(
        [torch.linspace(-3, 3, 4001), torch.tensor([-1.0, -1e-2, -1e-3, 1e-2, 1.0]).nextafter(torch.ones(1))]
    )
    found = {}
    for dtype in (torch.float32, torch.float64):
        raw = eta.to(dtype)[:, None].requires_grad_()
        p = ContinuousBernoulli((1,))(raw)
        log_p = p.log_prob(torch.full_like(raw, 0.5))
        found[dtype] = (p.mean, log_p, *torch.autograd.grad(log_p.sum(), raw))
    for single, double in zip(found[torch.float32], found[torch.float64], strict=True):
        assert (single - double).abs().max() < 1e-6
    mean, _, slope = found[torch.float64]
    torch.testing.assert_close(slope, 0.5 - mean, rtol=0, atol=1e-13)  # d log p / d eta = x - E[x]


def test_continuous_bernoulli_has_its_gradient_at_zero_too() -> None:
    """d log p / d eta = x - E[x] = x - 1/2 at eta = 0, the start of a zero-initialised layer."""
    eta = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    ContinuousBernoulli((1,))(eta).log_prob(torch.tensor([0.3]).double()).sum().backward()
    assert eta.grad is not None
    assert eta.grad.item() == pytest.approx(-0.2)


def test_binomial_with_one_step_is_bernoulli() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64)
    x = torch.randint(2, (5, 3)).double()
    torch.testing.assert_close(Binomial((3,), num_steps=1)(logits).log_prob(x), Bernoulli((3,))(logits).log_prob(x))


@pytest.mark.parametrize("sigma", [0.05, 1.0, 1000.0])
def test_sigma_is_what_was_asked_for(sigma: float) -> None:
    p = DiagonalNormal((2,), sigma=sigma)(torch.zeros(4, 2))
    assert p.stddev.unique().item() == pytest.approx(sigma, rel=1e-5)
    scale = noise_scale(p)
    assert scale is not None
    assert scale.item() == pytest.approx(sigma, rel=1e-5)
    assert noise_scale(Bernoulli((2,))(torch.zeros(4, 2))) is None


def test_the_sigma_of_a_predicted_scale_is_its_mean_over_pixels_and_examples() -> None:
    family = DiagonalNormal((2, 3, 3))
    raw = torch.randn(5, *family.param_shape)
    found = noise_scale(family(raw))
    assert found is not None
    assert found.item() == pytest.approx((1e-3 + torch.nn.functional.softplus(raw[:, 2:])).mean().item(), rel=1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (4, 1), (2, 4, 3), (4, 0)])
def test_log_p_of_a_normal_is_that_of_torch_however_its_sigma_is_repeated(shape: Shape) -> None:
    """Values and gradients equal torch's for one sigma in all, per pixel, per image, per number, or none."""
    size = 0 if shape == (4, 0) else 3
    mu, x = torch.randn(2, 4, size, dtype=torch.float64), torch.randn(4, size, dtype=torch.float64)
    sigma = torch.rand(shape, dtype=torch.float64) + 0.1
    parts = [part.requires_grad_() for part in (mu, sigma)]
    found, expected = (
        normal(mu, sigma.expand(mu.shape)).log_prob(x) for normal in (pixels.Normal, torch.distributions.Normal)
    )
    torch.testing.assert_close(found, expected)
    weight = torch.randn(found.shape, dtype=torch.float64)
    for ours, theirs in zip(
        *(torch.autograd.grad((weight * log_p).sum(), parts) for log_p in (found, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_a_fixed_sigma_is_no_parameter_and_a_learned_one_is() -> None:
    assert not list(DiagonalNormal((2,), sigma=0.1).parameters())
    assert len(list(DiagonalNormal((2,), sigma=0.1, learn_sigma=True).parameters())) == 1


@pytest.mark.parametrize(
    "recipe",
    [
        partial(DiagonalNormal, sigma=0.0),
        partial(DiagonalNormal, learn_sigma=True),
        partial(DiagonalNormal, min_sigma=-1.0),
        partial(Binomial, num_steps=0),
        partial(Laplace, scale=0.0),
        partial(Laplace, learn_scale=True),
        partial(StudentT, df=1.0),
        partial(Gamma, min_concentration=0.0),
        partial(Beta, min_concentration=1.0),
        partial(DiscretizedLogistic, num_levels=1),
        partial(DiscretizedLogistic, min_scale=0.0),
        partial(MixtureOfDiscretizedLogistics, num_components=0),
        partial(CategoricalLevels, num_levels=0),
        partial(Classes, num_classes=1),
    ],
)
def test_impossible_settings_are_refused(recipe: Callable[[Shape], Family]) -> None:
    with pytest.raises(UserError):
        recipe((2,))


def test_density_is_float32_under_autocast() -> None:
    """With bfloat16 networks the density of the rounded features is computed in float32: exact to 1e-5, not 1e-2."""
    raw = torch.randn(8, 20).bfloat16()
    x = torch.rand(8, 10)
    family = DiagonalNormal((10,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_prob = family(raw).log_prob(x)
    exact = family.double()(raw.double()).log_prob(x.double())
    torch.testing.assert_close(log_prob.double(), exact, rtol=1e-5, atol=1e-5)
