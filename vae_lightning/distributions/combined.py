"""Distributions made of others: an image of which a part is known, a product of normals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vae_lightning.types import UserError


class Given(Independent):
    """p(x) = prod over unknown pixels of p_i(x_i), times a point mass on the known ones.

    `p_x` has batch shape [..., B] and event shape [C, H, W], its pixels independent; `mask` says which are known, and
    `known` holds their values: both broadcast against [B, C, H, W]. `log_prob` is that of the unknown pixels, and -inf
    where a known pixel has another value.
    """

    def __init__(self, p_x: Distribution, mask: Tensor, known: Tensor) -> None:
        if not isinstance(p_x, Independent) or p_x.reinterpreted_batch_ndims != len(p_x.event_shape):
            name = getattr(p_x, "made_by", type(p_x).__name__)
            raise UserError(
                f"a part of the image can be given only where pixels are independent, and those of {name} are not; "
                "choose such a likelihood (Bernoulli, Binomial, DiagonalNormal)"
            )
        self.mask, self.known = mask, known
        super().__init__(p_x.base_dist, p_x.reinterpreted_batch_ndims, validate_args=p_x._validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Given:
        whole = Independent(self.base_dist, self.reinterpreted_batch_ndims, validate_args=self._validate_args)
        return Given(whole.expand(batch_shape), self.mask, self.known)

    def of(self, known: Tensor) -> Given:
        """The same of the unknown pixels, with other known ones."""
        whole = Independent(self.base_dist, self.reinterpreted_batch_ndims, validate_args=self._validate_args)
        return Given(whole, self.mask, known)

    @property
    def num_unknown(self) -> float:
        """How many numbers of an image are unknown, on average over the masks."""
        shape = torch.broadcast_shapes(self.mask.shape, self.event_shape)
        return (~self.mask).expand(shape).flatten(-self.reinterpreted_batch_ndims).double().sum(-1).mean().item()

    def log_prob(self, value: Tensor) -> Tensor:
        certain = torch.where(value == self.known, 0.0, -torch.inf)
        pixels = torch.where(self.mask, certain, self.base_dist.log_prob(value))
        return pixels.flatten(-self.reinterpreted_batch_ndims).sum(-1)

    def entropy(self) -> Tensor:
        return torch.where(self.mask, 0.0, self.base_dist.entropy()).flatten(-self.reinterpreted_batch_ndims).sum(-1)

    @property
    def mean(self) -> Tensor:
        return self._complete(super().mean)

    @property
    def mode(self) -> Tensor:
        return self._complete(super().mode)

    @property
    def variance(self) -> Tensor:
        return torch.where(self.mask, 0.0, super().variance)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._complete(super().sample(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._complete(super().rsample(sample_shape))

    def _complete(self, value: Tensor) -> Tensor:
        return torch.where(self.mask, self.known, value)


def normal_product(a: Distribution, b: Distribution) -> Independent:
    """N(mu, sigma^2), proportional to N(mu_a, sigma_a^2) N(mu_b, sigma_b^2): precisions add and weigh the means.

    Both are Independent normals of one event shape; the batch shapes broadcast.
    """
    parts = [one.base_dist for one in (a, b) if isinstance(one, Independent) and isinstance(one.base_dist, Normal)]
    if len(parts) < 2:
        raise UserError(f"a product of {type(a).__name__} and {type(b).__name__}: both must be diagonal normals")
    weight_a, weight_b = (one.scale**-2 for one in parts)
    precision = weight_a + weight_b
    mu = (weight_a * parts[0].loc + weight_b * parts[1].loc) / precision
    normal = Normal(mu, precision.rsqrt(), validate_args=a._validate_args)
    return Independent(normal, len(a.event_shape), validate_args=a._validate_args)
