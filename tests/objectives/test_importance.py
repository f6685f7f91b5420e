"""Gradients without the score of q: correct on average, with less variance."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal, TransformedDistribution
from torch.distributions.transforms import AffineTransform, TanhTransform

from tests.models.linear_gaussian import IMAGE_SHAPE, linear_gaussian, set_exact_posterior
from vae_lightning.models import VAE
from vae_lightning.objectives import ELBO, IWAE, MIWAE, PIWAE, STL, DReG, ObjectiveRecipe, log_mean_exp
from vae_lightning.objectives.importance import log_posterior, through_samples, with_gradient
from vae_lightning.trace import Latent, Trace

X = torch.randn(6, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
REPEATS = 3000


def phi_gradients(make: ObjectiveRecipe, repeats: int, model: VAE | None = None) -> Tensor:
    """Return d loss / d (features of q(z|x)) for many draws of the noise at each of 6 examples: [R, 6, 4]."""
    model, objective = model or linear_gaussian(make), make()
    features: list[Tensor] = []
    hook = model.encoder.register_forward_hook(lambda *call: features.append(call[-1]))
    torch.manual_seed(0)
    trace = model.trace({"x": X.repeat(repeats, 1, 1, 1)}, objective.num_samples)
    hook.remove()
    (slopes,) = torch.autograd.grad(objective(trace, 0)["loss"].sum(), features)
    return slopes.view(repeats, 6, 4)


def theta_gradient(make: ObjectiveRecipe) -> Tensor:
    """Return d loss / d (decoder's parameters)."""
    model, objective = linear_gaussian(make), make()
    torch.manual_seed(0)
    loss = objective(model.trace({"x": X}, objective.num_samples), 0)["loss"].mean()
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(loss, list(model.decoder.parameters()))])


def same_mean(one: Tensor, other: Tensor) -> bool:
    """Assert that the means agree within 4.5 standard errors in every entry."""
    error = ((one.var(0) + other.var(0)) / len(one)).sqrt()
    return bool(((one.mean(0) - other.mean(0)).abs() < 4.5 * error).all())


@pytest.mark.parametrize(
    ("drops", "keeps"),
    [(partial(DReG, num_samples=6), partial(IWAE, num_samples=6)), (STL, ELBO), (partial(DReG, num_samples=1), ELBO)],
)
def test_the_mean_gradient_is_that_of_the_bound(drops: ObjectiveRecipe, keeps: ObjectiveRecipe) -> None:
    """The mean gradient of phi is that of the bound, and is not zero, so the test can fail."""
    one, other = phi_gradients(drops, REPEATS), phi_gradients(keeps, REPEATS)
    assert same_mean(one, other)
    assert not same_mean(one, torch.zeros_like(other))
    assert not same_mean(one, 1.3 * other)


def test_the_score_cannot_be_dropped_from_the_iwae_without_its_mend() -> None:
    """STL's method would bias the IWAE. These draws suffice to distinguish a weight v from v^2."""

    class Biased(IWAE):
        def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
            log_q = log_posterior(trace)
            log_w = trace.log_weight() + log_q - with_gradient(log_q, through_samples(log_q, trace))
            return {"loss": -log_mean_exp(log_w)}

    biased = phi_gradients(partial(Biased, num_samples=6), REPEATS, linear_gaussian(IWAE))
    assert not same_mean(biased, phi_gradients(partial(IWAE, num_samples=6), REPEATS))


def test_dreg_has_less_variance_than_iwae() -> None:
    """There is far less noise if q is near the posterior: the score's noise remains, the path's goes to zero."""
    model = linear_gaussian(IWAE)
    set_exact_posterior(model)
    with torch.no_grad():
        list(model.encoder.parameters())[-1].add_(0.1)
    dreg, iwae = (phi_gradients(partial(cls, num_samples=8), 500, model).var(0).sum() for cls in (DReG, IWAE))
    assert dreg < iwae / 5


@pytest.mark.parametrize("make", [STL, partial(STL, num_samples=3), partial(DReG, num_samples=3)])
def test_no_noise_at_the_exact_posterior(make: ObjectiveRecipe) -> None:
    """If q(z|x) = p(z|x), log w is equal for every z, so a path has no slope; the ELBO's noise is the score's."""
    model = linear_gaussian(ELBO)
    set_exact_posterior(model)
    assert phi_gradients(make, 5, model).abs().max() < 1e-5  # sigma is float32
    assert phi_gradients(ELBO, 5, model).abs().max() > 1e-2


@pytest.mark.parametrize("make", [DReG, PIWAE])
def test_theta_is_trained_by_the_iwae(make: type[IWAE] | type[PIWAE]) -> None:
    """The decoder's gradient equals the IWAE's on the same noise, to rounding."""
    k = make().num_samples
    torch.testing.assert_close(theta_gradient(make), theta_gradient(partial(IWAE, num_samples=k)))


def test_a_small_weight_does_not_end_a_slope_in_half_precision() -> None:
    """The gradient scales by 1e-9 to float16's rounding. A weight applied within the network would underflow to 0."""
    gradients = []
    for half, weight in ((False, 1.0), (True, 1e-9)):
        torch.manual_seed(1)
        model = VAE((1, 4, 4), 2)
        with torch.autocast("cpu", torch.float16, enabled=half):
            trace = model.trace({"x": torch.ones(4, 1, 4, 4)}, 3)
        zero = through_samples(trace.log_likelihood(), trace, torch.full((3, 4), weight))
        slopes = torch.autograd.grad(zero.sum() / weight, list(model.encoder.parameters()))
        gradients.append(torch.cat([slope.flatten() for slope in slopes]))
    assert (gradients[1] - gradients[0]).norm() < 0.01 * gradients[0].norm()


