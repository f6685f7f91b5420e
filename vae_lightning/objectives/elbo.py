"""The base class of objectives, and the first objective. THE ELBO IS HERE."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from vae_lightning.objectives.schedules import Schedule, as_schedule, at_least, is_zero
from vae_lightning.trace import Trace, is_masked
from vae_lightning.types import UserError

Weight: TypeAlias = float | Schedule


class Objective(nn.Module, ABC):
    """(trace, step) -> terms [B] in nats, with `loss` among them. A subclass defines `terms`.

    The costs of the trace are added to the loss of every objective, and its `example_weight` multiplies the loss.
    `num_samples` is K, the number of samples of each latent that the model draws for the trace. `in_one_graph` says
    whether torch.compile may compile trace and objective as one function. It must be False if the objective asks
    autograd for a slope, or changes a buffer that its loss depends on: the gradient would be wrong. A network that the
    loss looks through and does not train is wrapped in `Frozen`.

    Args:
        costs: The weight of each cost of the trace by its name, at least 0: a number or a schedule; 1 unless named.
    """

    num_samples: int = 1
    in_one_graph: ClassVar[bool] = True

    def __init__(self, costs: Mapping[str, Weight] | None = None) -> None:
        super().__init__()
        self.costs = _schedules(type(self).__name__, "costs", costs)

    @abstractmethod
    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        """The loss of the bound and its parts, [B] each, without the costs."""

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        terms = self.terms(trace, step)
        self._check_names("costs", self.costs, trace.costs)
        for name, value in trace.costs.items():
            cost = trace.mean(value) if value.dim() > 1 else value  # [K, B] or [B] -> [B]
            weighted = self.costs[name](step) * cost if name in self.costs else cost
            terms = {**terms, "loss": terms["loss"] + weighted, f"cost/{name}": cost}
        if trace.example_weight is not None:
            terms = {**terms, "loss": trace.example_weight * terms["loss"]}
        return terms

    def coefficients(self, step: int) -> dict[str, float]:
        """The weights of the loss at this step, for the log."""
        return {}

    def untrained_kl(self, latents: Iterable[str]) -> list[str]:
        """Which latents' KL has weight 0 in the loss at every step; none unless overridden.

        q(z|x) of such a latent is free of the prior, so that ELBO and importance estimate are bounds without a meaning.

        Args:
            latents: The names of the trace's latents.
        """
        return []

    def _check_names(self, argument: str, weights: Mapping[str, Schedule], there: Mapping[str, object]) -> None:
        """Refuse a weight whose name is not in the trace. In evaluation a trace may have less than in training."""
        unknown = weights.keys() - there.keys() if self.training else ()
        if unknown:
            names = ", ".join(sorted(there)) or "none"
            raise UserError(
                f"{type(self).__name__}: {argument} names {', '.join(sorted(unknown))}; the model's trace has {names}"
            )


ObjectiveRecipe: TypeAlias = Callable[[], Objective]
"""An `Objective` class, or a `functools.partial` of one: called as `recipe()`."""


class ELBO(Objective):
    """loss = beta KL(q(z|x) || p(z)) - E_q[log p(x|z)]; with beta = 1 it is minus the ELBO, a lower bound of log p(x).

    The default objective. Kingma & Welling 2014 (https://arxiv.org/abs/1312.6114), eq. 3. The term `elbo` always has
    weights of 1, and no costs.

    Args:
        beta: The weight of the KL, at least 0: a number or a schedule. Above 1 minus the loss is still a lower bound of
            log p(x) (beta-VAE, Higgins et al. 2017); below 1 it is no bound.
        num_samples: K, the samples of z for each example.
        betas: The weight of the KL of single latents by name, in place of beta.
        observed: The weight of log p(value|z) by name, for what the trace observes beside x; 1 unless named.
        kwargs: Arguments of `Objective`.
    """

    def __init__(
        self,
        beta: Weight = 1.0,
        num_samples: int = 1,
        betas: Mapping[str, Weight] | None = None,
        observed: Mapping[str, Weight] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least("ELBO", 1, num_samples=num_samples)
        self.num_samples, self.beta = num_samples, as_schedule(beta)
        at_least("ELBO", 0, beta=self.beta.lowest)
        self.betas = _schedules("ELBO", "betas", betas)
        self.observed = _schedules("ELBO", "observed", observed)

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        self._check_names("betas", self.betas, trace.latents)
        self._check_names("observed", self.observed, trace.observed)
        terms = elbo_terms(trace)
        kl, log_likelihood = self.beta(step) * terms["kl"], terms["log_likelihood"]
        for name, beta in self.betas.items():
            kl = kl + (beta(step) - self.beta(step)) * terms.get(f"kl/{name}", 0.0)
        for name, weight in self.observed.items():
            log_likelihood = log_likelihood + (weight(step) - 1) * terms.get(f"log_likelihood/{name}", 0.0)
        return {"loss": kl - log_likelihood, **terms}

    def coefficients(self, step: int) -> dict[str, float]:
        return {"beta": self.beta(step), **{f"beta/{name}": beta(step) for name, beta in self.betas.items()}}

    def untrained_kl(self, latents: Iterable[str]) -> list[str]:
        return [name for name in latents if is_zero(self.betas.get(name, self.beta))]


def elbo_terms(trace: Trace) -> dict[str, Tensor]:
    """The ELBO and its parts, [B] nats each. ELBO = E_q[log p(x|z)] - sum of KL(q || p) over the latents.

    `log_likelihood` is that of everything observed; if there is more than x, each part is a term of its own.
    """
    log_likelihood = trace.mean(trace.log_likelihood())  # [K, B] -> [B]
    kls = trace.kl()
    kl = sum(kls.values(), torch.zeros_like(log_likelihood))
    parts = {f"kl/{name}": value for name, value in kls.items()}
    if trace.observed:
        seen = trace.log_likelihoods().items()
        parts |= {f"log_likelihood/{name}": trace.mean(value) for name, value in seen}
    return {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl, **parts}


def check_latents(owner: Objective, trace: Trace) -> None:
    """Refuse a model without latents (a CVAE may have none), for an objective that needs a latent.

    Raises:
        UserError: if the trace has no latents.
    """
    if not trace.latents:
        raise UserError(f"{type(owner).__name__}: the model has no latents; choose ELBO")


def check_not_enumerated(owner: str, trace: Trace) -> None:
    """Refuse a trace that enumerates a variable, for a method that needs samples of every latent.

    Args:
        owner: The objective or metric, for the message.
        trace: The trace.

    Raises:
        UserError: if the trace has log_shares.
    """
    if trace.log_shares is not None:
        names = ", ".join(name for name, latent in trace.latents.items() if latent.enumerated) or "a variable"
        raise UserError(
            f"{owner}: needs a sample of every latent, and the model enumerates {names}; objectives that take an "
            "enumerated variable are ELBO, STL, FreeBits, Capacity, GECO, IWAE, MIWAE and CIWAE"
        )


def check_not_masked(owner: str, trace: Trace) -> None:
    """Refuse a latent with hidden positions, for an objective that compares the z of different examples.

    Args:
        owner: The objective, for the message.
        trace: The trace.

    Raises:
        UserError: if a posterior is `Masked`.
    """
    masked = [name for name, latent in trace.latents.items() if is_masked(latent.q)]
    if masked:
        raise UserError(
            f"{owner}: compares the z of different examples, and latent {', '.join(masked)} hides other positions in "
            "each; choose ELBO or another objective of single examples"
        )


def _schedules(owner: str, argument: str, weights: Mapping[str, Weight] | None) -> dict[str, Schedule]:
    """The weights by name as schedules, each at least 0."""
    schedules = {name: as_schedule(weight) for name, weight in (weights or {}).items()}
    at_least(owner, 0, **{f"{argument}.{name}": schedule.lowest for name, schedule in schedules.items()})
    return schedules


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """log 1/K sum_k e^(log w_k), over the K entries of one dimension: [K, B] -> [B]."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])
