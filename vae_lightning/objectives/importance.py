"""Importance-weighted bounds of log p(x), and gradients of bounds that leave out the score of q.

Written with w_k = p(x, z_k) / q(z_k|x), and with v_k = w_k / sum_j w_j. The score of q, d log q(z|x) / d phi at a fixed
z, has mean zero, so an estimator may drop it (STL) or put a path in its place (DReG). What is left reaches phi through
the samples alone: `through_samples`. It asks nothing of q but a density at any z, so it serves every family; of an
autoregressive flow that density takes a pass for each dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vae_lightning.objectives.elbo import Objective, elbo_terms, log_mean_exp
from vae_lightning.objectives.schedules import Schedule, as_schedule, at_least
from vae_lightning.trace import Trace
from vae_lightning.types import UserError


class IWAE(Objective):
    """loss = -log 1/K sum_k w_k with w_k = p(x, z_k) / q(z_k|x): minus a lower bound of log p(x), which K tightens.

    Burda, Grosse & Salakhutdinov 2016 (https://arxiv.org/abs/1509.00519), eq. 8. `iwae` is the bound.
    """

    def __init__(self, num_samples: int = 5) -> None:
        super().__init__()
        at_least(type(self).__name__, 1, num_samples=num_samples)
        self.num_samples = num_samples

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        iwae = log_mean_exp(trace.log_weight())
        return {"loss": -iwae, "iwae": iwae, **elbo_terms(trace)}


class DReG(IWAE):
    """loss = -log 1/K sum_k w_k, as the IWAE, with d loss/d phi = -sum_k v_k^2 (d log w_k/d z_k) (d z_k/d phi).

    Doubly reparameterised gradients (Tucker et al. 2019, https://arxiv.org/abs/1810.04152). Minus the loss is the
    IWAE's lower bound, and the gradient of phi is on average the IWAE's, with a signal that does not fade as K grows.
    The gradient of theta, the prior's included, is the IWAE's own. Costs one more pass back through the decoder.
    """

    in_one_graph = False

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        log_p, log_q = log_joint(trace), log_posterior(trace)  # [K, B] each
        log_w = log_p - log_q
        v = torch.softmax(log_w.detach(), 0)
        paths = through_samples(log_p, trace, v**2 - v) - through_samples(log_q, trace, v**2)  # of v^2 log w - v log p
        gradient = v * log_p + paths
        iwae = with_gradient(log_mean_exp(log_w), gradient.sum(0))
        return {"loss": -iwae, "iwae": iwae, **elbo_terms(trace)}


class STL(Objective):
    """loss = beta (log q(z|x) - log p(z)) - log p(x|z), K samples averaged, without the score of q in its gradient.

    With beta = 1 minus the loss is the ELBO, a lower bound of log p(x), with the KL sampled. Sticking the landing
    (Roeder, Wu & Duvenaud 2017, https://arxiv.org/abs/1703.09194): where q is the exact posterior the gradient of phi
    is zero for every single sample, not only on average. In the IWAE the same step would have a bias: there is DReG.
    """

    in_one_graph = False

    def __init__(self, beta: float | Schedule = 1.0, num_samples: int = 1) -> None:
        super().__init__()
        at_least("STL", 1, num_samples=num_samples)
        self.beta = as_schedule(beta)
        at_least("STL", 0, beta=self.beta.lowest)
        self.num_samples = num_samples

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        log_q = log_posterior(trace)
        log_q = with_gradient(log_q, through_samples(log_q, trace))
        log_likelihood = trace.log_likelihood()
        kl = log_q - log_prior(trace)  # [K, B], sampled
        return {"loss": (self.beta(step) * kl - log_likelihood).mean(0), **elbo_terms(trace)}

    def coefficients(self, step: int) -> dict[str, float]:
        return {"beta": self.beta(step)}


class MIWAE(Objective):
    """loss = -1/M sum_m log 1/K sum_k w_mk: minus the mean of M bounds, each an IWAE's of K samples.

    A lower bound of log p(x), as tight as the IWAE's with K and M times less noisy; M = 1 is the IWAE, K = 1 the ELBO.
    M = `num_bounds`, K = `samples_per_bound`. Rainforth et al. 2018 (https://arxiv.org/abs/1802.04537).
    """

    def __init__(self, num_bounds: int = 8, samples_per_bound: int = 8) -> None:
        super().__init__()
        at_least(type(self).__name__, 1, num_bounds=num_bounds, samples_per_bound=samples_per_bound)
        self.num_bounds, self.samples_per_bound = num_bounds, samples_per_bound
        self.num_samples = num_bounds * samples_per_bound

    def groups(self, log_w: Tensor) -> Tensor:
        """[M K, B] -> [M, K, B]."""
        return log_w.unflatten(0, (self.num_bounds, self.samples_per_bound))

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        miwae = log_mean_exp(self.groups(trace.log_weight()), dim=1).mean(0)  # [M, K, B] -> [B]
        return {"loss": -miwae, "miwae": miwae, **elbo_terms(trace)}


class PIWAE(MIWAE):
    """d loss / d theta as of -IWAE with M K samples, d loss / d phi as of -MIWAE(M, K), on the same samples.

    The tight bound trains p, the less noisy one q: no one number has both gradients, so the loss that is shown is minus
    the first, a lower bound of log p(x); `miwae` is the other. Rainforth et al. 2018. Costs one more pass back through
    the decoder.
    """

    in_one_graph = False

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        log_w, log_p = trace.log_weight(), log_joint(trace)  # [M K, B] each
        v_theta = torch.softmax(log_w.detach(), 0)
        v_phi = torch.softmax(self.groups(log_w.detach()), 1).flatten(0, 1) / self.num_bounds
        difference = v_theta - v_phi
        theta_alone = difference * log_p - through_samples(log_p, trace, difference)
        gradient = v_phi * log_w + theta_alone
        iwae = with_gradient(log_mean_exp(log_w), gradient.sum(0))
        miwae = log_mean_exp(self.groups(log_w.detach()), dim=1).mean(0)
        return {"loss": -iwae, "iwae": iwae, "miwae": miwae, **elbo_terms(trace)}


class CIWAE(IWAE):
    """loss = -beta ELBO - (1 - beta) log 1/K sum_k w_k: between the ELBO (beta = 1) and the IWAE (beta = 0).

    Minus the loss is a lower bound of log p(x), as a mean of two. Rainforth et al. 2018
    (https://arxiv.org/abs/1802.04537); here the ELBO's KL is in closed form where there is one.
    """

    def __init__(self, beta: float = 0.5, num_samples: int = 5) -> None:
        super().__init__(num_samples)
        if not 0 <= beta <= 1:
            raise UserError(f"CIWAE: beta is {beta}; it is the ELBO's share of the bound, from 0 to 1")
        self.beta = beta

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        terms = super().forward(trace, step)
        return {**terms, "loss": -self.beta * terms["elbo"] - (1 - self.beta) * terms["iwae"]}

    def coefficients(self, step: int) -> dict[str, float]:
        return {"beta": self.beta}


def log_joint(trace: Trace) -> Tensor:
    """log p(x, z) = log p(x|z) + log p(z): [K, B] nats."""
    return trace.log_likelihood() + log_prior(trace)


def log_prior(trace: Trace) -> Tensor:
    """log p(z), of all latents: [K, B] nats."""
    zero = torch.zeros(trace.p_x.batch_shape, device=trace.x.device)
    return sum((latent.p.log_prob(latent.z) for latent in trace.latents.values()), zero)


def log_posterior(trace: Trace) -> Tensor:
    """log q(z|x) as a function of z: [K, B] nats.

    At a copy of z: a flow that remembers what it drew would answer for z itself without looking at it, and the
    gradient through z would be lost without a word.
    """
    zero = torch.zeros(trace.p_x.batch_shape, device=trace.x.device)
    return sum((latent.q.log_prob(latent.z.clone()) for latent in trace.latents.values()), zero)


def through_samples(value: Tensor, trace: Trace, weight: Tensor | float = 1.0) -> Tensor:
    """weight sum over latents of <d value / d z, z - z'>: zero, with the gradient of `value` through the samples alone.

    `value` [K, B], each entry a function of its own samples; z' is z without a gradient. In d value / d z the other
    latents are held fixed: what reaches z by way of a later latent's sample is taken off again, for it counts there.
    `weight` [K, B] is a constant, and kept out of d value / d z: in a float16 network, through which that goes without
    the scale of the loss, a small weight would be the end of a small slope.
    """
    assert not torch.compiler.is_compiling(), "an objective that calls this says in_one_graph = False"
    zero = torch.zeros_like(value)
    later: list[Tensor] = []
    slopes: list[Tensor] = []
    for z in _last_drawn_first(trace) if value.requires_grad else []:
        slope = _slope([value], z, [torch.ones_like(value)]) - _slope(later, z, slopes)
        later, slopes = [*later, z], [*slopes, slope]
        zero = zero + (slope * (z - z.detach())).reshape(*value.shape, -1).sum(-1)
    return weight * zero


def _last_drawn_first(trace: Trace) -> list[Tensor]:
    """The samples that have a gradient. Autograd numbers its nodes in the order in which they were made."""
    samples = [latent.z for latent in trace.latents.values() if latent.z.grad_fn is not None]
    return sorted(samples, key=lambda z: -z.grad_fn._sequence_nr())  # type: ignore[union-attr]


def _slope(values: Sequence[Tensor], z: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """d (sum of weight * value) / d z, zero where no value depends on z."""
    if not values:
        return torch.zeros_like(z)
    return torch.autograd.grad(values, z, weights, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def with_gradient(value: Tensor, gradient: Tensor) -> Tensor:
    """The number of the one with the gradient of the other."""
    return value.detach() + gradient - gradient.detach()