@pytest.mark.parametrize(("m", "k"), [(1, 6), (2, 3), (6, 1)])
def test_piwae_trains_phi_by_the_miwae_and_theta_by_the_iwae(m: int, k: int) -> None:
    """Each network's gradient is equal on the same noise, to rounding.

    With several bounds the two objectives differ.
    """
    piwae, miwae = (partial(cls, num_bounds=m, samples_per_bound=k) for cls in (PIWAE, MIWAE))
    iwae = partial(IWAE, num_samples=m * k)
    torch.testing.assert_close(phi_gradients(piwae, 2), phi_gradients(miwae, 2))
    torch.testing.assert_close(theta_gradient(piwae), theta_gradient(iwae))
    if m > 1:
        assert (phi_gradients(piwae, 2) - phi_gradients(iwae, 2)).abs().max() > 1e-3
        assert (theta_gradient(piwae) - theta_gradient(miwae)).abs().max() > 1e-3


def chain(a: Tensor, b: Tensor, c: Tensor, z: tuple[Tensor, Tensor, Tensor]) -> list[Distribution]:
    """q(z1) q(z2|z1) q(z3|z1, z2), with parameters wherever an earlier sample can enter."""
    qs = [Normal(a, a.exp()), Normal(b * z[0] + a, (0.3 * b).exp()), Normal(c * z[0] * z[1], (c * z[1]).exp())]
    return [Independent(q, 1) for q in qs]


@pytest.mark.parametrize("order", ["123", "321", "213"])
def test_paths_in_a_hierarchy(order: str) -> None:
    """Compared with the definition: log q with detached parameters and live samples, at three dependent levels.

    The order of latents in the trace does not matter.
    """
    parameters = [torch.randn(5, 2, dtype=torch.float64).requires_grad_() for _ in range(3)]
    a, b, c = parameters
    noise = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    z1 = a + a.exp() * noise[0]
    z2 = b * z1 + a + (0.3 * b).exp() * noise[1]
    z3 = c * z1 * z2 + (c * z2).exp() * noise[2]
    p = Independent(Normal(torch.zeros(2).double(), 1.0), 1)
    qs = chain(a, b, c, (z1, z2, z3))
    drawn = {name: Latent(z, q, p) for name, z, q in zip("123", (z1, z2, z3), qs, strict=True)}
    latents = {name: drawn[name] for name in order}
    trace = Trace(torch.zeros(5, 1), Independent(Normal(torch.zeros(4, 5, 1), 1.0), 1), latents)
    weight = torch.rand(4, 5, dtype=torch.float64)
    found = torch.autograd.grad(
        through_samples(log_posterior(trace), trace, weight).sum(), parameters, retain_graph=True
    )
    fixed = chain(a.detach(), b.detach(), c.detach(), (z1, z2, z3))
    log_q = sum(q.log_prob(z) for q, z in zip(fixed, (z1, z2, z3), strict=True))
    torch.testing.assert_close(found, torch.autograd.grad((weight * log_q).sum(), parameters))


def full_covariance(loc: Tensor, raw: Tensor) -> Distribution:
    lower = torch.diag_embed(raw.exp()) + torch.ones(2, 2).double().tril(-1) * raw[:, :1, None]
    return MultivariateNormal(loc, scale_tril=lower)


def flow_that_remembers(loc: Tensor, raw: Tensor) -> Distribution:
    steps = [AffineTransform(loc, raw.exp(), event_dim=1, cache_size=1), TanhTransform(cache_size=1)]
    return TransformedDistribution(Independent(Normal(0 * loc, 1.0), 1), steps)


@pytest.mark.parametrize("family", [full_covariance, flow_that_remembers])
def test_paths_of_other_families(family) -> None:  # type: ignore[no-untyped-def]
    """A full covariance, and a flow whose stored density of its own sample has no slope in z."""
    loc, raw = (torch.randn(5, 2, dtype=torch.float64).mul(0.3).requires_grad_() for _ in range(2))
    q = family(loc, raw)
    z = q.rsample((4,))
    trace = Trace(torch.zeros(5, 1), Normal(torch.zeros(4, 5), 1.0), {"z": Latent(z, q, q)})
    found = torch.autograd.grad(through_samples(log_posterior(trace), trace).sum(), (loc, raw), retain_graph=True)
    fixed = family(loc.detach(), raw.detach())
    torch.testing.assert_close(found, torch.autograd.grad(fixed.log_prob(z).sum(), (loc, raw)))


def test_a_large_likelihood_takes_no_digits_from_the_kl() -> None:
    """In float32, adding and subtracting a log p(x|z) of -3e7 nats would round log p(z) to a multiple of 2."""
    q, p = Independent(Normal(torch.ones(6, 2), 0.5), 1), Independent(Normal(torch.zeros(2), 1.0), 1)
    x = torch.full((6, 4), 4e3)
    trace = Trace(x, Independent(Normal(torch.zeros(1, 6, 4), 1.0), 1), {"z": Latent(q.rsample((1,)), q, p)})
    terms = STL(beta=1e8)(trace, 0)
    kl = (terms["loss"] + terms["log_likelihood"]) / 1e8
    torch.testing.assert_close(kl, trace.latents["z"].log_ratio()[0], rtol=0, atol=0.01)
