"""Laws of `Repeated` and of `Masked`, over the families of the other tables, and of `Classes`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LogNormal, MultivariateNormal, Pareto, Uniform, kl_divergence

from tests.distributions.test_families import FAMILIES as POINTWISE
from tests.distributions.test_flows import FLOWS
from tests.distributions.test_vector_families import FAMILIES as VECTORS
from vae_lightning.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Classes,
    DiagonalNormal,
    Family,
    FamilyPrior,
    FullNormal,
    Gamma,
    Given,
    Masked,
    Repeated,
    StandardNormal,
    VonMisesFisher,
    bits_per_dimension,
    is_mass,
    noise_scale,
    normal_product,
    num_steps,
    seen_positions,
    share_support,
)
from vae_lightning.models.trace_checks import check_trace
from vae_lightning.trace import Latent, Trace, distribution_name, factors, has_mean, point
from vae_lightning.types import Shape, UserError

# the family of one step, and the shape of one step
STEPS: dict[str, tuple[Callable[[Shape], Family], Shape]] = {
    **{name: (row[0], (2,)) for name, row in POINTWISE.items()},
    **{name: (row[0], (4,)) for name, row in VECTORS.items()},
    "spline": (FLOWS["neural spline"], (4,)),
    "one number": (DiagonalNormal, ()),
    "one token": (partial(Classes, num_classes=5), ()),
    "frames": (Bernoulli, (1, 3, 2)),
    "objects in time": (partial(Repeated, family=DiagonalNormal), (2,)),
}
ROWS = pytest.mark.parametrize("name", STEPS)
B, T = 3, 4
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]])


def repeated(name: str, *batch: int) -> tuple[Repeated, Tensor]:
    recipe, shape = STEPS[name]
    family = Repeated(shape, recipe).double()
    objects = (3,) if name == "objects in time" else ()
    return family, 0.7 * torch.randn(*batch, *objects, *family.param_shape, dtype=torch.float64)


def known_point(p: Distribution) -> Tensor | None:
    try:
        return point(p)
    except NotImplementedError:  # groups of relaxed categoricals
        return None


@ROWS
@pytest.mark.parametrize("length", [1, T])
def test_a_repeated_family_is_the_family_at_every_step(name: str, length: int) -> None:
    """log p(x) = sum_t log p(x_t), for any length; entropy, mean and mode are those of the steps."""
    family, features = repeated(name, B, length)
    p, steps = family(features), family.family(features)
    assert p.batch_shape == (B,)
    assert p.event_shape == (length, *steps.event_shape)
    x = p.sample((5,))
    assert x.shape == (5, B, length, *steps.event_shape)
    torch.testing.assert_close(p.log_prob(x), steps.log_prob(x).sum(-1))
    assert p.expand((2, B)).log_prob(x[:2]).shape == (2, B)
    assert (p.has_rsample, has_mean(p), distribution_name(p)) == (
        steps.has_rsample,
        has_mean(steps),
        distribution_name(steps),
    )
    if (value := known_point(steps)) is not None:
        found = point(p)
        assert found is not None
        torch.testing.assert_close(found, value)


@ROWS
def test_steps_are_as_independent_as_the_family(name: str) -> None:
    """`factors` has a distribution of every number where the step's family has one; a KL is the sum over steps."""
    family, features = repeated(name, B, T)
    p, steps = family(features), family.family(features)
    assert (factors(p) is None) == (factors(steps) is None)
    q = family(features + 0.1)
    try:
        expected = kl_divergence(family.family(features + 0.1), steps).sum(-1)
    except NotImplementedError:
        with pytest.raises(NotImplementedError):
            kl_divergence(q, p)
    else:
        torch.testing.assert_close(kl_divergence(q, p), expected)


@ROWS
def test_a_hidden_position_has_no_nats_and_no_gradient(name: str) -> None:
    """log p = the sum over seen steps, whatever lies at the others; the gradient of their features is 0."""
    family, features = repeated(name, B, T)
    features.requires_grad_()
    p, steps = family(features), family.family(features)
    x = p.sample((2,))
    seen = MASK.bool().view(B, T, *[1] * (x.dim() - 3))
    outside = torch.where(seen, x, -1 if not x.is_floating_point() else math.nan)
    masked = Masked(p, MASK)
    value = masked.log_prob(outside)
    torch.testing.assert_close(value, (MASK * steps.log_prob(x)).sum(-1))
    (slope,) = torch.autograd.grad(value.sum(), features)
    assert slope.isfinite().all()
    hidden = ~MASK.bool()
    assert (slope[hidden] == 0).all()
    assert slope[0].abs().sum() > 0
    assert (masked.batch_shape, masked.event_shape) == (p.batch_shape, p.event_shape)
    assert masked.expand((2, B)).log_prob(outside).shape == (2, B)


