"""Gaussians with correlated dimensions: full, low-rank, and rank-one in the precision.

Samples are float32, as the features are. Densities are computed from the same features in float64, because
|z - mu| / sigma is the small difference of large numbers if z varies a thousand times more in one direction than in
another.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, constraints
from torch.nn import functional as F

from vae_lightning.distributions.families import Family
from vae_lightning.types import Shape, UserError


class Exact(Distribution):
    """A distribution whose densities come from `in_float64()`, the same distribution from the same features in float64.

    If `in_float64` is None, densities are computed in the features' type. Autocast is off for densities and samples,
    because it would round the matrix products.
    """

    in_float64: Callable[[], Distribution] | None = None

    def exact(self) -> Distribution:
        """This distribution in float64 if there is one.

        Built anew at each call, because it belongs to the present autograd graph.
        """
        return self if self.in_float64 is None else self.in_float64().expand(self.batch_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        wide = super().expand(batch_shape, _instance)
        wide.in_float64 = self.in_float64
        return wide

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        with torch.autocast(self.mean.device.type, enabled=False):
            return super().rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        with torch.autocast(value.device.type, enabled=False):
            if self.in_float64 is None:
                return super().log_prob(value)
            return self.exact().log_prob(value.double()).to(value.dtype)


_Gaussian = TypeVar("_Gaussian", bound=Exact)


def with_float64(make: Callable[..., _Gaussian], *features: Tensor) -> _Gaussian:
    """make(*features), with its densities in float64 unless the device has no float64."""
    q = make(*features)
    if features[0].dtype != torch.float64 and features[0].device.type != "mps":
        q.in_float64 = lambda: make(*(part.double() for part in features))
    return q


class VectorNormal(Family):
    """A Gaussian over vectors [D].

    Args:
        event_shape: Shape of one z; the model sets it.
        min_sigma: Floor of sigma, in the units of z.
    """

    def __init__(self, event_shape: Shape, min_sigma: float = 1e-3) -> None:
        super().__init__(event_shape)
        if len(self.event_shape) != 1:
            raise UserError(
                f"{type(self).__name__}: its covariance is over vectors [D], but event_shape is "
                f"{self.event_shape}; DiagonalNormal takes any shape"
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

    def distribution(self, features: Tensor) -> Distribution:
        return with_float64(self.gaussian, features)

    @abstractmethod
    def gaussian(self, features: Tensor) -> Exact:
        """The Gaussian, in the features' own type."""


class TriangularNormal(VectorNormal):
    """The base of `FullNormal` and `LinearIAF`: mu [D], sigma [D] and I + W / D^1/2, W strictly lower triangular.

    The features are mu, the raw sigma and W, row by row [D (D - 1) / 2].

    Args:
        event_shape: Shape of one z; the model sets it.
        min_sigma: Floor of sigma, in the units of z.
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

    Choose it if the dimensions of z are correlated given x, and D is at most a few hundred. The features are mu [D],
    the raw sigma [D] and W, row by row [D (D - 1) / 2]. Closed-form KL against `StandardNormal` and every other
    Gaussian. O(D^2) in memory and in time. Kingma & Welling 2019 (https://arxiv.org/abs/1906.02691), section 2.5.1,
    except for the scale of W: W has D^2/2 noisy entries. Dividing by sqrt(D) and scaling by sigma keeps the encoder's
    gradient as quiet as that of a diagonal sigma.

    Args:
        event_shape: Shape of one z; the model sets it.
        min_sigma: Floor of sigma, in the units of z.
    """

    def gaussian(self, features: Tensor) -> FullPrecisionNormal:
        mu, sigma, triangle = self.parts(features)
        return FullPrecisionNormal(mu, scale_tril=sigma[..., None] * triangle, validate_args=self.validate_args)


