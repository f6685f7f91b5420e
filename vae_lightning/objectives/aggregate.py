"""Objectives of the aggregate posterior q(z) = 1/N sum_n q(z|x_n), which is estimated from the batch.

With several ranks each rank estimates from its own batch, so the estimates depend on the batch size of one rank.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae_lightning.objectives.elbo import Objective, check_latents, check_not_enumerated, check_not_masked, elbo_terms
from vae_lightning.objectives.schedules import Schedule, as_schedule, at_least
from vae_lightning.trace import Latent, Trace, distribution_name, factors
from vae_lightning.types import UserError


class BetaTC(Objective):
    """loss = alpha I(x; z) + beta TC(z) + gamma sum_d KL(q(z_d) || p(z_d)) - E_q[log p(x|z)].

    Choose it for disentangled latents. Chen et al. 2018 (https://arxiv.org/abs/1802.04942). The first three terms
    are the parts of the KL: `index_code_mi` E log q(z|x) / q(z), `total_correlation` E log q(z) / prod_d q(z_d), and
    `dimensionwise_kl` E log prod_d q(z_d) / p(z). Each is taken at the samples, so their sum is the sampled KL. With
    alpha = gamma = 1 <= beta minus the loss is a lower bound of log p(x), up to the error of the estimates.

    q(z) is estimated by stratified sampling (their appendix). An image's own posterior has weight 1/N; the other images
    of the batch share the rest equally. The paper shares the rest unequally, with the same mean. A batch of one image
    says nothing about q(z): the mutual information is then log N and the total correlation (D - 1) log N for any q,
    without a gradient. All latents together are one z. Each needs a q with independent dimensions that depends on x
    only.

    Args:
        dataset_size: N, the number of images in the training set, at least 2.
        beta: The weight of the total correlation, at least 0: a number or a schedule.
        alpha: The weight of the mutual information, at least 0.
        gamma: The weight of the KL of single dimensions, at least 0.
        num_samples: K, the samples of z for each image.
        kwargs: Arguments of `Objective`.

    Raises:
        UserError: for a q with dependent dimensions or one that depends on another latent, or a batch larger than N.
    """

    def __init__(
        self,
        dataset_size: int,
        beta: float | Schedule = 6.0,
        alpha: float = 1.0,
        gamma: float = 1.0,
        num_samples: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least("BetaTC", 1, num_samples=num_samples)
        self.num_samples = num_samples
        at_least("BetaTC", 2, dataset_size=dataset_size)
        at_least("BetaTC", 0, alpha=alpha, gamma=gamma)
        self.dataset_size, self.alpha, self.gamma = dataset_size, alpha, gamma
        self.beta = as_schedule(beta)
        at_least("BetaTC", 0, beta=self.beta.lowest)

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        check_latents(self, trace)
        check_not_enumerated("BetaTC", trace)
        check_not_masked("BetaTC", trace)
        mi, tc, dimensionwise = (part.mean(0) for part in self.parts(trace))  # [K, B] -> [B]
        kl = self.alpha * mi + self.beta(step) * tc + self.gamma * dimensionwise
        terms = elbo_terms(trace)
        parts = {"index_code_mi": mi, "total_correlation": tc, "dimensionwise_kl": dimensionwise}
        return {"loss": kl - terms["log_likelihood"], **terms, **parts}

    def parts(self, trace: Trace) -> tuple[Tensor, Tensor, Tensor]:
        """log q(z|x)/q(z), log q(z)/prod_d q(z_d) and log prod_d q(z_d)/p(z) at the samples: [K, B] nats each."""
        pairs = torch.cat([self._pairs(name, latent, trace) for name, latent in trace.latents.items()], -1)
        own = pairs.sum(-1)  # log q(z_i|x_j): [K, B, B]
        log_weight = self._log_weight(own)  # [B, B]
        log_q_z = torch.logsumexp(own + log_weight, 2)  # [K, B]
        log_product = torch.logsumexp(pairs + log_weight[..., None], 2).sum(-1)  # [K, B, B, D] -> [K, B]
        log_q = own.diagonal(dim1=1, dim2=2)
        log_p = torch.stack([latent.log_p() for latent in trace.latents.values()]).sum(0)
        return log_q - log_q_z, log_q_z - log_product, log_product - log_p

    @staticmethod
    def _pairs(name: str, latent: Latent, trace: Trace) -> Tensor:
        """log q(z_id|x_j) of every sample under the posterior of every example: [K, B, B, D] nats."""
        q = factors(latent.q)
        if q is None:
            raise UserError(
                "BetaTC: needs a posterior with independent dimensions, such as DiagonalNormal; "
                f"that of latent {name} is {distribution_name(latent.q)}"
            )
        if latent.q.batch_shape != (len(trace.x),):
            raise UserError(
                f"BetaTC: the posterior of latent {name} depends on another latent's sample, so it has no aggregate "
                "over the images; use a model whose latents depend on x only, or another objective, such as ELBO"
            )
        return q.log_prob(latent.z.unsqueeze(2)).flatten(3)

    def _log_weight(self, own: Tensor) -> Tensor:
        """log of the weight of image j in q(z_i): 1/N for the own image, (1 - 1/N) / (B - 1) for the others."""
        size, total = own.shape[-1], self.dataset_size
        if size > total:
            raise UserError(
                f"BetaTC: dataset_size is {total}, but a batch has {size} images; give the size of the training set"
            )
        rest = math.log1p(-1 / total) - math.log(max(size - 1, 1))
        weight = torch.full((size, size), rest, dtype=own.dtype, device=own.device)
        return weight.fill_diagonal_(-math.log(total))

    def coefficients(self, step: int) -> dict[str, float]:
        return {"alpha": self.alpha, "beta": self.beta(step), "gamma": self.gamma}


class Kernel(ABC):
    """k(x, y) as a function of |x - y|^2 in `size` dimensions, with k(x, x) constant."""

    @abstractmethod
    def __call__(self, square_distance: Tensor, size: int) -> Tensor: ...


@dataclass(frozen=True)
class RBF(Kernel):
    """k(x, y) = exp(-|x - y|^2 / (2 D width^2)), a Gaussian kernel for vectors of D numbers.

    Args:
        width: The width for a prior of unit scale in each dimension; above 0.
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise UserError(f"RBF: width is {self.width}; it must be above 0")

    def __call__(self, square_distance: Tensor, size: int) -> Tensor:
        return torch.exp(-square_distance / (2 * size * self.width**2))


@dataclass(frozen=True)
class IMQ(Kernel):
    """k(x, y) = sum_s 2 D s / (2 D s + |x - y|^2), the inverse multiquadratic kernel (Tolstikhin et al. 2018).

    Its heavy tails give distant samples a gradient, unlike `RBF`.

    Args:
        scales: The scales s, each above 0; several cover small and large distances.
    """

    scales: Sequence[float] = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

    def __post_init__(self) -> None:
        if not self.scales or not min(self.scales) > 0:
            raise UserError(f"IMQ: scales is {list(self.scales)}; it needs one or more, each above 0")

    def __call__(self, square_distance: Tensor, size: int) -> Tensor:
        widths = [2 * size * scale for scale in self.scales]
        return torch.stack([width / (width + square_distance) for width in widths]).sum(0)


class InfoVAE(Objective):
    """loss = kl_weight KL(q(z|x) || p(z)) + mmd_weight MMD^2(q(z), p(z)) - E_q[log p(x|z)].

    Choose it if the KL makes the decoder ignore z. InfoVAE (Zhao, Song & Ermon 2019, https://arxiv.org/abs/1706.02262)
    has kl_weight = 1 - alpha and mmd_weight = alpha + lambda - 1. With kl_weight = 0 it is the WAE-MMD of Tolstikhin et
    al. 2018 (https://arxiv.org/abs/1711.01558), algorithm 2, with cost -log p(x|z). With kl_weight >= 1 minus the loss
    is on average a lower bound of log p(x); otherwise it is no bound. The term `mmd` has no unit. It is the unbiased
    estimate of MMD^2 over the batch, summed over latents, and may be negative.

    Args:
        mmd_weight: The weight of MMD^2, at least 0.
        kl_weight: The weight of the KL, at least 0.
        kernel: The kernel of the MMD: `IMQ` or `RBF`.
        num_samples: K, the samples of z for each image.
        kwargs: Arguments of `Objective`.

    Raises:
        UserError: if a prior depends on another latent's sample.
    """

    def __init__(
        self,
        mmd_weight: float = 100.0,
        kl_weight: float = 0.0,
        kernel: Callable[[], Kernel] = IMQ,
        num_samples: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        at_least("InfoVAE", 1, num_samples=num_samples)
        self.num_samples = num_samples
        at_least("InfoVAE", 0, mmd_weight=mmd_weight, kl_weight=kl_weight)
        self.mmd_weight, self.kl_weight = mmd_weight, kl_weight
        self.kernel = kernel()

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        check_latents(self, trace)
        check_not_enumerated("InfoVAE", trace)
        check_not_masked("InfoVAE", trace)
        terms = elbo_terms(trace)
        parts = [self._mmd(name, latent) for name, latent in trace.latents.items()]
        mmd = torch.stack(parts).sum(0)
        loss = self.kl_weight * terms["kl"] + self.mmd_weight * mmd - terms["log_likelihood"]
        return {"loss": loss, "mmd": mmd, **terms}

    def _mmd(self, name: str, latent: Latent) -> Tensor:
        if len(latent.p.batch_shape) > 1:
            raise UserError(
                f"InfoVAE: the prior of latent {name} depends on another latent's sample, so the batch has no samples "
                "of the prior to compare with; use a model whose latents are independent in the prior, or another "
                "objective"
            )
        missing = latent.z.shape[: 2 - len(latent.p.batch_shape)]  # the prior's batch shape is [] or [B]
        from_p = latent.p.rsample(missing) if latent.p.has_rsample else latent.p.sample(missing)
        return mmd_terms(latent.z.flatten(2), from_p.flatten(2), self.kernel).mean(0)

    def coefficients(self, step: int) -> dict[str, float]:
        return {"kl_weight": self.kl_weight, "mmd_weight": self.mmd_weight}


def mmd_terms(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y'), over pairs of examples: [K, B] terms, whose mean is the estimate.

    Unbiased, because no example is paired with itself; so y may belong to the example of x (a conditional prior).
    Gretton et al. 2012 (https://jmlr.org/papers/v13/gretton12a.html), lemma 6.

    Args:
        x: Samples of q, [K, B, D].
        y: Samples of p, [K, B, D].
        kernel: The kernel k.
    """
    across = _gram(x, y, kernel)  # [K, B, B]
    pairs = _gram(x, x, kernel) + _gram(y, y, kernel) - across - across.mT
    return (pairs.sum(2) - pairs.diagonal(dim1=1, dim2=2)) / max(x.shape[1] - 1, 1)


def _gram(x: Tensor, y: Tensor, kernel: Kernel) -> Tensor:
    """k(x_i, y_j): [K, B, B]."""
    square_distance = (x[:, :, None] - y[:, None]).square().sum(-1)
    return kernel(square_distance, x.shape[-1])
