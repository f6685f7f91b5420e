"""STOVE against computations of its own: the bound term by term, a chain whose marginal is known, frozen gradients."""

from __future__ import annotations

import copy
import math
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, MultivariateNormal, Normal

from vae_lightning.models import STOVE, ConstantVelocity, Interactions
from vae_lightning.models.attention import Seen
from vae_lightning.objectives import STL, DReG
from vae_lightning.trace import Trace, drawing

_A = 0.99  # of size_t ~ N(a size_(t-1), (1 - a^2) s^2)


def small(seed: int = 0, **settings: object) -> STOVE:
    """Two objects in frames of 12 x 12, with dynamics that are not linear, in float64."""
    torch.manual_seed(seed)
    model = STOVE((-1, 1, 12, 12), 2, window=5, template_size=4, **settings)  # type: ignore[arg-type]
    for parameter in model.transition.dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.double()


def clips(num_frames: int = 3, count: int = 1) -> Tensor:
    torch.manual_seed(3)
    return torch.rand(count, num_frames, 1, 12, 12, dtype=torch.float64)


# -- the bound, by hand -----------------------------------------------------------------------------------------------


def kl_of_numbers(m: float, s: float, n: float, r: float) -> float:
    """KL(N(m, s^2) || N(n, r^2))."""
    return math.log(r / s) + (s * s + (m - n) ** 2) / (2 * r * r) - 0.5


def test_the_bound_has_each_term_once() -> None:
    """2 objects, 3 frames: every number of the state and every pixel by a loop, from the drawn states alone."""
    model, x = small().eval(), clips()
    with torch.no_grad():
        trace = model.trace({"x": x})
        seen, z = model.see(x), trace.latents["z"].z[0, 0]  # [3, 2, 5]
        mean, sd = seen.mean[0], seen.sd[0]
        s_v, s_s = model.start.log_velocity.exp().item(), 0.05 + model.start.log_size.exp().item()
        kl, before = 0.0, list(range(2))
        for t in range(3):
            f = model.transition.dynamics(z[t - 1, :, :4]) if t else torch.zeros(2, 4).double()
            near = f[:, :2] if t else mean[0, :, :2]
            other = t if t else 1
            orders = list(permutations(range(2)))
            costs = [
                sum((mean[other, k, :2] - near[o]).square().sum() for o, k in enumerate(order)) for order in orders
            ]
            order = list(orders[min(range(2), key=lambda i: float(costs[i]))])
            for o in range(2):
                now, beside = (order[o], before[o]) if t else (o, order[o])
                place, spread = mean[t, now], sd[t, now]
                neighbour = sd[t - 1, beside] if t else sd[1, beside]
                for d in range(5):
                    axis = d % 2
                    if d == 4:
                        m, s = place[2], spread[2]
                    elif d >= 2:
                        m = place[axis] - z[t - 1, o, axis] if t else mean[1, beside, axis] - place[axis]
                        s = (spread[axis] ** 2 + neighbour[axis] ** 2).sqrt()
                    else:
                        m, s = place[axis], spread[axis]
                    q = (m.item(), s.item())
                    if t:
                        p = (
                            (f[o, d].item(), 0.005 if d < 2 else 0.002)
                            if d < 4
                            else (_A * z[t - 1, o, 4].item(), s_s * math.sqrt(1 - _A**2))
                        )
                        precision = q[1] ** -2 + p[1] ** -2
                        q = ((q[0] * q[1] ** -2 + p[0] * p[1] ** -2) / precision, precision**-0.5)
                    else:
                        p = (0.0, (0.6, 0.6, s_v, s_v, s_s)[d])
                    kl += kl_of_numbers(*q, *p)
            before = order if t else list(range(2))
        ink = [model.template(z[:, o, :2], z[:, o, 4]) for o in range(2)]  # [3, 1, 12, 12] each
        canvas = 1 - (1 - ink[0]) * (1 - ink[1])
        sigma = trace.p_x.stddev.flatten()[0].item()
        fit = -(((x[0] - canvas) / sigma) ** 2 / 2 + math.log(sigma) + math.log(2 * math.pi) / 2).sum().item()
    assert trace.log_likelihood().item() == pytest.approx(fit, rel=1e-9)
    assert trace.kl()["z"].item() == pytest.approx(kl, rel=1e-9)


# -- a chain whose marginal is known ----------------------------------------------------------------------------------


class Line(STOVE):
    """One object of constant velocity in frames of 12 x 12, whose first three pixels are place and size with noise."""

    noise = 0.03

    def see(self, x: Tensor) -> Seen:
        mean = x[:, :, 0, 0, None, :3]
        return Seen(mean, torch.full_like(mean, self.noise))

    def p_x(self, z: Tensor) -> Distribution:
        mean = torch.zeros(*z.shape[:-2], 1, 12, 12, dtype=z.dtype)
        mean[..., 0, 0, :3] = z[..., 0, [0, 1, 4]]
        sd = torch.ones_like(mean)
        sd[..., 0, 0, :3] = self.noise
        return Independent(Normal(mean, sd), 4)