class LowRankNormal(VectorNormal):
    """N(mu, diag sigma^2 + W W^T), with W [D, rank]: in `rank` directions z varies more than by sigma.

    Choose it for a large D with few correlated directions. The features are mu [D], the raw sigma [D] and W, row by row
    [D rank]. No direction is narrower than `min_sigma`. Closed-form KL against `StandardNormal` and every other
    Gaussian. O(D rank^2). At W = 0 the gradient of W is 0, so a layer that starts at 0 stays there; so does u of
    `RankOneNormal`.

    Args:
        event_shape: Shape of one z; the model sets it.
        rank: The number of directions, from 1 to D.
        min_sigma: Floor of sigma, in the units of z.
    """

    def __init__(self, event_shape: Shape, rank: int = 1, min_sigma: float = 1e-3) -> None:
        super().__init__(event_shape, min_sigma)
        if not 1 <= rank <= self.size:
            raise UserError(f"LowRankNormal: rank is {rank}; it must be from 1 to the {self.size} dimensions of z")
        self.rank = rank
        self.num_params = 2 + rank

    def gaussian(self, features: Tensor) -> LowRankMultivariateNormal:
        mu, raw, flat = features.split([self.size, self.size, self.size * self.rank], dim=-1)
        w = flat.unflatten(-1, (self.size, self.rank))
        return LowRankMultivariateNormal(mu, self.sigma(raw), w, validate_args=self.validate_args)


class RankOneNormal(VectorNormal):
    """N(mu, C) with C^-1 = diag(1 / sigma^2) + u u^T: in one direction u, z is narrower than sigma.

    The posterior of the DLGM's paper, and the cheapest correlated one. Rezende, Mohamed & Wierstra 2014
    (https://arxiv.org/abs/1401.4082), section 4.3, appendix B. The features are mu, the raw sigma and u, each [D].
    Closed-form KL against `StandardNormal` and every other Gaussian. O(D), except a KL against a full or a low-rank
    one.

    Args:
        event_shape: Shape of one z; the model sets it.
        min_sigma: Floor of sigma, in the units of z. Along u the standard deviation is smaller, and has no floor.
    """

    num_params = 3

    def gaussian(self, features: Tensor) -> RankOneMultivariateNormal:
        mu, raw, u = features.chunk(3, dim=-1)
        return RankOneMultivariateNormal(mu, self.sigma(raw).pow(-2), u, validate_args=self.validate_args)


class FullPrecisionNormal(Exact, MultivariateNormal): ...


