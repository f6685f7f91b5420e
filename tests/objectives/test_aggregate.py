"""Beta-TC and the MMD against known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from tests.models.linear_gaussian import IMAGE_SHAPE, linear_gaussian
from vae_lightning.distributions import LearnedNormal
from vae_lightning.objectives import ELBO, IMQ, RBF, BetaTC, InfoVAE, Kernel
from vae_lightning.objectives.aggregate import mmd_terms
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import UserError

X = torch.randn(6, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def trace_of(loc: Tensor, scale: float, num_samples: int = 1) -> Trace:
    q = Independent(Normal(loc, torch.full_like(loc, scale)), 1)
    p = Independent(Normal(torch.zeros_like(loc[0]), torch.ones_like(loc[0])), 1)
    x = torch.zeros(len(loc), 1, dtype=loc.dtype)
    return Trace(
        x, Independent(Normal(x.expand(num_samples, -1, -1), 1.0), 1), {"z": Latent(q.rsample((num_samples,)), q, p)}
    )


@pytest.mark.parametrize("dataset_size", [6, 100, 10**6])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_the_three_terms_add_up_to_the_sampled_kl(dataset_size: int, num_samples: int) -> None:
    """Their sum is log q(z|x) - log p(z) for each sample, for any estimate of q(z)."""
    model = linear_gaussian(ELBO)
    trace = model.trace({"x": X}, num_samples)
    parts = BetaTC(dataset_size).parts(trace)
    torch.testing.assert_close(sum(parts), trace.latents["z"].log_ratio())
    terms = BetaTC(dataset_size, beta=5.0, alpha=2.0, gamma=3.0, num_samples=num_samples)(trace, 0)
    mi, tc, dimensionwise = (part.mean(0) for part in parts)
    torch.testing.assert_close(terms["loss"], 2 * mi + 5 * tc + 3 * dimensionwise - terms["log_likelihood"])


def test_latents_that_are_drawn_apart_are_one() -> None:
    """Two latents of 2 and 1 dimensions have the terms of one latent with 3."""
    whole = trace_of(torch.randn(6, 3, dtype=torch.float64), 0.5, 2)
    one = whole.latents["z"]
    cut = {}
    for name, part in (("a", slice(0, 2)), ("b", slice(2, 3))):
        q, p = (Independent(Normal(d.mean[..., part], d.stddev[..., part]), 1) for d in (one.q, one.p))
        cut[name] = Latent(one.z[..., part], q, p)
    torch.testing.assert_close(BetaTC(50).parts(Trace(whole.x, whole.p_x, cut)), BetaTC(50).parts(whole))


def test_with_the_whole_data_set_as_batch_q_z_is_the_mixture_itself() -> None:
    """Every posterior has weight 1/N, so q(z) is torch's mixture, as a whole and by dimension."""
    trace = trace_of(torch.randn(6, 3, dtype=torch.float64), 0.4, 5)
    one = trace.latents["z"]
    even = Categorical(torch.ones(6, dtype=torch.float64))
    log_q_z = MixtureSameFamily(even, one.q).log_prob(one.z)
    by_dimension = [
        MixtureSameFamily(even, Normal(one.q.mean[:, d], one.q.stddev[:, d])).log_prob(one.z[..., d]) for d in range(3)
    ]
    mi, tc, _ = BetaTC(6).parts(trace)
    torch.testing.assert_close(mi, one.q.log_prob(one.z) - log_q_z)
    torch.testing.assert_close(tc, log_q_z - torch.stack(by_dimension).sum(0))


def test_known_values() -> None:
    """Two narrow posteriors on the diagonal give I = TC = log 2; four in a square give I = log 4, TC = 0."""
    corners = torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    mi, tc, _ = BetaTC(2).parts(trace_of(corners, 0.01, 50))
    torch.testing.assert_close(mi, torch.full_like(mi, math.log(2)))
    torch.testing.assert_close(tc, torch.full_like(tc, math.log(2)))
    square = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    mi, tc, _ = BetaTC(4).parts(trace_of(square, 0.01, 50))
    torch.testing.assert_close(mi, torch.full_like(mi, math.log(4)))
    torch.testing.assert_close(tc, torch.zeros_like(tc), atol=1e-6, rtol=0)


def test_the_estimate_of_q_z_has_the_right_mean() -> None:
    """Estimates of q(z) from batches of 2 average, over all pairs of a data set of 5, to the mixture of all 5."""
    loc = torch.randn(5, 2, dtype=torch.float64)
    full = trace_of(loc, 0.7)
    z = full.latents["z"].z
    exact = (full.latents["z"].log_ratio() - BetaTC(5).parts(full)[0]).exp()  # q(z) / p(z): [1, 5]
    for own in range(5):
        found = []
        for other in set(range(5)) - {own}:
            pair = trace_of(loc[[own, other]], 0.7)
            one = pair.latents["z"]
            here = Trace(pair.x, pair.p_x, {"z": Latent(z[:, [own, other]], one.q, one.p)})
            found.append((here.latents["z"].log_ratio() - BetaTC(5).parts(here)[0]).exp()[0, 0])
        torch.testing.assert_close(torch.stack(found).mean(), exact[0, own])


