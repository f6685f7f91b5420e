"""KL(q || p) in closed form, for the pairs that torch lacks. Importing this file registers them with torch.

`Latent.kl` asks torch, and falls back on the sampled log q - log p if no closed form is registered.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.distributions import (
    Bernoulli,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    kl_divergence,
    register_kl,
)

from vae_lightning.distributions.gaussians import (
    Exact,
    FullPrecisionNormal,
    LowRankMultivariateNormal,
    RankOneMultivariateNormal,
)
from vae_lightning.distributions.groups import Groups
from vae_lightning.distributions.masks import MaskedPositions
from vae_lightning.distributions.sphere import UniformOnSphere, VonMisesFisherDistribution

_Correlated: TypeAlias = MultivariateNormal | LowRankMultivariateNormal | RankOneMultivariateNormal
_DENSE = (MultivariateNormal, LowRankMultivariateNormal)
_KL = TypeVar("_KL", bound=Callable[..., Tensor])


def closed_form(*pairs: tuple[type[Distribution], type[Distribution]]) -> Callable[[_KL], _KL]:
    """Register a function of (q, p) as KL(q || p) for each pair of classes."""

    def register(kl: _KL) -> _KL:
        for q, p in pairs:
            register_kl(q, p)(kl)
        return kl

    return register


def _diagonal(p: Independent) -> Normal:
    """The Normal of each dimension.

    Raises:
        NotImplementedError: if p is another distribution, or not over vectors.
    """
    if isinstance(p.base_dist, Normal) and p.reinterpreted_batch_ndims == 1:
        return p.base_dist
    raise NotImplementedError


def exactly(kl: _KL) -> _KL:
    """In float64 if q or p has a float64 form, because a small covariance has a large precision.

    The result has q's dtype.
    """

    def of_exact(q: Distribution, p: Distribution) -> Tensor:
        q_exact, p_exact = (d.exact() if isinstance(d, Exact) else d for d in (q, p))
        return kl(q_exact, p_exact).to(q.mean.dtype)

    return of_exact  # type: ignore[return-value]


@closed_form(*((q, Independent) for q in (*_DENSE, RankOneMultivariateNormal)))
def _kl_correlated_diagonal(q: Distribution, p: Independent) -> Tensor:
    """1/2 sum [log 2 pi s^2 + (C_ii + (mu - m)^2) / s^2] - H[q], for p = N(m, diag s^2) and any Gaussian q."""
    base = _diagonal(p)
    distance = (q.variance + (q.mean - base.loc).square()) / base.scale.square()
    return 0.5 * (distance + math.log(2 * math.pi) + 2 * base.scale.log()).sum(-1) - q.entropy()


@closed_form(*((Independent, p) for p in (*_DENSE, RankOneMultivariateNormal)))
@exactly
def _kl_diagonal_correlated(q: Independent, p: _Correlated) -> Tensor:
    """1/2 sum_i P_ii s_i^2 - log p(m) - H[q], for q = N(m, diag s^2) and a Gaussian p with precision P."""
    base = _diagonal(q)
    if isinstance(p, RankOneMultivariateNormal):
        precision = p.precision_diag + p.precision_factor.square()
    else:
        precision = p.precision_matrix.diagonal(dim1=-2, dim2=-1)
    return 0.5 * (precision * base.variance).sum(-1) - p.log_prob(base.loc) - q.entropy()


@closed_form((RankOneMultivariateNormal, RankOneMultivariateNormal))
@exactly
def _kl_rank_one(q: RankOneMultivariateNormal, p: RankOneMultivariateNormal) -> Tensor:
    """1/2 tr(P C) - log p(mu) - H[q], with tr(P C) = sum d_i C_ii + u^T C u for p's d and u and q's C: O(D)."""
    u = p.precision_factor
    trace = (p.precision_diag * q.variance).sum(-1) + (u * q.covariance_times(u)).sum(-1)
    return 0.5 * trace - p.log_prob(q.loc) - q.entropy()


@closed_form(
    *((q, RankOneMultivariateNormal) for q in _DENSE),
    *((RankOneMultivariateNormal, p) for p in _DENSE),
    *((LowRankMultivariateNormal, p) for p in _DENSE),
    (MultivariateNormal, LowRankMultivariateNormal),
    (FullPrecisionNormal, FullPrecisionNormal),
)
@exactly
def _kl_dense(q: _Correlated, p: _Correlated) -> Tensor:
    """1/2 tr(P C) - log p(mu) - H[q]: O(D^2)."""
    trace = (p.precision_matrix * q.covariance_matrix).sum((-2, -1))
    return 0.5 * trace - p.log_prob(q.loc) - q.entropy()


@closed_form((VonMisesFisherDistribution, UniformOnSphere))
def _kl_von_mises_fisher_uniform(q: VonMisesFisherDistribution, p: UniformOnSphere) -> Tensor:
    """log area - H[q] = kappa A(kappa) + log C_D(kappa) + log area."""
    return q.kl_to_uniform().expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))


@closed_form((Groups, Groups))
def _kl_groups(q: Groups, p: Groups) -> Tensor:
    """The sum over groups, because the groups are independent."""
    if q.group_size != p.group_size:
        raise NotImplementedError
    return kl_divergence(q.base, p.base).sum(-1)


@closed_form((Independent, Independent))
def _kl_independent(q: Independent, p: Independent) -> Tensor:
    """The sum over the leading dimensions in which both are independent. torch's KL needs an equal number of them.

    So normals with a covariance at each step have a closed form against normals that are independent throughout.
    """
    if q.event_shape != p.event_shape:
        raise NotImplementedError
    shared = min(q.reinterpreted_batch_ndims, p.reinterpreted_batch_ndims)
    kl = kl_divergence(_leading_apart(q, shared), _leading_apart(p, shared))
    return kl.flatten(-shared).sum(-1) if shared else kl


def _leading_apart(p: Independent, num_dims: int) -> Distribution:
    """p with the first dimensions of its event in the batch.

    Raises:
        NotImplementedError: if p hides only some of the dimensions that remain of its event.
    """
    rest, base = p.reinterpreted_batch_ndims - num_dims, p.base_dist
    if not rest:
        return base
    if not isinstance(base, MaskedPositions):
        return Independent(base, rest, validate_args=False)
    if base.seen.shape[-rest:].numel() > 1:
        raise NotImplementedError
    return MaskedPositions(Independent(base.base_dist, rest, validate_args=False), base.seen.flatten(-rest).squeeze(-1))


@closed_form((MaskedPositions, MaskedPositions), (MaskedPositions, Distribution), (Distribution, MaskedPositions))
def _kl_masked(q: Distribution, p: Distribution) -> Tensor:
    """The KL of every position that is seen under both; 0 of the others."""
    bases = [one.base_dist if isinstance(one, MaskedPositions) else one for one in (q, p)]
    kl = kl_divergence(*bases)
    for one in (q, p):
        kl = one.only_seen(kl) if isinstance(one, MaskedPositions) else kl
    return kl


@closed_form((Bernoulli, Bernoulli))
def _kl_bernoulli(q: Bernoulli, p: Bernoulli) -> Tensor:
    """q1 log(q1 / p1) + q0 log(q0 / p0). Replaces torch's KL, which fails if the batch shapes broadcast."""
    terms = []
    for sign, q_i, p_i in ((1, q.probs, p.probs), (-1, 1 - q.probs, 1 - p.probs)):
        log_ratio = torch.nn.functional.logsigmoid(sign * q.logits) - torch.nn.functional.logsigmoid(sign * p.logits)
        zero, infinite = torch.zeros_like(log_ratio), torch.full_like(log_ratio, math.inf)
        terms.append(torch.where(q_i == 0, zero, torch.where(p_i == 0, infinite, q_i * log_ratio)))
    return terms[0] + terms[1]
