"""Laws of objectives. To add an objective: one row in OBJECTIVES."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, StudentT

from tests.models.linear_gaussian import IMAGE_SHAPE, exact_log_p, linear_gaussian, set_exact_posterior
from vae_lightning import objectives
from vae_lightning.distributions import Family, RealNVP
from vae_lightning.objectives import (
    CIWAE,
    ELBO,
    GECO,
    IMQ,
    IWAE,
    MIWAE,
    PIWAE,
    RBF,
    STL,
    BetaTC,
    Capacity,
    Constant,
    Cyclic,
    DReG,
    FreeBits,
    InfoVAE,
    LinearWarmup,
    Objective,
    Schedule,
    log_mean_exp,
)
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import UserError

COMMON = {"loss", "elbo", "log_likelihood", "kl", "kl/z"}


@dataclass(frozen=True)
class Row:
    """An objective, whether minus its loss is a lower bound of log p(x), and whether its examples interact."""

    make: Callable[[], Objective]
    bound: bool = True
    meet: bool = False
    adds: frozenset[str] = frozenset()


def _row(make: Callable[[], Objective], *adds: str, bound: bool = True, meet: bool = False) -> Row:
    return Row(make, bound, meet, frozenset(adds))


TC_TERMS = ("index_code_mi", "total_correlation", "dimensionwise_kl")
OBJECTIVES: dict[str, Row] = {
    "ELBO": _row(ELBO),
    "ELBO, 4 samples": _row(partial(ELBO, num_samples=4)),
    "ELBO, beta 4": _row(partial(ELBO, beta=4.0)),
    "ELBO, warm-up": _row(partial(ELBO, beta=LinearWarmup(num_steps=10)), bound=False),
    "STL": _row(STL),
    "STL, beta 2, 3 samples": _row(partial(STL, beta=2.0, num_samples=3)),
    "IWAE": _row(partial(IWAE, num_samples=5), "iwae"),
    "DReG": _row(partial(DReG, num_samples=5), "iwae"),
    "MIWAE": _row(partial(MIWAE, num_bounds=2, samples_per_bound=3), "miwae"),
    "PIWAE": _row(partial(PIWAE, num_bounds=2, samples_per_bound=3), "iwae", "miwae"),
    "CIWAE": _row(partial(CIWAE, beta=0.3, num_samples=4), "iwae"),
    "FreeBits": _row(FreeBits, "kl_charged", meet=True),
    "FreeBits, by dimension": _row(partial(FreeBits, floor=0.2, per_dimension=True), "kl_charged", meet=True),
    "Capacity": _row(partial(Capacity, capacity=LinearWarmup(10, end=2.0)), bound=False, meet=True),
    "GECO": _row(partial(GECO, goal=-6.0), bound=False),
    "BetaTC": _row(partial(BetaTC, dataset_size=6), *TC_TERMS, meet=True),  # the batch is the data set
    "InfoVAE": _row(partial(InfoVAE, mmd_weight=1.0, kl_weight=1.0), "mmd", meet=True),
    "InfoVAE, as WAE": _row(partial(InfoVAE, kernel=RBF), "mmd", bound=False, meet=True),
}
ROWS = pytest.mark.parametrize("name", OBJECTIVES)
X = torch.randn(6, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_every_objective_has_a_row() -> None:
    exported = {cls for cls in vars(objectives).values() if isinstance(cls, type) and issubclass(cls, Objective)}
    assert exported - {Objective} == {type(row.make()) for row in OBJECTIVES.values()}


@pytest.mark.parametrize("make", [FreeBits, Capacity, partial(BetaTC, dataset_size=6), InfoVAE])
def test_what_weighs_latents_refuses_a_model_without_any(make: Callable[[], Objective]) -> None:
    p_x = Independent(Normal(torch.zeros(1, 6, 2), 1.0), 1)
    with pytest.raises(UserError, match="the model has no latents; choose ELBO"):
        make()(Trace(torch.zeros(6, 2), p_x), 0)


def bound(make: Callable[[], Objective], repeats: int, name: str, meet: bool = False) -> Tensor:
    """Average a term over many draws of the noise: [6]. If examples do not interact, one large batch is used."""
    model = linear_gaussian(make)
    torch.manual_seed(0)
    batches = [X] * repeats if meet else [X.repeat(repeats, 1, 1, 1)]
    with torch.no_grad():
        traces = (model.trace({"x": x}, model.objective.num_samples) for x in batches)
        return torch.cat([model.objective(trace, 100)[name] for trace in traces]).view(-1, 6).mean(0)


@ROWS
def test_terms(name: str) -> None:
    """The common terms and the objective's own have one number per example; elbo = log_likelihood - kl always."""
    model = linear_gaussian(OBJECTIVES[name].make)
    trace = model.trace({"x": X}, model.objective.num_samples)
    terms = model.objective(trace, 3)
    assert terms.keys() == COMMON | OBJECTIVES[name].adds
    assert {tuple(term.shape) for term in terms.values()} == {(6,)}
    torch.testing.assert_close(terms["elbo"], terms["log_likelihood"] - terms["kl"])
    torch.testing.assert_close(terms["kl"], terms["kl/z"])
    torch.testing.assert_close(terms["kl"], trace.latents["z"].kl())
    torch.testing.assert_close(terms["log_likelihood"], trace.log_likelihood().mean(0))
    assert (terms["kl"] >= 0).all()