@ROWS
def test_a_mask_changes_nothing_else(name: str) -> None:
    """Samples, the point, the name and the support are those of p; a mask of ones changes no number at all."""
    family, features = repeated(name, B, T)
    p = family(features)
    masked, all_seen = Masked(p, MASK), Masked(p, torch.ones(B, T))
    torch.manual_seed(0)
    x = p.sample((2,))
    torch.manual_seed(0)
    torch.testing.assert_close(masked.sample((2,)), x)
    torch.testing.assert_close(all_seen.log_prob(x), p.log_prob(x))
    assert masked.has_rsample == p.has_rsample
    assert distribution_name(masked) == distribution_name(p)
    assert has_mean(masked) == has_mean(p)
    assert is_mass(masked) == is_mass(p)
    for found, value in ((known_point(masked), known_point(p)), (noise_scale(all_seen), noise_scale(p))):
        assert (found is None) == (value is None)
        if found is not None and value is not None:
            torch.testing.assert_close(found, value)
    assert share_support(masked, masked, x)
    pointwise, own = factors(masked), factors(p)
    assert (pointwise is None) == (own is None)
    if pointwise is not None and own is not None:
        seen = MASK.view(B, T, *[1] * (x.dim() - 3))
        torch.testing.assert_close(pointwise.log_prob(x), seen * own.log_prob(x))


@ROWS
def test_the_kl_of_hidden_positions_is_zero(name: str) -> None:
    """KL(q || p) = sum over seen steps of KL(q_t || p_t), with a mask on both or on one; by dimension too."""
    family, features = repeated(name, B, T)
    q, p = family(features), family(0.5 * features)
    try:
        of_steps = kl_divergence(family.family(features), family.family(0.5 * features))  # [B, T]
    except NotImplementedError:
        return
    expected = (MASK * of_steps).sum(-1)
    for pair in ((Masked(q, MASK), Masked(p, MASK)), (Masked(q, MASK), p), (q, Masked(p, MASK))):
        torch.testing.assert_close(kl_divergence(*pair), expected)
    latent = Latent(q.sample((1,)), Masked(q, MASK), Masked(p, MASK))
    by_dimension = latent.kl_by_dimension()
    if by_dimension is not None:
        torch.testing.assert_close(by_dimension.flatten(2).sum(-1)[0], expected)
        assert (by_dimension[:, ~MASK.bool()] == 0).all()


@pytest.mark.parametrize(
    "make",
    [lambda at: LogNormal(at, 1.0), lambda at: Uniform(at, at + 0.5), lambda at: Pareto(at.exp(), 3.0)],
)
def test_the_value_in_place_of_a_hidden_one_lies_in_the_support(make: Callable[[Tensor], Distribution]) -> None:
    """Distributions of torch whose density or slope at 0 is not finite, or which refuse a value of 0."""
    at = torch.full((B, T), 2.0, requires_grad=True)
    x = torch.where(MASK.bool(), make(at.detach()).sample(), 0.0)
    nats = Masked(Independent(make(at), 1), MASK).log_prob(x)
    torch.testing.assert_close(nats, (MASK * make(at).log_prob(make(at).sample().where(~MASK.bool(), x))).sum(-1))
    (slope,) = torch.autograd.grad(nats.sum(), at)
    assert slope.isfinite().all()
    assert (slope[~MASK.bool()] == 0).all()


def test_a_position_that_is_hidden_in_part_has_no_closed_form_beside_a_covariance() -> None:
    full = Repeated((2,), FullNormal)
    q = Masked(full(torch.randn(B, T, *full.param_shape)), MASK)
    p = Masked(StandardNormal((T, 2))(), torch.rand(B, T, 2) < 0.5)
    assert Latent(q.rsample((1,)), q, p).kl_estimator == "sampled"
    whole = Masked(StandardNormal((T, 2))(), MASK[..., None].expand(B, T, 2))
    assert Latent(q.rsample((1,)), q, whole).kl_estimator == "sampled"  # the mask's numbers are not looked at


@pytest.mark.parametrize("name", ["Bernoulli", "normal, predicted sigma", "categorical", "one token", "frames"])
def test_the_entropy_counts_the_seen_positions(name: str) -> None:
    family, features = repeated(name, B, T)
    expected = (MASK * family.family(features).entropy()).sum(-1)
    torch.testing.assert_close(Masked(family(features), MASK).entropy(), expected)


