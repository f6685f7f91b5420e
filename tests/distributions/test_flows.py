"""Laws of posterior flows. To add a flow, add one row to FLOWS."""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, kl_divergence
from torch.distributions.transforms import AffineTransform

from vae_lightning.distributions import (
    IAF,
    ConvIAF,
    DiagonalNormal,
    Family,
    FlowPrior,
    LinearIAF,
    NeuralSplineFlow,
    RealNVP,
    StandardNormal,
    VampPrior,
    inversion,
)
from vae_lightning.distributions.flows import Flowed
from vae_lightning.models import VAE
from vae_lightning.objectives import DReG
from vae_lightning.trace import Latent
from vae_lightning.types import Shape, UserError

SMALL = {"hidden_sizes": (12,), "context_size": 3}
SMALL_MAPS = {"hidden_channels": (12,), "context_size": 3}
FLOWS: dict[str, Callable[[Shape], Family]] = {
    "IAF": partial(IAF, **SMALL),
    "IAF, deep": partial(IAF, num_steps=3, hidden_sizes=(12, 12), context_size=2, gate_bias=0.5),
    "IAF of maps": partial(ConvIAF, **SMALL_MAPS),
    "IAF of maps, deep": partial(ConvIAF, num_steps=3, hidden_channels=(8, 6), kernel_size=5, context_size=2),
    "linear IAF": LinearIAF,
    "RealNVP": partial(RealNVP, **SMALL),
    "neural spline": partial(NeuralSplineFlow, **SMALL),
}
ROWS = pytest.mark.parametrize("name", FLOWS)


MAPS: dict[int, Shape] = {1: (1, 1, 1), 2: (1, 1, 2), 3: (1, 3, 1), 4: (2, 1, 2), 5: (5, 1, 1)}  # by their size


def shape_of(name: str, size: int) -> Shape:
    return MAPS[size] if "maps" in name else (size,)


def make(name: str, size: int) -> Family:
    return FLOWS[name](shape_of(name, size)).double()


def features(family: Family, *batch_shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*batch_shape, *family.param_shape, dtype=torch.float64)


@ROWS
def test_normalised_in_one_dimension(name: str) -> None:
    family = make(name, 1)
    points = torch.linspace(-20, 20, 8_001, dtype=torch.float64)
    density = family(features(family, 4)).log_prob(points.reshape(-1, 1, *family.event_shape)).exp()
    torch.testing.assert_close(torch.trapezoid(density, points, dim=0), torch.ones(4).double(), rtol=0, atol=1e-4)


@ROWS
def test_normalised_in_two_dimensions(name: str) -> None:
    family = make(name, 2)
    line = torch.linspace(-8, 8, 161, dtype=torch.float64)
    points = torch.cartesian_prod(line, line).reshape(-1, *family.event_shape)
    density = family(features(family)).log_prob(points).exp()
    assert density.sum().item() * (line[1] - line[0]).item() ** 2 == pytest.approx(1, abs=2e-3)


@ROWS
def test_shapes(name: str) -> None:
    """log_prob has shape [*sample, *batch]; an expanded posterior has the same density."""
    family = make(name, 3)
    q = family(features(family, 2, 7))
    assert (q.batch_shape, q.event_shape) == ((2, 7), family.event_shape)
    z = q.rsample((5,))
    assert z.shape == (5, 2, 7, *family.event_shape)
    assert q.support is not None
    assert q.support.check(z).shape == (5, 2, 7)
    assert q.log_prob(z).shape == (5, 2, 7)
    wide = q.expand((5, 2, 7))
    assert wide.batch_shape == (5, 2, 7)
    torch.testing.assert_close(wide.log_prob(z), q.log_prob(z))
    assert wide.rsample().shape == (5, 2, 7, *family.event_shape)


@ROWS
def test_a_sample_has_one_density_with_and_without_the_inverse(name: str) -> None:
    """The stored density of own samples, and its gradient, equal those of a copy, which the flow does not recognise."""
    family, raws = make(name, 4), []
    for point in (lambda z: z, torch.clone):
        torch.manual_seed(1)
        raw = features(family, 6).requires_grad_()
        q = family(raw)
        log_q = q.log_prob(point(q.rsample((3,))))
        log_q.square().sum().backward()
        raws.append((log_q.detach(), raw.grad))
    torch.testing.assert_close(raws[0], raws[1], rtol=1e-6, atol=1e-8)