@ROWS
def test_gradient_reaches_every_parameter(name: str) -> None:
    model = linear_gaussian(OBJECTIVES[name].make)
    model.objective(model.trace({"x": X}, model.objective.num_samples), 3)["loss"].mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


@ROWS
def test_the_same_numbers_without_gradients(name: str) -> None:
    """Validation runs in inference mode, in which an objective cannot take the gradients that it takes in training."""
    model = linear_gaussian(OBJECTIVES[name].make).eval()
    model.objective.num_samples = max(model.objective.num_samples, 1)
    torch.manual_seed(0)
    with_gradients = model.objective(model.trace({"x": X}, model.objective.num_samples), 3)
    torch.manual_seed(0)
    with torch.inference_mode():
        without = model.objective(model.trace({"x": X}, model.objective.num_samples), 3)
    torch.testing.assert_close(without, {key: term.detach() for key, term in with_gradients.items()})


@pytest.mark.filterwarnings("ignore")  # the compiler's warnings
@ROWS
def test_one_compiled_graph_has_the_same_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At steps with different scheduled weights. Objectives that fail here must set `in_one_graph = False`."""
    monkeypatch.setattr(Family, "validate_args", False)  # the default outside of tests
    monkeypatch.setattr(Distribution, "_validate_args", False)
    model = linear_gaussian(OBJECTIVES[name].make)
    if not model.objective.in_one_graph:
        pytest.skip(f"{name} says that it has another gradient in one graph; its networks are compiled alone")
    monkeypatch.setattr(model, "_check_once", id)  # the check asks a Trainer for the stage
    torch._dynamo.reset()
    compiled = torch.compile(model.loss_and_terms, backend="aot_eager", fullgraph=True)
    for step in (0, 3, 4):
        found = []
        for function in (model.loss_and_terms, compiled):
            torch.manual_seed(step)
            loss, terms, _ = function({"x": X}, step)
            slopes = torch.autograd.grad(loss, list(model.parameters()))
            found.append([loss, *slopes, *terms.values()])
        torch.testing.assert_close(found[1], found[0])


def test_what_has_another_gradient_in_one_graph() -> None:
    """These objectives ask autograd for a slope, or change their multiplier."""
    alone = {name.split(",")[0] for name, row in OBJECTIVES.items() if not row.make().in_one_graph}
    assert alone == {"STL", "DReG", "PIWAE", "GECO"}


@ROWS
def test_a_batch_of_one(name: str) -> None:
    """The last batch of an evaluation may have one image."""
    model = linear_gaussian(OBJECTIVES[name].make)
    for term in model.objective(model.trace({"x": X[:1]}, model.objective.num_samples), 3).values():
        assert term.shape == (1,)
        assert torch.isfinite(term).all()


@ROWS
def test_examples_do_not_meet(name: str) -> None:
    """Given the noise, the terms of an example do not depend on its batch, unless the row says so."""
    model = linear_gaussian(OBJECTIVES[name].make)
    trace = model.trace({"x": X}, model.objective.num_samples)
    one = trace.latents["z"]
    part = Latent(one.z[:, 4:], model.posterior(model.encoder(X[4:])), one.p)
    p_x = model.likelihood(model.decoder(part.z))
    model.eval()
    terms, alone = model.objective(trace, 3), model.objective(Trace(X[4:], p_x, {"z": part}), 3)
    for key in COMMON - ({"loss"} if OBJECTIVES[name].meet else set()):
        torch.testing.assert_close(alone[key], terms[key][4:])


@ROWS
def test_a_lower_bound_of_log_p(name: str) -> None:
    """-E[loss] <= log p(x) if the objective promises this: per example, or on average if examples interact."""
    row = OBJECTIVES[name]
    if not row.bound:
        pytest.skip("this objective is no bound, and its docstring says so")
    gap = exact_log_p(linear_gaussian(ELBO), X) + bound(row.make, 400 if row.meet else 1500, "loss", row.meet)
    assert ((gap.mean() if row.meet else gap) > -0.06).all()


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


SAME = {  # pairs of objectives that are equal for equal noise
    "IWAE, K 1 = ELBO, KL sampled": (partial(IWAE, num_samples=1), lambda trace: trace.log_weight()[0]),
    "STL = ELBO, KL sampled": (partial(STL, num_samples=4), lambda trace: trace.log_weight().mean(0)),
    "DReG = IWAE": (partial(DReG, num_samples=4), lambda trace: -IWAE(4)(trace, 0)["loss"]),
    "MIWAE(M, 1) = ELBO, KL sampled": (
        partial(MIWAE, num_bounds=4, samples_per_bound=1),
        lambda trace: trace.log_weight().mean(0),
    ),
    "MIWAE(1, K) = IWAE": (partial(MIWAE, num_bounds=1, samples_per_bound=4), lambda trace: -IWAE(4)(trace, 0)["loss"]),
    "PIWAE = IWAE of all samples": (
        partial(PIWAE, num_bounds=2, samples_per_bound=2),
        lambda trace: -IWAE(4)(trace, 0)["loss"],
    ),
    "CIWAE, beta 0 = IWAE": (partial(CIWAE, beta=0.0, num_samples=4), lambda trace: -IWAE(4)(trace, 0)["loss"]),
    "CIWAE, beta 1 = ELBO": (
        partial(CIWAE, beta=1.0, num_samples=4),
        lambda trace: -ELBO(num_samples=4)(trace, 0)["loss"],
    ),
    "FreeBits, none free = ELBO": (partial(FreeBits, floor=0.0), lambda trace: -ELBO()(trace, 0)["loss"]),
    "InfoVAE, no MMD = ELBO": (
        partial(InfoVAE, mmd_weight=0.0, kl_weight=1.0),
        lambda trace: -ELBO()(trace, 0)["loss"],
    ),
    "BetaTC, all 1 = ELBO, KL sampled": (
        partial(BetaTC, dataset_size=6, beta=1.0),
        lambda trace: trace.log_weight()[0],
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_equalities(name: str) -> None:
    make, other = SAME[name]
    model = linear_gaussian(make)
    trace = model.trace({"x": X}, model.objective.num_samples)
    torch.testing.assert_close(-model.objective(trace, 0)["loss"], other(trace))


def test_the_bounds_of_k_samples_are_ordered() -> None:
    """ELBO <= CIWAE <= IWAE_8 and MIWAE(2, 4) <= IWAE_8, averaged over noise."""
    elbo = bound(ELBO, 1500, "elbo").mean()
    miwae = bound(partial(MIWAE, num_bounds=2, samples_per_bound=4), 1500, "miwae").mean()
    ciwae = -bound(partial(CIWAE, beta=0.5, num_samples=8), 1500, "loss").mean()
    iwae = bound(partial(IWAE, num_samples=8), 1500, "iwae").mean()
    assert elbo < miwae < iwae
    assert elbo < ciwae < iwae


def two_latents() -> Trace:
    """Latents as in a hierarchy: q and p of the second depend on a sample of the first."""
    unit = torch.ones(3, 6, 2, dtype=torch.float64)
    q_a = Independent(Normal(0.3 * unit[0], 0.5 * unit[0]), 1)
    a = q_a.rsample((3,))
    q_b, p_b = Independent(Normal(a + 1, 0.7 * unit), 1), Independent(Normal(-a, unit), 1)
    b = q_b.rsample()
    p_x = Independent(Normal((a + b).mean(-1)[..., None, None, None].expand(3, *X.shape), 1.0), 3)
    return Trace(
        X, p_x, {"a": Latent(a, q_a, Independent(Normal(0 * unit[0, 0], unit[0, 0]), 1)), "b": Latent(b, q_b, p_b)}
    )


HIERARCHIES: dict[str, Callable[[], Objective]] = {
    **{"ELBO": partial(ELBO, 1.0, 3), "IWAE": partial(IWAE, 3), "STL": partial(STL, 1.0, 3), "DReG": partial(DReG, 3)},
    **{"MIWAE": partial(MIWAE, 1, 3), "PIWAE": partial(PIWAE, 3, 1), "CIWAE": partial(CIWAE, 0.5, 3)},
    **{"FreeBits": FreeBits, "FreeBits, by dimension": partial(FreeBits, per_dimension=True)},
    **{"Capacity": Capacity, "GECO": partial(GECO, 0.0)},
}


@pytest.mark.parametrize("name", HIERARCHIES)
def test_a_hierarchy_has_every_term(name: str) -> None:
    terms = HIERARCHIES[name]()(two_latents(), 0)
    assert {"kl/a", "kl/b"} <= terms.keys()
    assert {tuple(term.shape) for term in terms.values()} == {(6,)}
    torch.testing.assert_close(terms["kl"], terms["kl/a"] + terms["kl/b"])


@pytest.mark.parametrize("objective", [BetaTC(100), InfoVAE()])
def test_what_a_hierarchy_does_not_have_is_said_in_one_line(objective: Objective) -> None:
    with pytest.raises(UserError, match="latent b depends on another latent's sample") as error:
        objective(two_latents(), 0)
    assert "\n" not in str(error.value)


def test_beta_weighs_the_kl_alone() -> None:
    model = linear_gaussian(partial(ELBO, beta=3.0))
    terms = model.objective(model.trace({"x": X}), 0)
    torch.testing.assert_close(terms["loss"], 3 * terms["kl"] - terms["log_likelihood"])
    assert model.objective.coefficients(0) == {"beta": 3.0}


SCHEDULED: dict[str, tuple[Callable[..., Objective], str]] = {
    "ELBO": (ELBO, "beta"),
    "STL": (STL, "beta"),
    "BetaTC": (partial(BetaTC, 6), "beta"),
    "Capacity": (Capacity, "capacity"),
}


@pytest.mark.parametrize("name", SCHEDULED)
@pytest.mark.parametrize(("step", "value"), [(0, 0.0), (3, 0.3), (10, 1.0), (99, 1.0)])
def test_a_loss_within_a_schedule_is_that_of_the_number_at_its_step(name: str, step: int, value: float) -> None:
    """The logged weight of the loss is equal too."""
    make, setting = SCHEDULED[name]
    model = linear_gaussian(ELBO)
    trace = model.trace({"x": X})
    scheduled, constant = make(**{setting: LinearWarmup(10)}), make(**{setting: value})
    torch.testing.assert_close(scheduled(trace, step)["loss"], constant(trace, step)["loss"])
    assert scheduled.coefficients(step) == pytest.approx(constant.coefficients(step))


@pytest.mark.parametrize(
    ("objective", "untrained"),
    [
        (ELBO(beta=0.0), ["a", "b"]),
        (STL(beta=0), ["a", "b"]),
        (ELBO(beta=0.0, betas={"a": 1.0}), ["b"]),
        (ELBO(betas={"b": 0.0}), ["b"]),
        (ELBO(beta=0.5), []),
        (ELBO(beta=LinearWarmup(10)), []),  # 0 at the first step alone
        (CIWAE(beta=0.0), []),  # the IWAE
    ],
    ids=str,
)
def test_which_kl_has_no_say_in_the_loss(objective: Objective, untrained: list[str]) -> None:
    assert objective.untrained_kl(["a", "b"]) == untrained


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
    assert schedule.lowest == min(schedule(step) for step in range(20))


FALLS = [LinearWarmup(4, start=1.0, end=-1.0), Cyclic(4, start=0.0, end=-1.0), Constant(-1.0)]


@pytest.mark.parametrize("schedule", FALLS)
def test_a_schedule_that_is_negative_at_any_step_is_refused(schedule: Schedule) -> None:
    for make in (ELBO, STL, partial(BetaTC, 100), Capacity):
        name = "capacity" if make is Capacity else "beta"
        with pytest.raises(UserError, match=f": {name} is -1.0; it must be at least 0") as error:
            make(**{name: schedule})
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "make",
    [
        *[partial(cls, num_samples=0) for cls in (ELBO, STL, IWAE, DReG, CIWAE, FreeBits, Capacity, InfoVAE)],
        *[partial(cls, num_samples=0) for cls in (partial(GECO, 0.0), partial(BetaTC, 100))],
        *[partial(cls, 0, 5) for cls in (MIWAE, PIWAE)],
        *[partial(cls, 5, 0) for cls in (MIWAE, PIWAE)],
        *[partial(CIWAE, beta) for beta in (-0.1, 1.1, float("nan"))],
        *[partial(cls, beta=-1.0) for cls in (ELBO, STL, partial(BetaTC, 100))],
        partial(FreeBits, -0.1),
        partial(Capacity, -1.0),
        partial(Capacity, gamma=-1.0),
        partial(GECO, 0.0, rate=-0.1),
        partial(GECO, 0.0, smoothing=1.0),
        partial(BetaTC, 0),
        partial(BetaTC, 100, alpha=-1.0),
        partial(InfoVAE, mmd_weight=-1.0),
        partial(InfoVAE, kl_weight=-1.0),
        partial(RBF, 0.0),
        partial(IMQ, ()),
        partial(IMQ, (1.0, 0.0)),
        partial(LinearWarmup, 0),
        partial(Cyclic, 0),
        partial(Cyclic, 4, rise=0.0),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)


def latent(q: Distribution, p: Distribution) -> Latent:
    return Latent(q.sample((1,)), q, p)


def test_a_posterior_without_the_property_needed_is_refused_in_one_line() -> None:
    """A full covariance has no KL by dimension and no total correlation, because its dimensions are dependent."""
    full = torch.distributions.MultivariateNormal(torch.zeros(6, 2), torch.eye(2))
    one = latent(full, Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
    trace = Trace(torch.zeros(6, 1), Independent(Normal(torch.zeros(1, 6, 1), 1.0), 1), {"z": one})
    for objective in (FreeBits(per_dimension=True), BetaTC(100)):
        with pytest.raises(UserError, match=r"independent dimensions.*MultivariateNormal") as error:
            objective(trace, 0)
        assert "\n" not in str(error.value)
    assert FreeBits()(trace, 0)["loss"].shape == (6,)


def test_a_flow_is_not_called_by_the_name_of_what_it_starts_from() -> None:
    family = RealNVP((2,), num_steps=1, hidden_sizes=(4,))
    q = family(torch.zeros(6, *family.param_shape))
    trace = Trace(torch.zeros(6, 1), Independent(Normal(torch.zeros(1, 6, 1), 1.0), 1), {"z": latent(q, q)})
    with pytest.raises(UserError, match="that of latent z is RealNVP"):
        BetaTC(100)(trace, 0)


def test_heavy_tails_need_no_closed_form() -> None:
    """With a Student-t posterior the KL is sampled, in total and by dimension. The groups are the same dimensions."""
    q = Independent(StudentT(torch.full((6, 2), 5.0).double()), 1)
    one = latent(q, Independent(Normal(torch.zeros(2).double(), 1.0), 1))
    trace = Trace(X, Independent(Normal(X.expand(1, *X.shape), 1.0), 3), {"z": one})
    torch.testing.assert_close(trace.kl_by_dimension()["z"].sum(-1), trace.kl()["z"])
