"""Gaussians whose dimensions are correlated: full, low-rank, and rank-one in the precision."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, LowRankMultivariateNormal, MultivariateNormal, constraints
from torch.nn import functional as F

from vae_lightning.distributions.families import Family
from vae_lightning.types import Shape, UserError


class VectorNormal(Family):
    """A Gaussian over vectors [D]; `min_sigma` is a floor, in the units of z."""

    def __init__(self, event_shape: Shape, min_sigma: float = 1e-3) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1:
            raise UserError(
                f"{type(self).__name__}: its covariance is over vectors [D], event_shape is {self.event_shape}; "
                "DiagonalNormal takes any shape"
            )
        if min_sigma < 0:
            raise UserError(f"{type(self).__name__}: min_sigma is {min_sigma}; it must be at least 0")
        self.min_sigma = min_sigma

    @property
    def size(self) -> int:
        """D."""
        return self.event_shape[0]

    def sigma(self, raw: Tensor) -> Tensor:
        return self.min_sigma + F.softplus(raw)


class TriangularNormal(VectorNormal):
    """What `FullNormal` and `LinearIAF` are made of: mu [D], sigma [D] and I + W / D^1/2, W strictly lower triangular.

    The features are mu, the raw sigma and W, row by row [D (D - 1) / 2].
    """

    @property
    def param_shape(self) -> Shape:
        return (2 * self.size + self.size * (self.size - 1) // 2,)

    def parts(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu [..., D], sigma [..., D] and I + W / D^1/2 [..., D, D]."""
        mu, raw, below = features.split([self.size, self.size, self.param_shape[0] - 2 * self.size], dim=-1)
        rows, columns = torch.tril_indices(self.size, self.size, offset=-1, device=features.device)
        triangle = torch.diag_embed(torch.ones_like(mu))
        triangle[..., rows, columns] = below / self.size**0.5
        return mu, self.sigma(raw), triangle


class FullNormal(TriangularNormal):
    """N(mu, L L^T), with L = diag(sigma) (I + W / D^1/2), W strictly lower triangular: any covariance.

    The features are mu [D], the raw sigma [D] and W, row by row [D (D - 1) / 2]; sigma is at least `min_sigma`.
    Closed-form KL against `StandardNormal` and every other Gaussian. O(D^2) in memory and in time.
    Kingma & Welling 2019 (https://arxiv.org/abs/1906.02691), section 2.5.1, but for the scale of W.

    The encoder's gradient passes through D^2 / 2 numbers in W, each with its own noise: by D^1/2 and sigma it is as
    noisy as through the D of sigma, and trains as well.
    """

    def distribution(self, features: Tensor) -> MultivariateNormal:
        mu, sigma, triangle = self.parts(features)
        return FullPrecisionNormal(mu, scale_tril=sigma[..., None] * triangle, validate_args=self.validate_args)


class LowRankNormal(VectorNormal):
    """N(mu, diag sigma^2 + W W^T), with W [D, rank]: the `rank` directions in which z varies beyond sigma.

    The features are mu [D], the raw sigma [D] and W, row by row [D rank]. No direction is narrower than `min_sigma`.
    Closed-form KL against `StandardNormal` and every other Gaussian. O(D rank^2). At W = 0 its gradient is 0, so a
    layer that starts there stays there; u of `RankOneNormal` likewise.
    """

    def __init__(self, event_shape: Shape, rank: int = 1, min_sigma: float = 1e-3) -> None:
        super().__init__(event_shape, min_sigma)
        if not 1 <= rank <= self.size:
            raise UserError(f"LowRankNormal: rank is {rank}; it must be from 1 to the {self.size} dimensions of z")
        self.rank = rank
        self.num_params = 2 + rank

    def distribution(self, features: Tensor) -> LowRankMultivariateNormal:
        mu, raw, flat = features.split([self.size, self.size, self.size * self.rank], dim=-1)
        w = flat.unflatten(-1, (self.size, self.rank))
        return _FullPrecisionLowRank(mu, w, self.sigma(raw).square(), validate_args=self.validate_args)


class RankOneNormal(VectorNormal):
    """N(mu, C) with C^-1 = diag(1 / sigma^2) + u u^T: one direction u in which z is narrower than sigma.

    The features are mu, the raw sigma and u, each [D]. Rezende, Mohamed & Wierstra 2014
    (https://arxiv.org/abs/1401.4082), section 4.3, appendix B. sigma is at least `min_sigma`; along u the standard
    deviation is smaller, and has no floor. Closed-form KL against `StandardNormal` and every other
    Gaussian. O(D), but for a KL against a full or a low-rank one.
    """

    num_params = 3

    def distribution(self, features: Tensor) -> RankOneMultivariateNormal:
        mu, raw, u = features.chunk(3, dim=-1)
        return RankOneMultivariateNormal(mu, self.sigma(raw).pow(-2), u, validate_args=self.validate_args)