@ROWS
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_same_density_in_evaluation(name: str, mode: Callable[[], AbstractContextManager]) -> None:
    """In inference mode tensors have no version; own samples and other points still have the right density."""
    family = make(name, 4)
    raw = features(family, 6)
    with mode():
        q = family(raw)
        z = q.rsample((3,))
        own, foreign = q.log_prob(z).clone(), q.log_prob(z.clone())
    torch.testing.assert_close(own, foreign)
    torch.testing.assert_close(family(raw).log_prob(z.clone()), own)


@ROWS
def test_log_density_is_that_of_the_jacobian_by_autograd(name: str) -> None:
    """log q(z) = log q_0(e) - log |det dz/de|, and the inverse leads back to e."""
    family = make(name, 5)
    q = family(features(family))
    if not isinstance(q, Flowed):
        pytest.skip("a Gaussian in closed form")
    e = q.q_0.sample()
    f = q.flow(q.context)
    jacobian = torch.autograd.functional.jacobian(f, e).reshape(5, 5)
    expected = q.q_0.log_prob(e) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(q.log_prob(f(e)), expected)
    torch.testing.assert_close(f.inv(f(e)), e)


@ROWS
def test_gradient_reaches_features_and_weights(name: str) -> None:
    """The density of a point trains features and weights, whether the point was drawn with a gradient or without."""
    family = make(name, 3)
    for draw in (lambda q: q.rsample(), lambda q: q.sample()):
        raw = features(family, 64).requires_grad_()
        family.zero_grad()
        q = family(raw)
        (q.log_prob(draw(q)) ** 2).sum().backward()
        for tensor in (raw, *family.parameters()):
            assert tensor.grad is not None
            assert torch.isfinite(tensor.grad).all()
            assert tensor.grad.abs().sum() > 0


@ROWS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e4])
def test_finite_at_extreme_features(name: str, dtype: torch.dtype, size: float) -> None:
    """float32 for any dtype of the network, with autocast or not; own samples have finite densities and gradients."""
    family = FLOWS[name](shape_of(name, 4))
    pattern = torch.tensor([-1.0, 1.0, -0.5, 0.0, 0.5]).repeat(99)[: math.prod(family.param_shape)]
    raw = (size * pattern.reshape(family.param_shape)).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = family(raw[None])
        z = q.rsample((2,))
        log_q = q.log_prob(z)
    assert z.dtype == log_q.dtype == torch.float32
    assert torch.isfinite(log_q).all()
    (log_q.sum() + z.sum()).backward()
    assert raw.grad is not None
    assert torch.isfinite(raw.grad).all()