def log_marginal(model: Line, x: Tensor) -> float:
    """log p(x) of one clip by the covariance of the whole chain."""
    step, start = torch.eye(5).double(), model.start().base_dist.scale[0].detach()  # type: ignore[attr-defined]
    step[0, 2] = step[1, 3] = 1
    step[4, 4] = _A
    noise = torch.tensor([0.05, 0.05, 0.02, 0.02, 0]).double()
    noise[4] = math.sqrt(1 - _A**2) * start[4]
    frames = x.shape[1]
    read = torch.zeros(3, 5).double()
    read[0, 0] = read[1, 1] = read[2, 4] = 1
    here = torch.diag(start**2)
    covariance = torch.zeros(frames, 3, frames, 3).double()
    for t in range(frames):
        ahead = here
        for u in range(t, frames):
            covariance[u, :, t] = read @ ahead @ read.T
            covariance[t, :, u] = covariance[u, :, t].T
            ahead = step @ ahead
        here = step @ here @ step.T + torch.diag(noise**2)
    covariance = covariance.reshape(3 * frames, -1) + model.noise**2 * torch.eye(3 * frames).double()
    places = x[0, :, 0, 0, :3].flatten()
    rest = Normal(0.0, 1.0).log_prob(x[0]).sum() - Normal(0.0, 1.0).log_prob(places).sum()
    return (MultivariateNormal(torch.zeros(3 * frames).double(), covariance).log_prob(places) + rest).item()


@pytest.mark.slow
def test_the_weights_average_to_the_marginal_likelihood() -> None:
    """E_q[p(x, z) / q(z|x)] = p(x), if q is normalised and q and p have each term once."""
    torch.manual_seed(0)
    model = Line((-1, 1, 12, 12), 1, window=5, dynamics=ConstantVelocity, spread=0.05, velocity_spread=0.02).double()
    x = 0.3 * clips(3)
    x[0, :, 0, 0, :2] = torch.tensor([[-0.1, 0.2], [0.0, 0.2], [0.08, 0.15]])
    with torch.no_grad():
        log_w = model.trace({"x": x}, 20_000).log_weight()[:, 0]
    exact = log_marginal(model, x)
    weights = (log_w - exact).exp()
    error = weights.std().item() / math.sqrt(len(weights))
    assert error < 0.05
    assert weights.mean().item() == pytest.approx(1, abs=4 * error)
    assert log_w.mean().item() < exact


# -- gradients that leave out the score of q --------------------------------------------------------------------------


def frozen_densities(model: STOVE, trace: Trace) -> tuple[Tensor, Tensor]:
    """log p(x, z) and log q(z|x), [K, B], of a model without gradients of its own at the samples of another trace."""
    frozen = copy.deepcopy(model).requires_grad_(False)
    given = iter(trace.latents["z"].draws)
    with drawing(lambda q: next(given)[0] if q.batch_shape == trace.x.shape[:1] else next(given)):
        latent = frozen.filter(frozen.see(trace.x))
    return frozen.p_x(latent.z).log_prob(trace.x) + latent.log_p(), latent.log_q()


def slopes(value: Tensor, model: STOVE) -> Tensor:
    wanted = list(model.attention.parameters())
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(value.sum(), wanted, retain_graph=True)])


def test_the_gradient_without_the_score_is_that_of_frozen_densities_at_moving_samples() -> None:
    """q(z_t|x_t, z_(t-1)) and p(z_t|z_(t-1)) also move with z_(t-1), and that is no score."""
    model, x = small().eval(), clips(3, count=2)
    trace = model.trace({"x": x})
    log_p, log_q = frozen_densities(model, trace)
    expected = slopes(log_q - log_p, model)
    for objective in (STL(), DReG(1)):
        torch.testing.assert_close(slopes(objective.terms(trace, 0)["loss"], model), expected, rtol=1e-7, atol=1e-6)


# -- settings together ------------------------------------------------------------------------------------------------


def test_a_latent_that_no_image_shows_is_that_of_p_without_the_product() -> None:
    latent = small(latent_size=2, filtered=False).eval().trace({"x": clips()}, 2).latents["z"]
    by_dimension = latent.kl_by_dimension()
    assert by_dimension is not None
    assert by_dimension.isfinite().all()
    assert by_dimension[:, :, 1:, :, 4:6].abs().max() < 1e-12
    assert by_dimension[..., [0, 1, 2, 3, 6]].min() > 0


def test_mixed_precision_foresees_from_what_the_trace_found() -> None:
    """The dynamics of a roll-out run in full precision, as those of the filter do."""
    model, x = small().float().eval(), clips().float()
    with torch.autocast("cpu", torch.bfloat16):
        found, rollout = model.trace({"x": x}).found["positions"], model.predict_frames(x, 3)
    assert torch.equal(rollout.seen, found)
    assert rollout.positions.dtype == rollout.frames.dtype == torch.float32


# -- the dynamics, by hand --------------------------------------------------------------------------------------------


def test_the_dynamics_are_the_sum_of_what_each_other_object_does() -> None:
    """Three objects by a loop: v' = v + o_v / 10, x' = x + (v + v') / 2 + o_x / 10, the latent + o_l / 10."""
    torch.manual_seed(0)
    dynamics = Interactions(1, hidden_size=8).double().eval()
    for parameter in dynamics.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = 0.5 * torch.randn(3, 5, dtype=torch.float64).clamp(-1, 1)
    scaled = state * torch.tensor([3.0, 3, 20, 20, 1])
    for i, after in enumerate(dynamics(state)):
        acted = torch.zeros(8).double()
        for j in {0, 1, 2} - {i}:
            apart = scaled[j, :4] - scaled[i, :4]
            distance = (apart[0] ** 2 + apart[1] ** 2) / 3
            acted = acted + dynamics.pair(torch.cat((scaled[i], scaled[j], apart, distance[None]))[None])[0]
        o = dynamics.out(torch.cat((dynamics.alone(scaled[i][None])[0], acted))[None])[0] / 10
        place, velocity = state[i, :2], state[i, 2:4]
        following = velocity + o[2:4]
        expected = torch.cat((place + (velocity + following) / 2 + o[:2], following, state[i, 4:] + o[4:]))
        torch.testing.assert_close(after, expected)
