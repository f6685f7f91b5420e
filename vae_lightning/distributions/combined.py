"""Distributions made from other distributions: an image of which a part is known, a product of normals."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from vae_lightning.distributions.masks import seen_positions
from vae_lightning.types import UserError


class Given(Independent):
    """p(x) = prod over unknown pixels of p_i(x_i), times a point mass at the values of the known pixels.

    Made by `given`. `log_prob` is that of the unknown pixels, and -inf if a known pixel of x has another value.

    Args:
        p_x: Batch shape [..., B], event shape [C, H, W], independent pixels.
        known: Which pixels are known: bool, broadcasts against [B, C, H, W].
        values: The values of the known pixels: broadcasts against [B, C, H, W].

    Raises:
        UserError: if the pixels of `p_x` depend on each other.
    """

    def __init__(self, p_x: Distribution, known: Tensor, values: Tensor) -> None:
        if not isinstance(p_x, Independent) or p_x.reinterpreted_batch_ndims != len(p_x.event_shape):
            name = getattr(p_x, "distribution_name", type(p_x).__name__)
            raise UserError(
                "a part of the image can be given only if the likelihood's pixels are independent, and those of "
                f"{name} are not; choose Bernoulli, Binomial or DiagonalNormal"
            )
        self.known, self.values = known, values
        super().__init__(p_x.base_dist, p_x.reinterpreted_batch_ndims, validate_args=p_x._validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Given:
        whole = Independent(self.base_dist, self.reinterpreted_batch_ndims, validate_args=self._validate_args)
        return Given(whole.expand(batch_shape), self.known, self.values)

    def log_prob(self, value: Tensor) -> Tensor:
        certain = torch.where(value == self.values, 0.0, -torch.inf)
        pixels = torch.where(self.known, certain, self.base_dist.log_prob(value))
        return pixels.flatten(-self.reinterpreted_batch_ndims).sum(-1)

    def entropy(self) -> Tensor:
        return torch.where(self.known, 0.0, self.base_dist.entropy()).flatten(-self.reinterpreted_batch_ndims).sum(-1)

    @property
    def mean(self) -> Tensor:
        return self._with_known_values(super().mean)

    @property
    def mode(self) -> Tensor:
        return self._with_known_values(super().mode)

    @property
    def variance(self) -> Tensor:
        return torch.where(self.known, 0.0, super().variance)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self._with_known_values(super().sample(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self._with_known_values(super().rsample(sample_shape))

    def _with_known_values(self, x: Tensor) -> Tensor:
        return torch.where(self.known, self.values, x)


def given(p_x: Distribution, known: Tensor | None, values: Tensor) -> Distribution:
    """p(x) once the `known` pixels are seen to have these `values`; p_x itself if `known` is None.

    The pixels that `p_x` was given before are replaced. So `given(p_x, known_pixels(p_x), y)` is about y instead of x,
    whether or not a part of x was given.

    Args:
        p_x: Batch shape [..., B], event shape [C, H, W].
        known: Which pixels are known: bool, broadcasts against [B, C, H, W]; None for none.
        values: The values of the known pixels, [B, C, H, W]; the other pixels are ignored.

    Raises:
        UserError: if the pixels of `p_x` depend on each other.
    """
    return p_x if known is None else Given(p_x, known, values)


def known_pixels(p_x: Distribution) -> Tensor | None:
    """Which pixels of x were given to `p_x`: bool, broadcasts against [B, C, H, W]; None if none were."""
    return p_x.known if isinstance(p_x, Given) else None


def num_unknown(p_x: Distribution) -> Tensor:
    """How many numbers of x are neither given nor hidden by a mask: float64, broadcasts against the batch shape."""
    known, seen = known_pixels(p_x), seen_positions(p_x)
    if known is None and seen is None:
        return torch.tensor(math.prod(p_x.event_shape), dtype=torch.float64)
    counted = seen if known is None else ~known if seen is None else ~known & seen
    assert counted is not None
    shape = torch.broadcast_shapes(counted.shape, p_x.event_shape)
    return counted.expand(shape).flatten(-len(p_x.event_shape)).double().sum(-1)


def normal_product(a: Distribution, b: Distribution) -> Independent:
    """N(mu, sigma^2), proportional to N(mu_a, sigma_a^2) N(mu_b, sigma_b^2): precisions add, and weigh the means.

    Args:
        a: Independent normals, with any batch shape that broadcasts against that of b.
        b: Independent normals with the event shape of a.

    Raises:
        UserError: if a or b is another distribution.
    """
    parts = [p.base_dist for p in (a, b) if isinstance(p, Independent) and isinstance(p.base_dist, Normal)]
    if len(parts) < 2:
        raise UserError(f"a product of {type(a).__name__} and {type(b).__name__}: both must be diagonal normals")
    weight_a, weight_b = (part.scale**-2 for part in parts)
    precision = weight_a + weight_b
    mu = (weight_a * parts[0].loc + weight_b * parts[1].loc) / precision
    normal = Normal(mu, precision.rsqrt(), validate_args=a._validate_args)
    return Independent(normal, len(a.event_shape), validate_args=a._validate_args)