class _LowRank(Distribution):
    """N(mu, C) with C = diag(sigma^2) + W W^T; mu and sigma are [..., D], W is [..., D, R].

    With S = diag(sigma) and the QR decomposition [S^-1 W; I] = [A; B] T: C^-1 = S^-1 (I - A A^T) S^-1 and log |C| = 2
    log |S| + 2 log |T|. With y = S^-1 (z - mu) the distance y^T (I - A A^T) y is |y - A A^T y|^2 + |B A^T y|^2. This is
    a sum of squares; Woodbury's identity would subtract one large number from another.
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "sigma": constraints.independent(constraints.positive, 1),
        "factor": constraints.independent(constraints.real, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, sigma: Tensor, factor: Tensor, validate_args: bool | None = None) -> None:
        self.loc, self.sigma, self.factor = loc, sigma, factor
        shape = torch.broadcast_shapes(loc.shape, sigma.shape, factor.shape[:-1])
        super().__init__(shape[:-1], shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        """Expand mu only. The other parameters are broadcast, so they are decomposed once for all copies."""
        loc = self.loc.expand(*batch_shape, *self.event_shape)
        return type(self)(loc, self.sigma, self.factor, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return (self.factor.square().sum(-1) + self.sigma.square()).expand(self.batch_shape + self.event_shape)

    @property
    def covariance_matrix(self) -> Tensor:
        """C, for a KL against a dense Gaussian: [..., D, D]."""
        return self.factor @ self.factor.mT + torch.diag_embed(self.sigma.square())

    @property
    def precision_matrix(self) -> Tensor:
        """C^-1, for a KL against a dense Gaussian: [..., D, D]."""
        a, _, _ = self._orthonormal()
        scaled = a / self.sigma[..., None]
        return torch.diag_embed(self.sigma**-2) - scaled @ scaled.mT

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """mu + W e + sigma e'."""
        shape = self._extended_shape(torch.Size(sample_shape))
        along = torch.randn((*shape[:-1], self.factor.shape[-1]), dtype=self.loc.dtype, device=self.loc.device)
        across = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        return self.loc + (self.factor @ along[..., None])[..., 0] + self.sigma * across

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        a, b, log_det = self._orthonormal()
        y = (value - self.loc) / self.sigma
        along = torch.einsum("...d,...dr->...r", y, a)  # einsum does not copy A for each sample
        across = y - torch.einsum("...r,...dr->...d", along, a)
        rest = torch.einsum("...r,...sr->...s", along, b)
        distance = across.square().sum(-1) + rest.square().sum(-1)
        return -0.5 * (distance + log_det + self.event_shape[0] * math.log(2 * math.pi))

    def entropy(self) -> Tensor:
        """1/2 log |2 pi e C|."""
        log_det = self._orthonormal()[2].expand(self.batch_shape)
        return 0.5 * (log_det + self.event_shape[0] * (1 + math.log(2 * math.pi)))

    def _orthonormal(self) -> tuple[Tensor, Tensor, Tensor]:
        """A [..., D, R], B [..., R, R] and log |C| [...]."""
        scaled = self.factor / self.sigma[..., None]
        *batch, size, rank = scaled.shape
        one = torch.eye(rank, dtype=scaled.dtype, device=scaled.device).expand(*batch, rank, rank)
        orthonormal, triangle = torch.linalg.qr(torch.cat([scaled, one], dim=-2))
        log_det = 2 * triangle.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1) + 2 * self.sigma.log().sum(-1)
        return orthonormal[..., :size, :], orthonormal[..., size:, :], log_det


class LowRankMultivariateNormal(Exact, _LowRank):
    def entropy(self) -> Tensor:
        """In float64, as the density is, because the columns of W may be nearly parallel."""
        return super().entropy() if self.in_float64 is None else self.exact().entropy().to(self.loc.dtype)


class _RankOne(Distribution):
    """N(mu, C) with C^-1 = diag(d) + u u^T, d > 0; mu, d and u are [..., D].

    With a = u^T diag(1/d) u and eta = 1 / (1 + a): C = diag(1/d) - eta (u/d)(u/d)^T, log |C| = log eta - sum log d, and
    C = R R^T for R = diag(d^-1/2) - b (u/d)(u/d^(1/2))^T. The paper's b = (1 - eta^(1/2)) / a is 0/0 at a = 0; because
    1 - eta = a eta, b equals eta / (1 + eta^(1/2)), which needs no guard and loses no digits.
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

    def expand(self, batch_shape: Any, _instance: Any = None) -> Distribution:
        shape = (*batch_shape, *self.event_shape)
        parts = [part.expand(shape) for part in (self.loc, self.precision_diag, self.precision_factor)]
        return type(self)(parts[0], parts[1], parts[2], validate_args=self._validate_args)

    @property
    def _w(self) -> Tensor:
        """u / d^(1/2): u in units of the uncorrelated scale d^(-1/2). [..., D]"""
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
        others = (w2.sum(-1, keepdim=True) - w2).clamp(min=0)  # rounding could make the difference negative
        return (1 + others) * self._eta / self.precision_diag

    @property
    def log_det_covariance(self) -> Tensor:
        """log |C| = log eta - sum log d: [...]."""
        return self._eta.squeeze(-1).log() - self.precision_diag.log().sum(-1)

    @property
    def precision_matrix(self) -> Tensor:
        """diag(d) + u u^T, for a KL against a dense Gaussian: [..., D, D]."""
        u = self.precision_factor
        return torch.diag_embed(self.precision_diag) + u[..., :, None] * u[..., None, :]

    @property
    def covariance_matrix(self) -> Tensor:
        """C, for a KL against a dense Gaussian: [..., D, D]."""
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


class RankOneMultivariateNormal(Exact, _RankOne): ...