def test_a_mask_may_cover_the_leading_dimensions_alone_or_all_of_them() -> None:
    """[B, T], [B, T, N], [B, T, N, D] and [B] are broadcast over the rest; two masks hide what one of them hides."""
    family = Repeated((2,), partial(Repeated, family=DiagonalNormal)).double()
    p = family(torch.randn(B, T, 3, 4, dtype=torch.float64))
    x, elements = p.sample((5,)), factors(p)
    assert elements is not None
    nats = elements.log_prob(x)
    for shape in ((B,), (B, T), (B, T, 3), (B, T, 3, 2)):
        mask = torch.rand(shape) < 0.5
        seen = mask.view(*shape, *[1] * (4 - len(shape)))
        torch.testing.assert_close(Masked(p, mask).log_prob(x), (seen * nats).sum((-1, -2, -3)))
    steps, objects = torch.rand(B, T) < 0.5, torch.rand(B, T, 3) < 0.5
    both = Masked(Masked(p, steps), objects)
    torch.testing.assert_close(both.log_prob(x), Masked(p, steps[..., None] & objects).log_prob(x))


def test_a_mask_may_have_no_batch_or_the_samples() -> None:
    p = Repeated((2,), DiagonalNormal).double()(torch.randn(6, B, T, 4, dtype=torch.float64))
    x = p.sample()
    for shape in ((T,), (6, B, T)):
        mask = torch.rand(shape) < 0.5
        found = Masked(p, mask, event_dims=1).log_prob(x)
        torch.testing.assert_close(found, (mask * Independent(p.base_dist, 1).log_prob(x)).sum(-1))


def test_a_prior_without_a_batch_takes_the_batch_of_its_mask() -> None:
    prior = Masked(StandardNormal((T, 2)).double()(), MASK)
    assert prior.batch_shape == (B,)
    assert prior.sample((5,)).shape == (5, B, T, 2)
    assert prior.log_prob(torch.zeros(5, B, T, 2).double())[:, 2].abs().sum() == 0


def test_bits_and_sigma_are_of_what_is_seen() -> None:
    """A fair coin has one bit; the sigma of hidden steps does not count."""
    coins = Masked(Repeated((2,), Bernoulli)(torch.zeros(B, T, 2)), MASK)
    x = torch.ones(B, T, 2)
    torch.testing.assert_close(bits_per_dimension(-coins.log_prob(x).mean(), coins), torch.tensor(1.0))
    known = torch.zeros(B, T, 2, dtype=torch.bool)
    known[0, 0], known[1, 3] = True, True  # the latter is hidden
    given = Given(coins, known, x)
    torch.testing.assert_close(given.log_prob(x), -math.log(2) * torch.tensor([6.0, 4.0, 0.0]))
    torch.testing.assert_close(bits_per_dimension(-given.log_prob(x).mean(), given), torch.tensor(1.0))
    features = torch.randn(B, T, 4)
    p = Repeated((2,), DiagonalNormal)(features)
    scale = noise_scale(Masked(p, MASK))
    assert scale is not None
    torch.testing.assert_close(scale, p.stddev[MASK.bool()].mean())


def trace_of(p_x: Distribution, x: Tensor) -> Trace:
    return Trace(x, p_x, {})


@pytest.mark.parametrize("family", [Bernoulli, Gamma, Beta, partial(Classes, num_classes=3), FullNormal])
def test_padding_outside_the_support_is_no_fault_and_a_seen_value_is(family: Callable[[Shape], Family]) -> None:
    Family.validate_args = False
    repeated = Repeated((2,), family)
    p_x = Masked(repeated(torch.zeros(1, B, T, *repeated.param_shape)), MASK)
    x = p_x.sample()[0]
    x[~MASK.bool()] = -1
    assert trace_of(p_x, x).outside_support() is None
    if family is not FullNormal:
        x[0, 0, 0] = -7
        assert trace_of(p_x, x).outside_support() == -7


def test_a_mask_of_samples_hides_a_value_that_no_sample_sees() -> None:
    p_x = Repeated((2,), Bernoulli)(torch.zeros(2, B, T, 2))
    mask = torch.stack((MASK, torch.zeros(B, T)))
    x = torch.where(MASK.bool()[..., None], 1.0, -1.0).expand(B, T, 2)
    assert trace_of(Masked(p_x, mask, event_dims=1), x).outside_support() is None
    mask[1, 2, 0] = 1
    assert trace_of(Masked(p_x, mask, event_dims=1), x).outside_support() == -1