@ROWS
def test_density_is_float32_under_autocast(name: str) -> None:
    """The density agrees with float64 at the same point to 1e-4; bfloat16 would give 1e-2."""
    family = FLOWS[name](shape_of(name, 4))
    raw = torch.randn(8, *family.param_shape).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        q = family(raw)
        z = q.rsample()
        own, foreign = q.log_prob(z), q.log_prob(z.clone())
    exact = family.double()(raw.double()).log_prob(z.double())
    torch.testing.assert_close(own.double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(foreign.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("step", [0, 1])
def test_a_step_of_iaf_is_autoregressive(step: int) -> None:
    """dz/de is triangular with the gates, in (0, 1), on its diagonal. The second step reverses the order."""
    family = make("IAF", 6)
    context = torch.randn(3, dtype=torch.float64)
    f = family.flow.transforms[step](context)
    jacobian = torch.autograd.functional.jacobian(f, torch.randn(6, dtype=torch.float64))
    beyond, within = (jacobian.triu(1), jacobian.tril(-1)) if step == 0 else (jacobian.tril(-1), jacobian.triu(1))
    assert torch.equal(beyond, torch.zeros_like(beyond))
    assert (within != 0).sum() == 15
    gates = jacobian.diagonal()
    assert ((gates > 0) & (gates < 1)).all()


@pytest.mark.parametrize("kernel_size", [3, 7])
@pytest.mark.parametrize("step", [0, 1])
def test_a_step_of_iaf_on_maps_is_autoregressive(step: int, kernel_size: int) -> None:
    """dz/de is triangular in the order of rows, columns, channels; the second step reverses the order.

    A kernel of 2 W - 1 sees all earlier pixels. A kernel of 3 sees all but those up and far to the right. If a pixel is
    seen, all its channels are.
    """
    channels, height, width = shape = (3, 3, 4)
    family = ConvIAF(shape, hidden_channels=(12, 9), kernel_size=kernel_size, context_size=3).double()
    f = family.flow.transforms[step](torch.randn(3, height, width, dtype=torch.float64))
    by_map = torch.autograd.functional.jacobian(f, torch.randn(shape, dtype=torch.float64))
    jacobian = by_map.permute(1, 2, 0, 4, 5, 3).reshape(36, 36)  # in the order
    beyond, within = (jacobian.triu(1), jacobian.tril(-1)) if step == 0 else (jacobian.tril(-1), jacobian.triu(1))
    assert torch.equal(beyond, torch.zeros_like(beyond))
    gates = jacobian.diagonal()
    assert ((gates > 0) & (gates < 1)).all()
    unseen = 0 if kernel_size == 7 else channels**2 * _blind_spot(height, width)
    assert (within != 0).sum() == 36 * 35 // 2 - unseen


def _blind_spot(height: int, width: int) -> int:
    """Count the pairs of pixels whose second, earlier pixel is further to the right of the first than above it."""
    places = [divmod(i, width) for i in range(height * width)]
    return sum(b[1] - a[1] > a[0] - b[0] for i, a in enumerate(places) for b in places[:i])


def test_the_context_of_maps_is_heard_at_its_own_place_whichever_way_a_step_goes() -> None:
    """dm/dh is diagonal in the pixels, because m depends on h at its own pixel only."""
    family = ConvIAF((2, 3, 4), hidden_channels=(8,), context_size=3).double()
    h, z = torch.randn(3, 3, 4, dtype=torch.float64), torch.zeros(2, 3, 4, dtype=torch.float64)
    for step in family.flow.transforms:
        with torch.no_grad():
            step.rest[-1].weight[:, :, 0] = step.rest[-1].weight[:, :, 1, 0] = 0
        slope = torch.autograd.functional.jacobian(lambda h, step=step: step.shift_and_gate(z, h)[0], h)
        by_place = slope.permute(1, 2, 4, 5, 0, 3).reshape(12, 12, 6).abs().sum(2)
        assert (by_place.diagonal() > 0).all()
        assert (by_place - torch.diag(by_place.diagonal()) == 0).all()


@pytest.mark.parametrize(
    ("family", "shape"), [(partial(IAF, **SMALL), (4,)), (partial(ConvIAF, **SMALL_MAPS), (2, 3, 3))]
)
def test_iaf_starts_near_the_identity(family: Callable[..., Family], shape: Shape) -> None:
    """With the gates open, z is e."""
    family = family(shape, gate_bias=40.0).double()
    q = family(features(family))
    assert isinstance(q, Flowed)
    e = q.q_0.sample()
    torch.testing.assert_close(q.flow(q.context)(e), e)


def test_linear_iaf_is_its_matrix_times_a_diagonal_gaussian() -> None:
    """z = L y with mu, sigma and L = I + W / 3^1/2 of the features."""
    family = LinearIAF((3,), min_sigma=0.0).double()
    raw = features(family)
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 0], matrix[2, 0], matrix[2, 1] = raw[6:] / 3**0.5
    variance = torch.diag(torch.nn.functional.softplus(raw[3:6]) ** 2)
    q = family(raw)
    torch.testing.assert_close(q.mean, matrix @ raw[:3])
    assert isinstance(q, MultivariateNormal)
    torch.testing.assert_close(q.covariance_matrix, matrix @ variance @ matrix.T)


@pytest.mark.parametrize(
    ("name", "estimator"), [("linear IAF", "closed form"), ("IAF", "sampled"), ("IAF of maps", "sampled")]
)
def test_kl_against_the_standard_normal(name: str, estimator: str) -> None:
    """The KL is in closed form for the Gaussian and sampled for the flow; both have the mean of log q - log p."""
    family = make(name, 3)
    q = family(features(family, 2))
    one = Latent(q.rsample((20_000,)), q, StandardNormal(family.event_shape).double()())
    assert one.kl_estimator == estimator
    error = one.log_ratio().std(0) / math.sqrt(20_000)
    assert ((one.log_ratio().mean(0) - one.kl().expand(20_000, 2).mean(0)).abs() < 4.5 * error).all()


def best_kl(family: Family, p: MultivariateNormal) -> float:
    """min KL(q || p) over the features of a Gaussian q."""
    raw = torch.zeros(family.param_shape, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def loss() -> Tensor:
        optimizer.zero_grad()
        kl = kl_divergence(as_multivariate(family(raw)), p)
        kl.backward()
        return kl

    optimizer.step(loss)
    return loss().item()


def as_multivariate(q: Distribution) -> MultivariateNormal:
    return q if isinstance(q, MultivariateNormal) else MultivariateNormal(q.mean, scale_tril=torch.diag(q.stddev))


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99])
def test_linear_iaf_closes_the_gap_of_the_mean_field(rho: float) -> None:
    """The best diagonal q misses a posterior of correlation rho by -log(1 - rho^2) / 2 nats, a linear IAF by 0."""
    p = MultivariateNormal(torch.tensor([0.5, -1.0]).double(), torch.tensor([[1.0, rho], [rho, 1.0]]).double())
    gap = -0.5 * math.log(1 - rho**2)
    assert best_kl(DiagonalNormal((2,), min_sigma=0.0).double(), p) == pytest.approx(gap, abs=1e-2)
    assert best_kl(LinearIAF((2,), min_sigma=0.0).double(), p) == pytest.approx(0, abs=1e-2)


