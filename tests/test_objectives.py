"""Laws of objectives. To add an objective: one row in OBJECTIVES."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from tests.models.linear_gaussian import IMAGE_SHAPE, exact_log_p, linear_gaussian, set_exact_posterior
from vae_lightning.objectives import ELBO, IWAE, Constant, Cyclic, LinearWarmup, Objective, Schedule, log_mean_exp
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import UserError

# recipe, and the sign of its loss: whether minus the loss is a lower bound of log p(x)
OBJECTIVES: dict[str, tuple[Callable[[], Objective], bool]] = {
    "ELBO": (ELBO, True),
    "ELBO, 4 samples": (partial(ELBO, num_samples=4), True),
    "ELBO, beta 4": (partial(ELBO, beta=4.0), True),
    "ELBO, warm-up": (partial(ELBO, beta=LinearWarmup(num_steps=10)), False),
    "IWAE": (partial(IWAE, num_samples=5), True),
}
ROWS = pytest.mark.parametrize("name", OBJECTIVES)
X = torch.randn(6, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def bound(objective: Callable[[], Objective], repeats: int, name: str) -> torch.Tensor:
    """The average of a term over many draws of the noise: [6]."""
    model = linear_gaussian(objective)
    torch.manual_seed(0)
    with torch.no_grad():
        trace = lambda: model.trace({"x": X}, model.objective.num_samples)  # noqa: E731
        return torch.stack([model.objective(trace(), 100)[name] for _ in range(repeats)]).mean(0)


@ROWS
def test_terms(name: str) -> None:
    """The common terms, one number per example; elbo = log_likelihood - kl; kl is the sum over latents and >= 0."""
    model = linear_gaussian(OBJECTIVES[name][0])
    terms = model.objective(model.trace({"x": X}, model.objective.num_samples), 3)
    assert {"loss", "elbo", "log_likelihood", "kl", "kl/z"} <= terms.keys()
    assert {tuple(term.shape) for term in terms.values()} == {(6,)}
    torch.testing.assert_close(terms["elbo"], terms["log_likelihood"] - terms["kl"])
    torch.testing.assert_close(terms["kl"], terms["kl/z"])
    assert (terms["kl"] >= 0).all()


@ROWS
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = linear_gaussian(OBJECTIVES[name][0])
    model.objective(model.trace({"x": X}, model.objective.num_samples), 3)["loss"].mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


@ROWS
def test_examples_do_not_meet(name: str) -> None:
    """The terms of an example do not depend on the batch it is in, given its noise."""
    model = linear_gaussian(OBJECTIVES[name][0])
    trace = model.trace({"x": X}, model.objective.num_samples)
    one = trace.latents["z"]
    part = Latent(one.z[:, 4:], model.posterior(model.encoder(X[4:])), one.p)
    p_x = model.likelihood(model.decoder(part.z))
    terms, alone = model.objective(trace, 3), model.objective(Trace(X[4:], p_x, {"z": part}), 3)
    for key, term in terms.items():
        torch.testing.assert_close(alone[key], term[4:])


@ROWS
def test_a_lower_bound_of_log_p(name: str) -> None:
    """-E[loss] <= log p(x), where the objective says so (and with beta below 1 it is not one)."""
    recipe, is_bound = OBJECTIVES[name]
    if not is_bound:
        pytest.skip("beta below 1 bounds nothing; its schedule has a test of its own")
    gap = exact_log_p(linear_gaussian(ELBO), X) + bound(recipe, 1500, "loss")
    assert (gap > -0.05).all()


def test_bounds_grow_with_k_and_the_gap_closes() -> None:
    """ELBO <= IWAE_2 <= IWAE_8 <= IWAE_64 <= log p(x), and the last gap is a small part of the first."""
    exact = exact_log_p(linear_gaussian(ELBO), X).mean()
    bounds = [bound(ELBO, 2000, "elbo").mean()]
    bounds += [bound(partial(IWAE, num_samples=k), 6000 // k, "iwae").mean() for k in (2, 8, 64)]
    gaps = [(exact - value).item() for value in bounds]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] > -0.02
    assert gaps[-1] < gaps[0] / 4


def test_the_gap_is_zero_at_the_exact_posterior() -> None:
    """q(z|x) = p(z|x): every single weight is p(x), so the sampled bound is log p(x) to rounding."""
    model = linear_gaussian(ELBO)
    set_exact_posterior(model)
    log_w = model.trace({"x": X}, 3).log_weight()  # [3, 6]
    torch.testing.assert_close(log_w, exact_log_p(model, X).expand(3, -1), rtol=0, atol=1e-6)  # sigma is float32


def test_iwae_with_one_sample_is_the_sampled_elbo() -> None:
    """K = 1: log w = log p(x|z) - (log q(z|x) - log p(z)), on the same noise."""
    model = linear_gaussian(partial(IWAE, num_samples=1))
    trace = model.trace({"x": X}, 1)
    sampled_elbo = trace.log_likelihood()[0] - trace.latents["z"].log_ratio()[0]
    torch.testing.assert_close(model.objective(trace, 0)["iwae"], sampled_elbo)


def test_beta_weighs_the_kl_alone() -> None:
    model = linear_gaussian(partial(ELBO, beta=3.0))
    terms = model.objective(model.trace({"x": X}), 0)
    torch.testing.assert_close(terms["loss"], 3 * terms["kl"] - terms["log_likelihood"])
    assert model.objective.coefficients(0) == {"beta": 3.0}


def test_log_mean_exp_does_not_overflow() -> None:
    log_w = torch.tensor([[1000.0], [1000.0], [-1000.0]])
    assert log_mean_exp(log_w).item() == pytest.approx(1000 + torch.log(torch.tensor(2 / 3)).item())


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Constant(0.3), {0: 0.3, 10**6: 0.3}),
        (LinearWarmup(10), {0: 0.0, 5: 0.5, 10: 1.0, 99: 1.0}),
        (LinearWarmup(4, start=2.0, end=1.0), {0: 2.0, 2: 1.5, 8: 1.0}),
        (Cyclic(10), {0: 0.0, 1: 0.2, 5: 1.0, 9: 1.0, 10: 0.0, 12: 0.4}),
        (Cyclic(4, rise=1.0, end=2.0), {0: 0.0, 3: 1.5, 4: 0.0}),
    ],
)
def test_schedules(schedule: Schedule, values: dict[int, float]) -> None:
    assert {step: schedule(step) for step in values} == pytest.approx(values)


@pytest.mark.parametrize(
    "make",
    [
        partial(IWAE, num_samples=0),
        partial(ELBO, num_samples=0),
        partial(LinearWarmup, 0),
        partial(Cyclic, 0),
        partial(Cyclic, 4, rise=0.0),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        make()
