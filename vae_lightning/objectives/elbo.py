"""The base class of objectives, and the first objective. THE ELBO IS HERE."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from vae_lightning.objectives.schedules import Schedule, as_schedule, at_least
from vae_lightning.trace import Trace
from vae_lightning.types import UserError


class Objective(nn.Module, ABC):
    """(trace, step) -> terms [B] in nats, with `loss` among them.

    `num_samples` is K, the number of samples of each latent that the model draws for the trace.
    `in_one_graph` says whether torch.compile may compile trace and objective as one function. It must be False if the
    objective asks autograd for a slope, or changes a buffer that its loss depends on: the gradient would be wrong.
    """

    num_samples: int = 1
    in_one_graph: ClassVar[bool] = True

    @abstractmethod
    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]: ...

    def coefficients(self, step: int) -> dict[str, float]:
        """The weights of the loss at this step, for the log."""
        return {}


ObjectiveRecipe: TypeAlias = Callable[[], Objective]
"""An `Objective` class, or a `functools.partial` of one: called as `recipe()`."""


class ELBO(Objective):
    """loss = beta KL(q(z|x) || p(z)) - E_q[log p(x|z)]; with beta = 1 it is minus the ELBO, a lower bound of log p(x).

    The default objective. Kingma & Welling 2014 (https://arxiv.org/abs/1312.6114), eq. 3. The term `elbo` always has
    beta = 1.

    Args:
        beta: The weight of the KL, at least 0: a number or a schedule. Above 1 minus the loss is still a lower bound of
            log p(x) (beta-VAE, Higgins et al. 2017); below 1 it is no bound.
        num_samples: K, the samples of z for each image.
    """

    def __init__(self, beta: float | Schedule = 1.0, num_samples: int = 1) -> None:
        super().__init__()
        at_least("ELBO", 1, num_samples=num_samples)
        self.beta = as_schedule(beta)
        at_least("ELBO", 0, beta=self.beta.lowest)
        self.num_samples = num_samples

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        terms = elbo_terms(trace)
        return {"loss": self.beta(step) * terms["kl"] - terms["log_likelihood"], **terms}

    def coefficients(self, step: int) -> dict[str, float]:
        return {"beta": self.beta(step)}


def elbo_terms(trace: Trace) -> dict[str, Tensor]:
    """The ELBO and its parts, [B] nats each. ELBO = E_q[log p(x|z)] - sum of KL(q || p) over the latents."""
    log_likelihood = trace.log_likelihood().mean(0)  # [K, B] -> [B]
    kls = trace.kl()
    kl = sum(kls.values(), torch.zeros_like(log_likelihood))
    parts = {f"kl/{name}": value for name, value in kls.items()}
    return {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl, **parts}


def check_latents(owner: Objective, trace: Trace) -> None:
    """Refuse a model without latents (a CVAE may have none), for an objective that needs a latent.

    Raises:
        UserError: if the trace has no latents.
    """
    if not trace.latents:
        raise UserError(f"{type(owner).__name__}: the model has no latents; choose ELBO")


def log_mean_exp(log_w: Tensor, dim: int = 0) -> Tensor:
    """log 1/K sum_k e^(log w_k), over the K entries of one dimension: [K, B] -> [B]."""
    return torch.logsumexp(log_w, dim) - math.log(log_w.shape[dim])
