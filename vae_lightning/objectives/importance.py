"""Importance-weighted bounds of log p(x), and gradients of bounds that leave out the score of q.

Notation: w_k = p(x, z_k) / q(z_k|x), and v_k = w_k / sum_j w_j. The score of q, d log q(z|x) / d phi at a fixed z, has
mean zero, so an estimator may drop the score (STL) or replace it by a pathwise term (DReG). The rest of the gradient
reaches phi through the samples only: `through_samples`. Every family with a density at any z will do. An
autoregressive flow needs one pass for each dimension for that density.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_lightning.objectives.elbo import Objective, check_not_enumerated, elbo_terms, log_mean_exp
from vae_lightning.objectives.schedules import Schedule, as_schedule, at_least, is_zero
from vae_lightning.trace import Trace
from vae_lightning.types import UserError


class IWAE(Objective):
    """loss = -log 1/K sum_k w_k with w_k = p(x, z_k) / q(z_k|x): minus a lower bound of log p(x), which K tightens.

    Choose it for a tighter bound than the ELBO. Burda, Grosse & Salakhutdinov 2016 (https://arxiv.org/abs/1509.00519),
    eq. 8. The term `iwae` is the bound.

    Args:
        num_samples: K, the samples of z for each image.
        kwargs: Arguments of `Objective`.
    """

    def __init__(self, num_samples: int = 5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        at_least(type(self).__name__, 1, num_samples=num_samples)
        self.num_samples = num_samples

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        iwae = log_mean_exp(trace.log_weight())
        return {"loss": -iwae, "iwae": iwae, **elbo_terms(trace)}


class DReG(IWAE):
    """loss = -log 1/K sum_k w_k, as the IWAE, with d loss/d phi = -sum_k v_k^2 (d log w_k/d z_k) (d z_k/d phi).

    Choose it over the IWAE for large K: the encoder's gradient is equal on average, and its signal-to-noise ratio does
    not fall as K grows. Doubly reparameterised gradients (Tucker et al. 2019, https://arxiv.org/abs/1810.04152). Minus
    the loss is the IWAE's lower bound. The gradient of theta, including the prior's, is the IWAE's. Costs one more
    backward pass through the decoder.

    Args:
        num_samples: K, the samples of z for each image.
    """

    in_one_graph = False

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        check_not_enumerated("DReG", trace)
        log_p, log_q = log_joint(trace), log_posterior(trace)  # [K, B] each
        log_w = log_p - log_q
        v = torch.softmax(log_w.detach(), 0)
        paths = through_samples(log_p, trace, v**2 - v) - through_samples(
            log_q, trace, v**2
        )  # the paths of v^2 log w - v log p
        gradient = v * log_p + paths
        iwae = with_gradient(log_mean_exp(log_w), gradient.sum(0))
        return {"loss": -iwae, "iwae": iwae, **elbo_terms(trace)}


class STL(Objective):
    """loss = beta (log q(z|x) - log p(z)) - log p(x|z), the mean of K samples; the gradient leaves out the score of q.

    Choose it if q can come near to the exact posterior: there the gradient of phi is zero for every single sample, not
    only on average. Sticking the landing (Roeder, Wu & Duvenaud 2017, https://arxiv.org/abs/1703.09194). With beta = 1
    minus the loss is the ELBO with a sampled KL, a lower bound of log p(x). In the IWAE the same method would be
    biased; use `DReG` there.

    Args:
        beta: The weight of the KL, at least 0: a number or a schedule.
        num_samples: K, the samples of z for each image.
        kwargs: Arguments of `Objective`.
    """

    in_one_graph = False

    def __init__(self, beta: float | Schedule = 1.0, num_samples: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        at_least("STL", 1, num_samples=num_samples)
        self.num_samples, self.beta = num_samples, as_schedule(beta)
        at_least("STL", 0, beta=self.beta.lowest)

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        log_q = log_posterior(trace)
        log_q = with_gradient(log_q, through_samples(log_q, trace))
        log_likelihood = trace.log_likelihood()
        kl = log_q - log_prior(trace)  # [K, B], sampled
        return {"loss": trace.mean(self.beta(step) * kl - log_likelihood), **elbo_terms(trace)}

    def coefficients(self, step: int) -> dict[str, float]:
        return {"beta": self.beta(step)}

    def untrained_kl(self, latents: Iterable[str]) -> list[str]:
        return list(latents) if is_zero(self.beta) else []


class MIWAE(Objective):
    """loss = -1/M sum_m log 1/K sum_k w_mk: minus the mean of M bounds, each an IWAE's of K samples.

    Choose it if the IWAE's gradient is too noisy. A lower bound of log p(x), as tight as the IWAE's with K samples and
    M times less noisy; M = 1 is the IWAE, K = 1 the ELBO. Rainforth et al. 2018 (https://arxiv.org/abs/1802.04537).

    Args:
        num_bounds: M, at least 1.
        samples_per_bound: K, at least 1; each image has M K samples of z.
        kwargs: Arguments of `Objective`.
    """

    def __init__(self, num_bounds: int = 8, samples_per_bound: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        at_least(type(self).__name__, 1, num_bounds=num_bounds, samples_per_bound=samples_per_bound)
        self.num_bounds, self.samples_per_bound = num_bounds, samples_per_bound
        self.num_samples = num_bounds * samples_per_bound

    def groups(self, log_w: Tensor) -> Tensor:
        """[M K, B] -> [M, K, B]."""
        return log_w.unflatten(0, (self.num_bounds, self.samples_per_bound))

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        miwae = log_mean_exp(self.groups(trace.log_weight()), dim=1).mean(0)  # [M, K, B] -> [B]
        return {"loss": -miwae, "miwae": miwae, **elbo_terms(trace)}


class PIWAE(MIWAE):
    """d loss / d theta is that of -IWAE with M K samples, d loss / d phi that of -MIWAE(M, K), on the same samples.

    Choose it to train p by the tight bound and q by the less noisy bound. No one number has both gradients, so the loss
    that is shown is minus the first bound, a lower bound of log p(x); the term `miwae` is the other. Rainforth et al.
    2018 (https://arxiv.org/abs/1802.04537). Costs one more backward pass through the decoder.

    Args:
        num_bounds: M, at least 1.
        samples_per_bound: K, at least 1; each image has M K samples of z.
    """

    in_one_graph = False

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        check_not_enumerated("PIWAE", trace)
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

    Minus the loss is a lower bound of log p(x), because it is a mean of two. Rainforth et al. 2018
    (https://arxiv.org/abs/1802.04537); here the ELBO's KL is in closed form if there is one.

    Args:
        beta: The share of the ELBO, from 0 to 1.
        num_samples: K, the samples of z for each image.
        kwargs: Arguments of `Objective`.
    """

    def __init__(self, beta: float = 0.5, num_samples: int = 5, **kwargs: Any) -> None:
        super().__init__(num_samples, **kwargs)
        if not 0 <= beta <= 1:
            raise UserError(f"CIWAE: beta is {beta}; it is the ELBO's share of the bound, and must be from 0 to 1")
        self.beta = beta

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        terms = super().terms(trace, step)
        return {**terms, "loss": -self.beta * terms["elbo"] - (1 - self.beta) * terms["iwae"]}

    def coefficients(self, step: int) -> dict[str, float]:
        return {"beta": self.beta}


def log_joint(trace: Trace) -> Tensor:
    """log p(x, z) = log p(x|z) + log p(z): [K, B] nats, of everything observed."""
    return trace.log_likelihood() + log_prior(trace)


def log_prior(trace: Trace) -> Tensor:
    """log p(z) of all latents together: [K, B] nats."""
    zero = torch.zeros(trace.p_x.batch_shape, device=trace.x.device)
    return sum((latent.log_p() for latent in trace.latents.values()), zero)


def log_posterior(trace: Trace) -> Tensor:
    """log q(z|x) as a function of z: [K, B] nats.

    Taken at a copy of z. For z itself a flow returns the density that it stored when it drew z, which has no gradient
    through z.
    """
    zero = torch.zeros(trace.p_x.batch_shape, device=trace.x.device)
    return sum((latent.log_q(latent.z.clone()) for latent in trace.latents.values()), zero)


def through_samples(value: Tensor, trace: Trace, weight: Tensor | float = 1.0) -> Tensor:
    """weight * sum over latents of <d value / d z, z - z'>: zero, with the gradient of `value` through the samples.

    z' is z without a gradient. In d value / d z the other latents are held fixed: subtract the part of the slope that
    flows through later latents; it is counted at those latents.

    Args:
        value: [K, B]; each entry is a function of its own samples.
        trace: The trace of the samples.
        weight: A constant [K, B]. It is applied after d value / d z: in a float16 network, whose slopes are not scaled
            as the loss is, a small weight could round a small slope to 0.
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
    """The samples with a gradient, the last drawn first. Autograd numbers its nodes in the order of their creation."""
    drawn = [z for latent in trace.latents.values() for z in latent.draws or (latent.z,)]
    samples = [z for z in drawn if z.grad_fn is not None]
    return sorted(samples, key=lambda z: -z.grad_fn._sequence_nr())  # type: ignore[union-attr]


def _slope(values: Sequence[Tensor], z: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """d (sum of weight * value) / d z; zero if no value depends on z."""
    if not values:
        return torch.zeros_like(z)
    return torch.autograd.grad(values, z, weights, retain_graph=True, allow_unused=True, materialize_grads=True)[0]


def with_gradient(value: Tensor, gradient: Tensor) -> Tensor:
    """The number `value` with the gradient of `gradient`."""
    return value.detach() + gradient - gradient.detach()