class _FullPrecision(Distribution):
    """Samples and densities by products of matrices that autocast leaves alone: z is drawn where the model runs."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        with torch.autocast(self.mean.device.type, enabled=False):
            return super().rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        with torch.autocast(self.mean.device.type, enabled=False):
            return super().log_prob(value)


class FullPrecisionNormal(_FullPrecision, MultivariateNormal): ...


class _FullPrecisionLowRank(_FullPrecision, LowRankMultivariateNormal): ...


class RankOneMultivariateNormal(Distribution):
    """N(mu, C) with C^-1 = diag(d) + u u^T, d > 0; mu, d and u are [..., D].

    With a = u^T diag(1/d) u and eta = 1 / (1 + a): C = diag(1/d) - eta (u/d)(u/d)^T, log |C| = log eta - sum log d, and
    C = R R^T for R = diag(d^-1/2) - b (u/d)(u/d^(1/2))^T. The paper's b = (1 - eta^(1/2)) / a is 0/0 at a = 0; since
    1 - eta = a eta it equals eta / (1 + eta^(1/2)), which has nothing to guard and no digits to lose.
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "precision_diag": constraints.independent(constraints.positive, 1),
        "precision_factor": constraints.real_vector,
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Tensor, precision_diag: Tensor, precision_factor: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.precision_diag, self.precision_factor = torch.broadcast_tensors(
            loc, precision_diag, precision_factor
        )
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RankOneMultivariateNormal:
        shape = (*batch_shape, *self.event_shape)
        parts = [part.expand(shape) for part in (self.loc, self.precision_diag, self.precision_factor)]
        return RankOneMultivariateNormal(parts[0], parts[1], parts[2], validate_args=self._validate_args)

    @property
    def _w(self) -> Tensor:
        """u / d^(1/2): u in the units of the uncorrelated part. [..., D]"""
        return self.precision_factor * self.precision_diag.rsqrt()

    @property
    def _eta(self) -> Tensor:
        """[..., 1]"""
        return 1 / (1 + self._w.square().sum(-1, keepdim=True))

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        """diag C = (1 + a - w^2) eta / d."""
        w2 = self._w.square()
        others = (w2.sum(-1, keepdim=True) - w2).clamp(min=0)  # rounding alone could make it negative
        return (1 + others) * self._eta / self.precision_diag

    @property
    def log_det_covariance(self) -> Tensor:
        """log |C| = log eta - sum log d: [...]."""
        return self._eta.squeeze(-1).log() - self.precision_diag.log().sum(-1)

    @property
    def precision_matrix(self) -> Tensor:
        """diag(d) + u u^T, for what is dense beside it: [..., D, D]."""
        u = self.precision_factor
        return torch.diag_embed(self.precision_diag) + u[..., :, None] * u[..., None, :]

    @property
    def covariance_matrix(self) -> Tensor:
        """C, for what is dense beside it: [..., D, D]."""
        u_d = self.precision_factor / self.precision_diag
        outer = self._eta[..., None] * u_d[..., :, None] * u_d[..., None, :]
        return torch.diag_embed(1 / self.precision_diag) - outer

    def covariance_times(self, v: Tensor) -> Tensor:
        """C v, for v [..., D]."""
        v_d, u_d = v / self.precision_diag, self.precision_factor / self.precision_diag
        return v_d - self._eta * u_d * (u_d * v).sum(-1, keepdim=True)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """mu + R eps."""
        shape = self._extended_shape(torch.Size(sample_shape))
        eps = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + self.factor_times(eps)

    def factor_times(self, eps: Tensor) -> Tensor:
        """R eps, for eps [..., D]."""
        w, eta = self._w, self._eta
        b = eta / (1 + eta.sqrt())
        return (eps - b * w * (w * eps).sum(-1, keepdim=True)) * self.precision_diag.rsqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = value - self.loc
        distance = (self.precision_diag * x.square()).sum(-1) + (self.precision_factor * x).sum(-1).square()
        return -0.5 * (distance + self.log_det_covariance + self.event_shape[0] * math.log(2 * math.pi))

    def entropy(self) -> Tensor:
        """1/2 log |2 pi e C|."""
        return 0.5 * (self.log_det_covariance + self.event_shape[0] * (1 + math.log(2 * math.pi)))
