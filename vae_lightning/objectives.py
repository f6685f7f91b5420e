"""Objectives: functions of a `Trace`. THE ELBO IS HERE.

An objective returns named terms, one number per example, in nats: `loss` is minimised, and `elbo`, `log_likelihood`,
`kl` and `kl/<latent>` are the same quantities under every objective, so that runs can be compared.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from vae_lightning.trace import Trace
from vae_lightning.types import UserError


class Schedule(ABC):
    """A number as a function of the global step: no state, so a resumed run is where it was."""

    @abstractmethod
    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True)
class Constant(Schedule):
    """beta(t) = value."""

    value: float = 1.0

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class LinearWarmup(Schedule):
    """beta(t) = start + (end - start) min(1, t / num_steps)."""

    num_steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _at_least_one("LinearWarmup", "num_steps", self.num_steps)

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(1.0, step / self.num_steps)


@dataclass(frozen=True)
class Cyclic(Schedule):
    """In each period a linear rise over its first `rise` fraction, then `end` (Fu et al. 2019, arXiv:1903.10145)."""

    period: int
    rise: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _at_least_one("Cyclic", "period", self.period)
        if not 0 < self.rise <= 1:
            raise UserError(f"Cyclic: rise is {self.rise}; it is a fraction of the period, above 0 and at most 1")

    def __call__(self, step: int) -> float:
        phase = (step % self.period) / self.period
        return self.start + (self.end - self.start) * min(1.0, phase / self.rise)


class Objective(nn.Module, ABC):
    """(trace, step) -> terms [B] in nats, `loss` among them. `num_samples` is the K that it wants of a trace."""

    num_samples: int = 1

    @abstractmethod
    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]: ...

    def coefficients(self, step: int) -> dict[str, float]:
        """What the loss is weighted with at this step, for the log."""
        return {}


ObjectiveRecipe: TypeAlias = Callable[[], Objective]
"""An `Objective` class, or a `functools.partial` of one: called as `recipe()`."""


class ELBO(Objective):
    """loss = beta KL(q(z|x) || p(z)) - E_q[log p(x|z)]; with beta = 1 it is minus the ELBO, a lower bound of log p(x).

    Kingma & Welling 2014 (https://arxiv.org/abs/1312.6114), eq. 3. For beta above 1 minus the loss is still a lower
    bound (beta-VAE, Higgins et al. 2017), for beta below 1 it bounds nothing; the term `elbo` has beta = 1 always.
    """

    def __init__(self, beta: float | Schedule = 1.0, num_samples: int = 1) -> None:
        super().__init__()
        _at_least_one("ELBO", "num_samples", num_samples)
        self.beta = beta if isinstance(beta, Schedule) else Constant(beta)
        self.num_samples = num_samples

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        terms = elbo_terms(trace)
        return {"loss": self.beta(step) * terms["kl"] - terms["log_likelihood"], **terms}

    def coefficients(self, step: int) -> dict[str, float]:
        return {"beta": self.beta(step)}


class IWAE(Objective):
    """loss = -log 1/K sum_k w_k with w_k = p(x, z_k) / q(z_k|x): minus a bound that K makes tighter than the ELBO.

    Burda, Grosse & Salakhutdinov 2016 (https://arxiv.org/abs/1509.00519), eq. 8. `iwae` is the bound.
    """

    def __init__(self, num_samples: int = 5) -> None:
        super().__init__()
        _at_least_one("IWAE", "num_samples", num_samples)
        self.num_samples = num_samples

    def forward(self, trace: Trace, step: int) -> dict[str, Tensor]:
        iwae = log_mean_exp(trace.log_weight())
        return {"loss": -iwae, "iwae": iwae, **elbo_terms(trace)}


def elbo_terms(trace: Trace) -> dict[str, Tensor]:
    """ELBO = E_q[log p(x|z)] - sum of KL(q || p) over the latents, and its parts: [B] nats each."""
    log_likelihood = trace.log_likelihood().mean(0)  # [K, B] -> [B]
    kls = trace.kl()
    kl = sum(kls.values(), torch.zeros_like(log_likelihood))
    parts = {f"kl/{name}": value for name, value in kls.items()}
    return {"elbo": log_likelihood - kl, "log_likelihood": log_likelihood, "kl": kl, **parts}


def log_mean_exp(log_w: Tensor) -> Tensor:
    """log 1/K sum_k e^(log w_k), over the first dimension: [K, B] -> [B]."""
    return torch.logsumexp(log_w, dim=0) - math.log(log_w.shape[0])


def _at_least_one(owner: str, name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{owner}: {name} is {value}; it must be at least 1")