def test_a_latent_masked_on_one_side_is_refused() -> None:
    """Its KL would be right, and its log q(z) - log p(z) would count hidden positions of the prior alone."""
    p_x = Repeated((2,), Bernoulli)(torch.zeros(1, B, T, 2))
    q = Repeated((2,), DiagonalNormal)(torch.randn(B, T, 4))
    p = StandardNormal((T, 2))()
    z, x = q.rsample((1,)), torch.ones(B, T, 2)
    check_trace("Model", {}, Trace(x, p_x, {"z": Latent(z, Masked(q, MASK), Masked(p, MASK))}))
    for pair in ((Masked(q, MASK), p), (q, Masked(p, MASK)), (Masked(q, MASK), Masked(p, 1 - MASK))):
        with pytest.raises(UserError, match=r"latent z: .* do not hide the same positions; .*Masked\(q, mask\)"):
            check_trace("Model", {}, Trace(x, p_x, {"z": Latent(z, *pair)}))


def test_steps_on_spheres_are_not_over_the_space_of_a_normal() -> None:
    family = Repeated((4,), VonMisesFisher)
    q = family(torch.randn(B, T, *family.param_shape))
    assert not share_support(q, StandardNormal((T, 4))(), q.sample())
    assert share_support(q, q, q.sample())


def test_classes_are_frequent_as_their_probabilities_and_the_mode_stands_for_them() -> None:
    """P(v) = softmax(logits)_v, the logits of the first class first."""
    family = Classes((2,), num_classes=3).double()
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.5], [-1.0, 3.0]], dtype=torch.float64)  # [V, event]
    p = family(logits.flatten())
    expected = logits.softmax(0)
    for v in range(3):
        torch.testing.assert_close(p.base_dist.log_prob(torch.tensor([v, v])).exp(), expected[v])
    x = p.sample((20_000,))
    assert not x.is_floating_point()
    found = torch.stack([(x == v).double().mean(0) for v in range(3)])
    assert ((found - expected).abs() < 4.5 * (expected * (1 - expected) / 20_000).sqrt()).all()
    assert torch.equal(point(p), torch.tensor([1, 2]))  # type: ignore[arg-type]
    maps = Classes((1, 2, 2), num_classes=3)
    assert maps.param_shape == (3, 2, 2)
    assert bits_per_dimension(
        -maps(torch.zeros(3, 2, 2)).log_prob(torch.zeros(1, 2, 2)), maps(torch.zeros(3, 2, 2))
    ) == pytest.approx(math.log2(3))


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    p = Repeated((2,), DiagonalNormal)(torch.randn(B, T, 4))
    given = Given(p, torch.zeros(B, T, 2, dtype=torch.bool), torch.zeros(B, T, 2))
    full = Repeated((2,), FullNormal)
    of_full = full(torch.randn(B, T, *full.param_shape))
    mistakes: list[tuple[Callable[[], object], str]] = [
        (lambda: Masked(p, torch.ones(B, T + 1)), r"the mask is \[3, 5\]; .*dimensions is \[3, 4\]"),
        (lambda: Masked(p, torch.ones(B + 1, T)), r"the mask is \[4, 4\]"),
        (lambda: Masked(of_full, torch.ones(B, T, 2)), "1 leading dimensions are independent"),
        (lambda: Masked(MultivariateNormal(torch.zeros(B, 2), torch.eye(2)), torch.ones(B, 2)), "0 leading"),
        (lambda: Masked(given, MASK), "Given has a density of its own"),
        (lambda: FamilyPrior((2,), partial(Repeated, family=DiagonalNormal))(), "an axis of steps leads them"),
        (lambda: normal_product(Masked(p, MASK), p), "both must be diagonal normals"),
        (lambda: Repeated((2,), partial(Categorical, group_size=3)), "group_size is 3"),
    ]
    for make, says in mistakes:
        with pytest.raises(UserError, match=says) as error:
            make()
        assert "\n" not in str(error.value)


def test_the_mask_of_a_distribution_can_be_read() -> None:
    p = Repeated((2,), Categorical)(torch.zeros(B, T, 2))
    assert seen_positions(p) is None
    assert torch.equal(seen_positions(Masked(p, MASK)), MASK.bool()[..., None])  # type: ignore[arg-type]


def test_the_steps_that_a_density_explains() -> None:
    """All steps of a repeated family, the seen ones of a masked one; None if p is no sequence."""
    repeated = Repeated((2,), DiagonalNormal)
    p = repeated(torch.zeros(3, 4, 7, *repeated.param_shape))  # batch [K, B] = [3, 4], event [7, 2]
    steps = num_steps(p)
    assert steps is not None
    assert steps.item() == 7
    mask = torch.arange(7) < torch.tensor([7, 3, 1, 0])[:, None]
    seen = num_steps(Masked(p, mask))
    assert seen is not None
    assert seen.tolist() == [7, 3, 1, 0]
    assert num_steps(DiagonalNormal((2,))(torch.zeros(4, 4))) is None
