"""Objectives that hold the KL, or the reconstruction, at a wanted value.

Each uses a mean over the batch. With several ranks this is one rank's batch, except for GECO's multiplier, which uses
the mean over all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vae_lightning.objectives.elbo import Objective, check_latents, elbo_terms
from vae_lightning.objectives.schedules import Schedule, as_schedule, at_least
from vae_lightning.trace import Trace, distribution_name
from vae_lightning.types import UserError


class FreeBits(Objective):
    """loss = sum_g max(floor, mean_B KL_g) - E_q[log p(x|z)]: below `floor` nats, more information costs nothing.

    Choose it if latents collapse. A group g is a latent, or one dimension of a latent. The KL is averaged over the
    batch before the maximum, as in Kingma et al. 2016 (https://arxiv.org/abs/1606.04934). Minus the loss is a lower
    bound of log p(x), below the ELBO by the free nats that are not used. The term `kl_charged` is the sum over g.

    Args:
        floor: The free nats of each group, at least 0.
        per_dimension: Whether each dimension of each latent is a group; otherwise each latent is one.
        num_samples: K, the samples of z for each image.
        kwargs: Arguments of `Objective`.

    Raises:
        UserError: if `per_dimension` is set and the dimensions of a posterior or prior depend on each other.
    """

    def __init__(self, floor: float = 0.5, per_dimension: bool = False, num_samples: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        at_least("FreeBits", 1, num_samples=num_samples)
        self.num_samples = num_samples
        at_least("FreeBits", 0, floor=floor)
        self.floor, self.per_dimension = floor, per_dimension

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        check_latents(self, trace)
        terms = elbo_terms(trace)
        charged = torch.stack([self._charge(kl) for kl in self._groups(trace).values()]).sum(0)
        return {"loss": charged - terms["log_likelihood"], "kl_charged": charged, **terms}

    def _groups(self, trace: Trace) -> dict[str, Tensor]:
        if not self.per_dimension:
            return trace.kl()
        for name, latent in trace.latents.items():
            if latent.pointwise() is None:
                raise UserError(
                    "FreeBits: per_dimension needs a posterior and a prior with independent dimensions, such as "
                    f"DiagonalNormal and StandardNormal; latent {name} has {distribution_name(latent.q)} and "
                    f"{distribution_name(latent.p)}"
                )
        return trace.kl_by_dimension()

    def _charge(self, kl: Tensor) -> Tensor:
        """[B, *group] -> [B], with the mean sum_g max(floor, mean_B KL_g)."""
        flat = kl.reshape(len(kl), -1)  # [B, G]
        return torch.where(flat.mean(0) > self.floor, flat, self.floor).sum(1)

    def coefficients(self, step: int) -> dict[str, float]:
        return {"free_nats": self.floor}


class Capacity(Objective):
    """loss = gamma |mean_B KL - C(step)| - E_q[log p(x|z)]: the total KL follows a capacity of C nats.

    The KL is that of all latents together. Choose it to let information in slowly, for disentangled latents.
    Burgess et al. 2018 (https://arxiv.org/abs/1804.03599). Minus the loss is no bound of log p(x); the term `elbo` is.

    Args:
        capacity: C in nats, at least 0: a number or a schedule, such as LinearWarmup(num_steps=100_000, end=25).
        gamma: The weight of the distance from the capacity, at least 0.
        num_samples: K, the samples of z for each image.
        kwargs: Arguments of `Objective`.
    """

    def __init__(
        self, capacity: float | Schedule = 25.0, gamma: float = 1000.0, num_samples: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        at_least("Capacity", 1, num_samples=num_samples)
        self.num_samples = num_samples
        self.capacity = as_schedule(capacity)
        at_least("Capacity", 0, gamma=gamma, capacity=self.capacity.lowest)
        self.gamma = gamma

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        check_latents(self, trace)
        terms = elbo_terms(trace)
        excess = terms["kl"] - self.capacity(step)
        side = excess.detach().mean().sign()  # |mean KL - C| is the mean of side * excess over the batch
        return {"loss": self.gamma * side * excess - terms["log_likelihood"], **terms}

    def coefficients(self, step: int) -> dict[str, float]:
        return {"capacity": self.capacity(step), "gamma": self.gamma}


class GECO(Objective):
    """loss = KL + multiplier (goal - E_q[log p(x|z)]): the least KL with which log p(x|z) reaches `goal` nats an image.

    Choose it if you know the reconstruction that you want. Rezende & Viola 2018 (https://arxiv.org/abs/1810.00597),
    algorithm 1, with the constraint C = goal - log p(x|z) in nats per dimension of x. After the loss of each training
    batch, multiplier <- multiplier exp(rate mean C). The mean is over the batch, the ranks and, by `smoothing`, past
    batches, and starts at 0. The update is per batch: several per step with accumulated gradients, and one also if the
    step is skipped. Deviations: C is clipped to +-1 and the multiplier to [1e-6, 1e6], so that a first batch far from
    the goal does not decide the run. The loss is no bound; once the multiplier is constant, the loss is the multiplier
    times that of an ELBO with beta = 1 / multiplier.

    Args:
        goal: The wanted E_q[log p(x|z)], in nats an image.
        rate: The step size of the logarithm of the multiplier, at least 0.
        smoothing: The weight of the past in the running mean of C, from 0 to below 1.
        num_samples: K, the samples of z for each image.
        kwargs: Arguments of `Objective`.
    """

    in_one_graph = False
    multiplier: Tensor
    average: Tensor

    def __init__(
        self, goal: float, rate: float = 0.1, smoothing: float = 0.99, num_samples: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        at_least("GECO", 1, num_samples=num_samples)
        self.num_samples = num_samples
        at_least("GECO", 0, rate=rate)
        if not 0 <= smoothing < 1:
            raise UserError(f"GECO: smoothing is {smoothing}; it is the weight of the past, from 0 to below 1")
        self.goal, self.rate, self.smoothing = goal, rate, smoothing
        self.register_buffer("multiplier", torch.tensor(1.0))
        self.register_buffer("average", torch.tensor(0.0))

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        terms = elbo_terms(trace)
        shortfall = self.goal - terms["log_likelihood"]
        loss = terms["kl"] + self.multiplier.clone() * shortfall
        if self.training and torch.is_grad_enabled():
            self._update(shortfall.detach().mean() / trace.x[0].numel())
        return {"loss": loss, **terms}

    @torch.no_grad()
    def _update(self, shortfall: Tensor) -> None:
        constraint = (
            mean_over_ranks(shortfall).nan_to_num(0.0).clamp(-1, 1)
        )  # a NaN loss is not learned from, so it must not change the multiplier
        self.average.lerp_(constraint.to(self.average.dtype), 1 - self.smoothing)
        self.multiplier.mul_(torch.exp(self.rate * self.average)).clamp_(1e-6, 1e6)

    def coefficients(self, step: int) -> dict[str, float]:
        return {"goal": self.goal, "multiplier": self.multiplier.item()}


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a number over the processes of a run: the same result on every rank."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    total = value.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()