def test_a_batch_above_the_data_set_is_refused() -> None:
    with pytest.raises(UserError, match="dataset_size is 5, but a batch has 6 images"):
        BetaTC(5)(trace_of(torch.zeros(6, 2), 1.0), 0)


@pytest.mark.parametrize("kernel", [RBF(), RBF(0.5), IMQ(), IMQ((1.0,))])
def test_kernels_fall_with_distance_and_are_constant_on_the_diagonal(kernel: Kernel) -> None:
    values = kernel(torch.tensor([0.0, 1.0, 4.0, 100.0]), 3)
    assert (values.diff() < 0).all()
    assert values[0] == (1 if isinstance(kernel, RBF) else len(kernel.scales))  # type: ignore[attr-defined]
    assert values[-1] >= 0


def test_kernels_at_a_known_distance() -> None:
    """At |x - y|^2 = 4 in D = 3: RBF e^(-4 / (2 D w^2)), IMQ sum_s 2 D s / (2 D s + 4)."""
    square_distance = torch.tensor(4.0, dtype=torch.float64)
    assert RBF(1.5)(square_distance, 3).item() == pytest.approx(math.exp(-4 / 13.5))
    assert IMQ((0.5, 2.0))(square_distance, 3).item() == pytest.approx(3 / 7 + 12 / 16)


def test_mmd_of_two_examples_is_the_unbiased_estimate_of_their_one_pair() -> None:
    """The mean over the two examples is k(x1, x2) + k(y1, y2) - k(x1, y2) - k(x2, y1).

    This is lemma 6 with m = 2, not half of it.
    """
    x, y = torch.randn(2, 3, 2, 4, dtype=torch.float64)  # [K, B, D] each
    kernel = RBF()

    def k(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-(a - b).square().sum(-1) / 8)

    expected = k(x[:, 0], x[:, 1]) + k(y[:, 0], y[:, 1]) - k(x[:, 0], y[:, 1]) - k(x[:, 1], y[:, 0])
    torch.testing.assert_close(mmd_terms(x, y, kernel).mean(1), expected)


@pytest.mark.parametrize("shift", [0.0, 1.0, 3.0])
def test_mmd_of_two_normals(shift: float) -> None:
    """RBF, N(0, I) against N(m, I), D = 2, h = D width^2: 2 (1 + 2/h)^(-D/2) (1 - exp(-|m|^2 / (2 (h + 2))))."""
    kernel, h = RBF(1.5), 2 * 1.5**2
    x, y = torch.randn(100, 60, 2, dtype=torch.float64), torch.randn(100, 60, 2, dtype=torch.float64)
    y[..., 0] += shift
    found = mmd_terms(x, y, kernel).mean(1)  # 100 estimates
    exact = 2 / (1 + 2 / h) * (1 - math.exp(-(shift**2) / (2 * (h + 2))))
    assert abs(found.mean() - exact) < 4 * found.std() / 10
    assert (found < 0).any() == (shift == 0.0)  # an unbiased estimate of zero must sometimes be below zero


@pytest.mark.parametrize("kl_weight", [0.0, 0.3, 2.5])
def test_the_kl_has_its_weight_in_the_loss(kl_weight: float) -> None:
    terms = InfoVAE(mmd_weight=7.0, kl_weight=kl_weight)(trace_of(torch.randn(6, 3, dtype=torch.float64), 0.5), 0)
    torch.testing.assert_close(terms["loss"], kl_weight * terms["kl"] + 7 * terms["mmd"] - terms["log_likelihood"])


def test_a_learned_prior_has_the_gradient_of_its_mmd() -> None:
    """Without a weight on the KL only the MMD moves the prior, towards the aggregate posterior."""
    z = 3 + torch.randn(50, 40, 2)
    prior = LearnedNormal((2,))
    q = Independent(Normal(z[0], torch.ones_like(z[0])), 1)
    x = torch.zeros(40, 1)
    trace = Trace(x, Independent(Normal(x.expand(50, -1, -1), 1.0), 1), {"z": Latent(z, q, prior())})
    InfoVAE(kl_weight=0.0, num_samples=50)(trace, 0)["loss"].mean().backward()
    assert prior.mean.grad is not None
    assert (prior.mean.grad < -0.1).all()  # gradient descent raises the mean, to 3


def test_the_prior_is_drawn_for_each_example_where_it_differs() -> None:
    """A conditional prior N(c, 1) with distant c, and q = p: the MMD is zero only if each example has its own prior."""
    c = torch.linspace(-50, 50, 40, dtype=torch.float64)[:, None]
    q = Independent(Normal(c, torch.ones_like(c)), 1)
    x = torch.zeros(40, 1, dtype=torch.float64)
    p_x = Independent(Normal(x.expand(20, -1, -1), 1.0), 1)
    same = InfoVAE(num_samples=20)(Trace(x, p_x, {"z": Latent(q.rsample((20,)), q, q)}), 0)
    one = Independent(Normal(torch.zeros(1, dtype=torch.float64), 1.0), 1)
    other = InfoVAE(num_samples=20)(Trace(x, p_x, {"z": Latent(q.rsample((20,)), q, one)}), 0)
    assert abs(same["mmd"].mean()) < 0.05
    assert other["mmd"].mean() > 1
