"""A trace that enumerates a discrete variable: against closed forms, brute force and sampling.

The model of most tests is AIR's in small: n ~ p(n) on 0 .. N, z_i ~ N(0, 1) for i <= n, x ~ N(sum of z_i, 0.7^2).
q(n|z) is a chain of continuations c_i, and c_2 and the mean of z_2 depend on z_1.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Distribution,
    Independent,
    LogNormal,
    Normal,
    OneHotCategorical,
    kl_divergence,
)
from torch.nn import functional as F

from vae_lightning.metrics.evaluator import mean_draws
from vae_lightning.models.codes import posterior_codes
from vae_lightning.models.trace_checks import check_trace
from vae_lightning.objectives import (
    ELBO,
    IWAE,
    MIWAE,
    PIWAE,
    STL,
    BetaTC,
    Capacity,
    DReG,
    FreeBits,
    InfoVAE,
    LinearWarmup,
    Objective,
    log_mean_exp,
)
from vae_lightning.trace import Latent, Observed, Trace, point
from vae_lightning.types import Batch, UserError

SIGMA = 0.7
P_N = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
PARAMS = (0.4, -0.3, 0.8, 0.5, 0.9, 0.2, -0.4, 0.7)  # c_1, c_2 (2), z_1 (2), z_2 (3)


def log_p_x(x: Tensor, p_n: Tensor) -> Tensor:
    """logsumexp_n log p(n) + log N(x; 0, n + 0.49)."""
    scale = (torch.arange(len(p_n)) + SIGMA**2).double().sqrt()
    return torch.logsumexp(p_n.log() + Normal(0.0, scale).log_prob(x[:, None]), -1)


def chain(x: Tensor, num_samples: int, params: Tensor, exists_is_a_probability: bool = False) -> Trace:
    """The trace of N = 2 objects with n enumerated: K = 3 S rows."""
    batch, size = x.shape
    assert size == 1
    q1 = Normal(params[3].expand(batch), F.softplus(params[4]).expand(batch))
    z1 = q1.rsample((num_samples,)).repeat_interleave(3, 0)  # [K, B]
    q2 = Normal(params[5] + params[6] * z1, F.softplus(params[7]).expand_as(z1))
    z2 = q2.loc + q2.scale * torch.randn(num_samples, batch, dtype=x.dtype).repeat_interleave(3, 0)
    c1, c2 = params[0].expand_as(z1), params[1] + params[2] * z1
    stop_1, go_1 = F.logsigmoid(-c1), F.logsigmoid(c1)
    log_q_n = torch.stack((stop_1, go_1 + F.logsigmoid(-c2), go_1 + F.logsigmoid(c2)), -1)  # [K, B, 3]
    n = torch.arange(3).repeat(num_samples)[:, None].expand_as(z1)  # [K, B]
    exist_1, exist_2 = (n >= 1).double(), (n >= 2).double()
    p_x = Independent(Normal((exist_1 * z1 + exist_2 * z2)[..., None], SIGMA), 1)
    if exists_is_a_probability:
        exist_1, exist_2 = go_1.exp(), (go_1 + F.logsigmoid(c2)).exp()
    prior = Normal(torch.zeros(batch).double(), 1.0)
    latents = {
        "n": Latent(n, Categorical(logits=log_q_n), Categorical(probs=P_N), enumerated=True),
        "z1": Latent(z1, q1, prior, exists=exist_1),
        "z2": Latent(z2, q2, prior, exists=exist_2),
    }
    log_shares = log_q_n.gather(-1, n[..., None]).squeeze(-1) - math.log(num_samples)
    return Trace(x, p_x, latents, log_shares=log_shares, num_values=3)


def params() -> Tensor:
    return torch.tensor(PARAMS, dtype=torch.float64, requires_grad=True)


def sampled_terms(x: Tensor, num_samples: int, params: Tensor) -> tuple[Tensor, Tensor]:
    """(log p(x, n, z) - log q(n, z), log q(n|z)) with n sampled: the score-function estimate of the same ELBO, [S]."""
    z1 = params[3] + F.softplus(params[4]) * torch.randn(num_samples, dtype=torch.float64)
    z2 = params[5] + params[6] * z1 + F.softplus(params[7]) * torch.randn(num_samples, dtype=torch.float64)
    c1, c2 = params[0].expand_as(z1), params[1] + params[2] * z1
    stop_1, go_1 = F.logsigmoid(-c1), F.logsigmoid(c1)
    log_q_n = torch.stack((stop_1, go_1 + F.logsigmoid(-c2), go_1 + F.logsigmoid(c2)), -1)
    n = Categorical(logits=log_q_n.detach()).sample()
    log_q = log_q_n.gather(-1, n[:, None]).squeeze(-1)
    first, second = n >= 1, n >= 2
    log_w = Normal(first * z1 + second * z2, SIGMA).log_prob(x) + P_N.log()[n] - log_q
    standard = Normal(torch.zeros((), dtype=torch.float64), 1.0)
    ratio_1 = Normal(params[3], F.softplus(params[4])).log_prob(z1) - standard.log_prob(z1)
    ratio_2 = Normal(params[5] + params[6] * z1, F.softplus(params[7])).log_prob(z2) - standard.log_prob(z2)
    return log_w - first * ratio_1 - second * ratio_2, log_q


def test_one_object_with_the_exact_posterior_gives_log_p_of_x_by_every_single_sample() -> None:
    x = torch.tensor([[1.3], [-0.2], [3.0]], dtype=torch.float64)
    p_n = torch.tensor([0.6, 0.4], dtype=torch.float64)
    by_n = p_n.log() + Normal(0.0, torch.tensor([SIGMA, math.hypot(SIGMA, 1)], dtype=torch.float64)).log_prob(
        x
    )  # [B, 2]
    variance = SIGMA**2 / (1 + SIGMA**2)
    q_z = Normal(x[:, 0] / (1 + SIGMA**2), math.sqrt(variance))
    z = q_z.rsample((5,)).repeat_interleave(2, 0)  # [10, B]
    n = torch.arange(2).repeat(5)[:, None].expand_as(z)
    q_n = Categorical(logits=by_n)
    latents = {
        "n": Latent(n, q_n, Categorical(probs=p_n), enumerated=True),
        "z": Latent(z, q_z, Normal(torch.zeros(3).double(), 1.0), p_depends_on_z=True, exists=(n >= 1).double()),
    }
    p_x = Independent(Normal((n * z)[..., None], SIGMA), 1)
    trace = Trace(x, p_x, latents, log_shares=q_n.log_prob(n) - math.log(5), num_values=2)
    exact = by_n.logsumexp(-1)
    terms = ELBO()(trace, 0)
    torch.testing.assert_close(terms["elbo"], exact, atol=1e-9, rtol=0)
    torch.testing.assert_close(trace.log_weight(), exact.expand(5, 3), atol=1e-9, rtol=0)


def test_the_importance_weights_sum_the_count_out() -> None:
    """E[w] = p(x); with a probability in the place of `exists` the estimate is above log p(x), and the ELBO unchanged.

    The ELBO of a trace is the same number then, so that no training curve shows the mistake.
    """
    x = torch.tensor([[1.3]], dtype=torch.float64)
    exact = log_p_x(x[:, 0], P_N).item()
    assert exact == pytest.approx(-1.94898, abs=1e-5)
    estimates, bounds = {}, {}
    for wrong in (False, True):
        torch.manual_seed(0)
        trace = chain(x, 200_000, params().detach(), wrong)
        w = trace.log_weight()[:, 0].exp()
        estimates[wrong] = (w.mean().log().item(), (w.std() / w.mean() / math.sqrt(len(w))).item())
        bounds[wrong] = ELBO()(trace, 0)["elbo"].item()
    assert abs(estimates[False][0] - exact) < 4 * estimates[False][1]
    assert estimates[True][0] - exact > 20 * estimates[True][1] > 0
    assert bounds[True] == pytest.approx(bounds[False], abs=1e-9)
    with pytest.raises(UserError, match="exists has a value between 0 and 1"):
        check_trace("M", {}, trace)


def test_the_bound_and_its_gradient_are_those_of_a_sampled_count() -> None:
    x = torch.tensor([[1.3]], dtype=torch.float64)
    torch.manual_seed(1)
    theta, num_samples, chunks = params(), 40_000, 10
    gradients, bounds, scores, sampled = [], [], [], []
    for _ in range(chunks):
        elbo = ELBO()(chain(x, num_samples, theta), 0)["elbo"].sum()
        bounds.append(elbo.detach())
        gradients.append(torch.autograd.grad(elbo, theta)[0])
        value, log_q = sampled_terms(x[0, 0], num_samples, theta)
        sampled.append(value.mean().detach())
        baseline = value.detach().mean()
        surrogate = (value + (value.detach() - baseline) * log_q).mean()
        scores.append(torch.autograd.grad(surrogate, theta)[0])
    for ours, theirs in ((bounds, sampled), (gradients, scores)):
        a, b = torch.stack(ours), torch.stack(theirs)
        error = torch.sqrt((a.var(0) + b.var(0)) / chunks)
        assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * error + 1e-12).all()


def test_a_sampled_and_a_closed_form_kl_have_one_mean_and_stl_the_same_gradient() -> None:
    """The probability of z_2 depends on z_1 alone, so closed forms and STL are allowed."""
    x = torch.tensor([[1.3]], dtype=torch.float64)
    torch.manual_seed(2)
    theta = params()
    losses: dict[str, list[Tensor]] = {"ELBO": [], "STL": []}
    for _ in range(10):
        for name, objective in (("ELBO", ELBO()), ("STL", STL())):
            loss = objective(chain(x, 20_000, theta), 0)["loss"].sum()
            losses[name].append(torch.cat((loss.detach()[None], torch.autograd.grad(loss, theta)[0])))
    a, b = torch.stack(losses["ELBO"]), torch.stack(losses["STL"])
    assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * torch.sqrt((a.var(0) + b.var(0)) / 10)).all()


def test_miwae_of_an_enumerated_trace_is_the_loop_over_bounds() -> None:
    x = torch.randn(4, 1, dtype=torch.float64)
    trace = chain(x, 6, params())
    log_w = trace.log_weight()  # [6, 4]
    by_hand = torch.stack([log_mean_exp(log_w[3 * m : 3 * m + 3]) for m in range(2)]).mean(0)
    torch.testing.assert_close(MIWAE(num_bounds=2, samples_per_bound=3)(trace, 0)["miwae"], by_hand)
    rows = trace.p_x.log_prob(x) - sum(latent.log_ratio() for latent in trace.latents.values())
    assert trace.log_shares is not None
    for s in range(6):  # sample-major: row 3 s + n
        part = slice(3 * s, 3 * s + 3)
        torch.testing.assert_close(log_w[s], (rows + trace.log_shares)[part].logsumexp(0) + math.log(6))


@pytest.mark.parametrize("logits", [(0.0, 0.0, 0.0), (3.0, -2.0, 0.5), (-9.0, 4.0, 1.0)])
def test_without_a_continuous_latent_iwae_is_exact_for_every_q(logits: tuple[float, ...]) -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    probs = torch.tensor([[0.9, 0.2], [0.5, 0.5], [0.1, 0.7]], dtype=torch.float64)  # [C, D]
    c = torch.arange(3)[:, None].expand(3, 2)
    q = Categorical(logits=torch.tensor(logits).double().expand(2, 3))
    p_x = Independent(Bernoulli(probs[c]), 1)
    trace = Trace(
        x, p_x, {"c": Latent(c, q, Categorical(probs=P_N), enumerated=True)}, log_shares=q.log_prob(c), num_values=3
    )
    exact = torch.logsumexp(P_N.log()[:, None] + Independent(Bernoulli(probs[:, None]), 1).log_prob(x), 0)
    torch.testing.assert_close(IWAE(num_samples=1)(trace, 0)["iwae"], exact)
    assert (ELBO()(trace, 0)["elbo"] <= exact).all()


def test_a_row_of_share_zero_adds_nothing_to_value_or_gradient() -> None:
    """Example 0 has its label: the rows of the other labels have share 0, and are infinite or NaN there."""
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    observed = torch.tensor([[0.0, -math.inf]], dtype=torch.float64).T  # example 0 in rows 0 and 1
    for bad in (math.inf, -math.inf, math.nan):
        log_shares = torch.cat((observed, F.log_softmax(theta, 0)[:, None]), 1)  # [2, B = 2]
        value = torch.stack((theta, torch.stack((torch.tensor(bad).double(), theta[1]))))  # [2, B]
        loc = torch.zeros(2, 2, 1).double()
        loc[1, 0] = bad
        p_x = Independent(Normal(loc, 1.0, validate_args=False), 1, validate_args=False)
        trace = Trace(torch.zeros(2, 1).double(), p_x, log_shares=log_shares, num_values=2)
        assert trace.log_weight().isfinite().all()
        assert ELBO()(trace, 0)["elbo"].isfinite().all()
        mean = trace.mean(value)
        torch.testing.assert_close(mean[0], theta[0])
        (gradient,) = torch.autograd.grad(mean.sum(), theta)
        assert gradient.isfinite().all()


def test_shares_choose_the_row_that_is_shown_and_the_rows_that_are_drawn() -> None:
    shares = torch.tensor([[0.1, 0.6], [0.2, 0.3], [0.7, 0.1]])  # [C, B]
    p_x = Independent(Normal(torch.arange(6.0).view(3, 2, 1), 1.0), 1)
    trace = Trace(torch.zeros(2, 1), p_x, log_shares=shares.log(), num_values=3)
    reconstruction = trace.reconstruction()
    assert reconstruction is not None
    assert reconstruction.tolist() == [[4.0], [1.0]]  # rows 2 and 0
    many = Trace(
        torch.zeros(2, 1),
        Independent(Normal(torch.zeros(30_000, 2, 1), 1.0), 1),
        log_shares=(shares / 10_000).log().repeat(10_000, 1),
        num_values=3,
    )
    rows = torch.arange(3).repeat(10_000)[:, None].expand(-1, 2)  # the value c of each row
    drawn = many.sampled_rows(rows)
    assert drawn.shape == (10_000, 2)
    counts = torch.stack([(drawn == c).double().mean(0) for c in range(3)])
    torch.testing.assert_close(counts, shares.double(), atol=0.02, rtol=0)


def test_what_is_observed_counts_where_it_is_known() -> None:
    """An unknown label of -1 has no density, and neither its value nor its gradient reaches the bound."""
    logits = torch.randn(2, 3, 4, requires_grad=True)  # [K, B, classes]
    label, known = torch.tensor([2, -1, 0]), torch.tensor([True, False, True])
    reward = Observed(torch.randn(3, 1), Independent(Normal(torch.zeros(3, 1), 1.0), 1))
    p_x = Independent(Normal(torch.zeros(2, 3, 5), 1.0), 1)
    trace = Trace(
        torch.zeros(3, 5), p_x, observed={"label": Observed(label, Categorical(logits=logits), known), "reward": reward}
    )
    parts = trace.log_likelihoods()
    assert parts["label"].shape == parts["reward"].shape == (2, 3)
    assert (parts["label"][:, 1] == 0).all()
    expected = logits.log_softmax(-1)[:, [0, 2], [2, 0]]
    torch.testing.assert_close(parts["label"][:, [0, 2]], expected)
    torch.testing.assert_close(trace.log_likelihood(), p_x.log_prob(trace.x) + parts["label"] + parts["reward"])
    terms = ELBO(observed={"label": 2.0})(trace, 0)
    torch.testing.assert_close(terms["loss"], -terms["elbo"] - parts["label"].mean(0))
    torch.testing.assert_close(terms["log_likelihood/label"], parts["label"].mean(0))
    (gradient,) = torch.autograd.grad(trace.log_likelihood().sum(), logits)
    assert (gradient[:, 1] == 0).all()
    torch.testing.assert_close(trace.log_weight(), trace.log_likelihood())


OBJECTIVES: list[Objective] = [ELBO(), IWAE(2), MIWAE(1, 2), STL(num_samples=2), FreeBits(), Capacity()]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda one: type(one).__name__)
def test_costs_are_in_the_loss_of_every_objective_and_in_no_bound(objective: Objective) -> None:
    x = torch.randn(4, 1, dtype=torch.float64)
    torch.manual_seed(3)
    plain = chain(x, 2, params())
    per_row, per_example = torch.rand(6, 4).double(), torch.rand(4).double()
    with_costs = Trace(**{**fields(plain), "costs": {"mask": per_row, "codes": per_example}})
    weighted = Trace(**{**fields(with_costs), "example_weight": torch.tensor([0.0, 1.0, 2.0, 3.0])})
    before, after = objective(plain, 0), objective(with_costs, 0)
    assert plain.log_shares is not None
    expected = (plain.log_shares.exp() * per_row).sum(0) + per_example
    torch.testing.assert_close(after["loss"], before["loss"] + expected)
    torch.testing.assert_close(after["elbo"], before["elbo"])
    torch.testing.assert_close(with_costs.log_weight(), plain.log_weight())
    torch.testing.assert_close(
        objective(weighted, 0)["loss"], after["loss"] * torch.tensor([0.0, 1.0, 2.0, 3.0]).double()
    )
    torch.testing.assert_close(objective(weighted, 0)["elbo"], before["elbo"])


def fields(trace: Trace) -> dict[str, object]:
    return {name: value for name, value in vars(trace).items() if not name.startswith("_")}


def test_a_weight_by_name_replaces_the_weight_for_all() -> None:
    trace = chain(torch.randn(4, 1, dtype=torch.float64), 2, params())
    trace = Trace(**{**fields(trace), "costs": {"mask": torch.ones(4).double()}})
    objective = ELBO(beta=2.0, betas={"z1": LinearWarmup(10, 0.0, 1.0)}, costs={"mask": 0.5})
    kls, terms = trace.kl(), objective(trace, 5)
    expected = 2 * kls["n"] + 0.5 * kls["z1"] + 2 * kls["z2"] - terms["log_likelihood"] + 0.5
    torch.testing.assert_close(terms["loss"], expected)
    assert objective.coefficients(5) == {"beta": 2.0, "beta/z1": 0.5}


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (ELBO(costs={"masks": 1.0}), "ELBO: costs names masks; the model's trace has mask"),
        (ELBO(betas={"z_1": 1.0}), "ELBO: betas names z_1; the model's trace has n, z1, z2"),
        (ELBO(observed={"reward": 1.0}), "ELBO: observed names reward; the model's trace has none"),
        (IWAE(2, costs={"a": 1.0}), "IWAE: costs names a; the model's trace has mask"),
        (DReG(2), "DReG: needs a sample of every latent, and the model enumerates n"),
        (PIWAE(1, 2), "PIWAE: needs a sample of every latent, and the model enumerates n"),
        (BetaTC(100), "BetaTC: needs a sample of every latent, and the model enumerates n"),
        (InfoVAE(), "InfoVAE: needs a sample of every latent, and the model enumerates n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_what_does_not_fit_is_refused_in_one_line(objective: Objective, message: str) -> None:
    trace = chain(torch.randn(4, 1, dtype=torch.float64), 2, params())
    trace = Trace(**{**fields(trace), "costs": {"mask": torch.ones(4).double()}})
    with pytest.raises(UserError) as refused:
        objective(trace, 0)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_a_name_that_evaluation_lacks_is_no_mistake() -> None:
    """A semi-supervised model hides the label in validation: the cost of the label is then absent."""
    objective = ELBO(costs={"label": 1.0}).eval()
    assert objective(chain(torch.randn(4, 1, dtype=torch.float64), 2, params()), 0)["loss"].shape == (4,)


def broken(**changes: object) -> Trace:
    return Trace(**{**fields(chain(torch.randn(4, 1, dtype=torch.float64), 2, params())), **changes})


def test_shares_that_are_no_distribution_are_refused() -> None:
    trace = broken()
    assert trace.log_shares is not None
    check_trace("M", {}, trace)
    for wrong, said in (
        (broken(log_shares=trace.log_shares + math.log(2)), "M: the shares of an example sum to 2; "),
        (broken(log_shares=None), "M: its trace enumerates n but has no log_shares"),
        (broken(num_values=4), "M: its trace has 6 rows for num_values=4"),
    ):
        with pytest.raises(UserError) as refused:
            check_trace("M", {}, wrong)
        assert str(refused.value).startswith(said)


def test_a_sample_without_a_gradient_is_refused_whoever_drew_it() -> None:
    """In a trace that enumerates another variable too; and a normal posterior whose sample was detached."""
    logits = torch.randn(4, 3, requires_grad=True).double()
    q = OneHotCategorical(logits=logits)
    discrete = Latent(q.sample((6,)), q, OneHotCategorical(logits=torch.zeros(4, 3).double()))
    loc = torch.randn(4, 2, requires_grad=True).double()
    normal = Independent(Normal(loc, 1.0), 1)
    detached = Latent(normal.sample((6,)), normal, Independent(Normal(torch.zeros(4, 2).double(), 1.0), 1))
    whole = broken()
    for name, latent, said in (
        ("class", discrete, "latent class: samples of its posterior OneHotCategorical have no pathwise gradient"),
        ("z", detached, "latent z: its sample has no gradient, although its posterior Normal is trained"),
    ):
        with pytest.raises(UserError) as refused:
            check_trace("M", {}, broken(latents={**whole.latents, name: latent}))
        assert str(refused.value).startswith(said)


def test_point_is_the_mean_or_the_mode_of_classes() -> None:
    classes = Independent(Categorical(logits=torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]])), 1)
    value = point(classes)
    assert value is not None
    assert value.tolist() == [1, 0]
    mean = point(Independent(Normal(torch.ones(2, 3), 1.0), 1))
    assert mean is not None
    assert torch.equal(mean, torch.ones(2, 3))


def test_objects_that_do_not_exist_cost_nothing_and_the_others_are_summed() -> None:
    """A latent with three objects for each example, [K, B, N] in its batch shape; a fourth is infinite and absent."""
    loc = torch.randn(5, 4, 2, dtype=torch.float64)
    loc[:, 3] = math.inf
    q = Independent(Normal(loc, 0.5), 1)  # batch [B, N], event [2]
    z = torch.randn(2, 5, 4, 2, dtype=torch.float64)
    exists = torch.tensor([[1, 0, 1, 0], [1, 1, 1, 0]])[:, None].expand(2, 5, 4)
    prior = Independent(Normal(torch.zeros(2, dtype=torch.float64), 1.0), 1)
    latent = Latent(z, q, prior, exists=exists)
    by_object = kl_divergence(q, Independent(Normal(torch.zeros(5, 4, 2).double(), 1.0), 1))  # [B, N]
    expected = torch.stack((by_object[:, [0, 2]].sum(1), by_object[:, :3].sum(1)))  # [K, B]
    torch.testing.assert_close(latent.kl(), expected)
    by_dimension = latent.kl_by_dimension()
    assert by_dimension is not None
    assert by_dimension.shape == (2, 5, 2)
    torch.testing.assert_close(by_dimension.sum(-1), expected)
    first = Latent(z[..., 0, :], Independent(Normal(loc[:, 0], 0.5), 1), prior)
    alone = Latent(z, q, prior, exists=torch.tensor([1, 0, 0, 0]).expand(2, 5, 4))
    torch.testing.assert_close(alone.log_ratio(), first.log_ratio())
    torch.testing.assert_close(alone.log_q() - alone.log_p(), first.log_ratio())


@pytest.mark.parametrize(
    "p",
    [
        LogNormal(torch.zeros(2, 3), 1.0),
        Independent(LogNormal(torch.zeros(2, 3, 2), 1.0), 1),
        Dirichlet(torch.ones(2, 3, 4)),
        OneHotCategorical(logits=torch.zeros(2, 3, 4)),
        Beta(torch.full((2, 3), 2.0), 2.0),
    ],
    ids=lambda p: type(p).__name__,
)
def test_an_unknown_value_may_lie_outside_any_support(p: Distribution) -> None:
    seen = p.sample()[0]  # [B, *event]
    value = seen.clone()
    value[1] = -1
    known = torch.tensor([1, 0, 1])
    found = Observed(value, p, known).log_likelihood()
    torch.testing.assert_close(found[:, [0, 2]], p.log_prob(seen)[:, [0, 2]])
    assert (found[:, 1] == 0).all()


def mixture(batch: Batch, num_samples: int) -> Trace:
    """c is 1 with probability 0.1, and z ~ N(10 c, 1): E[z|x] = 1, and its variance is 1 + 9 = 10."""
    size = len(batch["x"])
    c = torch.arange(2).repeat(num_samples)[:, None].expand(-1, size)  # [K, B]
    q_c = Categorical(probs=torch.tensor([0.9, 0.1]).expand(size, 2))
    q_z = Independent(Normal(10.0 * c[..., None], torch.ones(())), 1)
    latents = {
        "c": Latent(c, q_c, Categorical(probs=torch.tensor([0.5, 0.5])), enumerated=True),
        "z": Latent(q_z.sample(), q_z, Independent(Normal(torch.zeros(1), 1.0), 1)),
    }
    p_x = Independent(Normal(torch.zeros(len(c), size, 1), 1.0), 1)
    shares = q_c.log_prob(c) - math.log(num_samples)
    return Trace(batch["x"], p_x, latents, log_shares=shares, num_values=2)


def test_codes_and_units_weigh_the_values_of_an_enumerated_variable() -> None:
    """64 draws of 500 examples: the mean of all is 1 to 0.02, and an equal weight of the values would give 5."""
    torch.manual_seed(0)
    batch = {"x": torch.zeros(500, 1)}
    trace = mixture(batch, 4)
    codes = posterior_codes(mixture, batch, trace)
    assert codes["z_mean"].mean() == pytest.approx(1.0, abs=0.1)
    assert codes["z_scale"].square().mean() == pytest.approx(10.0, abs=1.0)
    assert mean_draws(trace, trace.latents["z"]).mean() == pytest.approx(1.0, abs=0.3)
    assert set(codes) == {"z_mean", "z_scale"}