class _OneWay(AffineTransform):
    """z = 2 e, declared without an inverse."""

    def _inverse(self, y: Tensor) -> Tensor:
        raise NotImplementedError


def test_a_flow_that_cannot_invert_says_so_and_has_the_density_of_its_own_samples() -> None:
    """An own sample needs no inverse. Any other point, such as a changed sample, is refused in one line."""
    base = Independent(Normal(torch.zeros(3), torch.ones(3)), 1)
    IAF((2,))  # flows built earlier must not matter
    q = Flowed(base, lambda _: _OneWay(0.0, 2.0, event_dim=1))
    z = q.rsample((4,))
    torch.testing.assert_close(q.log_prob(z), Independent(Normal(torch.zeros(3), 2 * torch.ones(3)), 1).log_prob(z))
    with pytest.raises(UserError, match="that the flow did not draw") as refusal:
        q.log_prob(z + 1)
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="that the flow did not draw"):
        q.log_prob(z.mul_(2))


def test_an_iaf_beyond_float32_says_so() -> None:
    """Ten gates of 1e-3 in a row: float32 cannot resolve the difference of two points."""
    family = IAF((8,), num_steps=10, gate_bias=-30.0)
    q = family(torch.randn(3, *family.param_shape))
    z = q.rsample()
    assert torch.isfinite(q.log_prob(z)).all()
    with pytest.raises(UserError, match="that the flow did not draw"):
        q.log_prob(z + 1)


STEEP: dict[str, Callable[[], nn.Module]] = {
    "IAF": partial(IAF, (8,)),
    "IAF of maps": partial(ConvIAF, (2, 3, 3)),
    "RealNVP": partial(RealNVP, (8,)),
    "neural spline": partial(NeuralSplineFlow, (8,)),
    "spline prior": partial(FlowPrior, (8,)),
    "spline prior, autoregressive": partial(FlowPrior, (8,), coupling=False),
}


@pytest.mark.parametrize("name", STEEP)
def test_an_inverse_that_rounding_spoils_is_refused(name: str) -> None:
    """With weights thirty times as large, rounding spoils a posterior's density elsewhere, and a prior's samples."""
    module = STEEP[name]()
    with torch.no_grad():
        for weight in module.flow.parameters():  # type: ignore[union-attr]
            weight.mul_(30)
    if isinstance(module, Family):
        q = module(torch.randn(16, *module.param_shape))
        z = q.rsample()
        assert torch.isfinite(q.log_prob(z)).all()
        with pytest.raises(
            UserError, match=r"the flow did not draw, and rounding spoils the inverse: the error is"
        ) as refusal:
            q.log_prob(z + 1)
    else:
        p = module()
        assert torch.isfinite(p.log_prob(torch.randn(16, 8))).all()
        with pytest.raises(UserError, match=r"rounding spoils its samples: the error is .*MixtureOfFull") as refusal:
            p.sample((16,))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["RealNVP", "neural spline"])
def test_a_coupling_takes_one_pass_to_sample_and_two_and_one_for_a_density(name: str) -> None:
    """Each step's network runs twice for any number of dimensions; an autoregressive step would take nine passes."""
    q, passes = counted(make(name, 8))
    z = q.rsample()
    assert set(passes) == {1}
    q.log_prob(z)
    assert set(passes) == {1}
    q.log_prob(z.clone())
    assert set(passes) == {4}


@pytest.mark.parametrize(("coupling", "sampling"), [(True, 3), (False, 9)])
def test_a_flow_prior_takes_one_pass_for_a_density(coupling: bool, sampling: int) -> None:
    p, passes = counted(FlowPrior((8,), coupling=coupling))
    p.log_prob(torch.randn(5, 8))
    assert set(passes) == {1}
    p.sample((5,))
    assert set(passes) == {1 + sampling}


def counted(module: nn.Module) -> tuple[Distribution, list[int]]:
    """Return a distribution of the flow, and the number of runs of each step's network since."""
    steps = list(module.flow.transforms)  # type: ignore[union-attr, arg-type]
    passes = [0] * len(steps)
    for i, step in enumerate(steps):

        def count(*_: object, i: int = i) -> None:
            passes[i] += 1

        step.hyper.register_forward_hook(count)
    return module(features(module, 5)) if isinstance(module, Family) else module(), passes


def test_a_density_that_takes_more_memory_than_there_is_is_refused_before_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A training step of IAF, VampPrior and DReG: 500 components, 5 samples, 128 images, 40 dimensions' passes.

    One density (96 GiB) would fit. The two densities of the step, with the backward pass, do not.
    """
    model = VAE((1, 4, 4), 40, posterior=IAF, prior=VampPrior, objective=partial(DReG, num_samples=5))
    monkeypatch.setattr(model, "_check_once", id)  # the check asks a Trainer for the stage
    monkeypatch.setattr(inversion, "available_memory", lambda: 200 * 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        UserError, match=r"at 320,000 points .* takes 28\d GiB in a step, but 200.0 are free; choose"
    ) as refusal:
        model.loss_and_terms({"x": torch.rand(128, 1, 4, 4).round()}, 0)
    assert "\n" not in str(refusal.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 2**20  # in KiB: less than a GiB more


@pytest.mark.parametrize("name", ["IAF", "IAF of maps", "RealNVP", "neural spline"])
def test_the_memory_that_is_foretold_is_what_autograd_keeps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate for 5,000 points is within a tenth of the bytes that the real pass saves for its backward pass."""
    monkeypatch.setattr(inversion, "_DENSITIES_PER_STEP", 1)
    foretold: list[int] = []
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    family = FLOWS[name](shape_of(name, 4))
    q = family(torch.randn(5000, *family.param_shape).requires_grad_())
    z = q.rsample().detach()
    monkeypatch.setattr(inversion, "available_memory", lambda: foretold.append(0) or 2**50)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        log_q = q.log_prob(z)
    assert len(foretold) == 1
    assert log_q.requires_grad
    monkeypatch.setattr(inversion, "available_memory", lambda: int(0.9 * sum(kept.values())))
    with pytest.raises(UserError, match="5,000 points"):
        q.log_prob(z)
    monkeypatch.setattr(inversion, "available_memory", lambda: int(1.1 * sum(kept.values())))
    q.log_prob(z)
    with torch.no_grad():  # autograd keeps nothing, so the memory is not checked
        monkeypatch.setattr(inversion, "available_memory", lambda: -1)
        q.log_prob(z)


@pytest.mark.parametrize("checks", [True, False])
def test_building_a_flow_leaves_torchs_own_checks_as_they_are(monkeypatch: pytest.MonkeyPatch, checks: bool) -> None:
    """The first import of zuko turns argument checks off for everyone; `load_zuko` turns them on again."""
    monkeypatch.setattr(Distribution, "_validate_args", checks)
    for name in [name for name in sys.modules if name.partition(".")[0] == "zuko"]:
        monkeypatch.delitem(sys.modules, name)
    IAF((2,))
    assert Distribution._validate_args is checks  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("recipe", "event_shape"),
    [
        (partial(IAF, num_steps=0), (2,)),
        (partial(IAF, hidden_sizes=()), (2,)),
        (partial(IAF, context_size=0), (2,)),
        (partial(IAF, min_gate=0.0), (2,)),
        (IAF, (2, 4, 4)),
        (ConvIAF, (4,)),
        (partial(ConvIAF, num_steps=0), (2, 4, 4)),
        (partial(ConvIAF, hidden_channels=()), (2, 4, 4)),
        (partial(ConvIAF, kernel_size=4), (2, 4, 4)),
        (partial(ConvIAF, context_size=0), (2, 4, 4)),
        (partial(ConvIAF, min_gate=1.0), (2, 4, 4)),
        (LinearIAF, (2, 4, 4)),
        (partial(LinearIAF, min_sigma=-1.0), (2,)),
        (partial(RealNVP, hidden_sizes=(0,)), (2,)),
        (partial(NeuralSplineFlow, num_bins=1), (2,)),
    ],
)
def test_impossible_settings_are_refused(recipe: Callable[[Shape], Family], event_shape: Shape) -> None:
    with pytest.raises(UserError) as refusal:
        recipe(event_shape)
    assert "\n" not in str(refusal.value)
