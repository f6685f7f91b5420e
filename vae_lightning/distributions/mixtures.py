"""Mixtures p(z) = sum_k pi_k p_k(z). Diagonal ones take the memory of N x K numbers instead of N x K x D."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, MixtureSameFamily, Normal

from vae_lightning.distributions.families import Family


def mixture_of(components: Distribution, logits: Tensor) -> MixtureSameFamily:
    """sum_k pi_k p_k(z).

    Args:
        components: p_k, with batch shape [K].
        logits: pi = softmax(logits), [K].
    """
    is_diagonal = isinstance(components, Independent) and isinstance(components.base_dist, Normal)
    mixture_class = DiagonalMixture if is_diagonal else MixtureSameFamily
    weights = Categorical(logits=logits, validate_args=Family.validate_args)
    return mixture_class(weights, components, validate_args=Family.validate_args)


class DiagonalMixture(MixtureSameFamily):
    """log p(z) = log sum_k pi_k N(z; mu_k, diag sigma_k^2), from z^2 / sigma^2 - 2 z mu / sigma^2 + mu^2 / sigma^2.

    The terms are matrix products of [*sample, K] numbers, never [*sample, K, D]. They are float64 (if the device has
    it), because they are far larger than their sum if sigma is small; the result has the dtype of z.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        wide = torch.float32 if value.device.type == "mps" else torch.float64
        normal, event_dims = self._normal(), len(self.event_shape)
        mean, sigma = normal.loc.to(wide).flatten(1), normal.scale.to(wide).flatten(1)  # [K, D]
        z, precision = value.to(wide).flatten(-event_dims), sigma**-2  # [*sample, D], [K, D]
        square = z**2 @ precision.T - 2 * z @ (mean * precision).T + (mean**2 * precision).sum(-1)  # [*sample, K]
        log_scale = sigma.log().sum(-1) + 0.5 * mean.shape[-1] * math.log(2 * math.pi)
        log_weight = torch.log_softmax(self.mixture_distribution.logits.to(wide), dim=-1)
        return torch.logsumexp(log_weight - log_scale - 0.5 * square, dim=-1).to(value.dtype)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw only from the component of each sample. torch's class draws from all components and keeps one."""
        with torch.no_grad():
            k = self.mixture_distribution.sample(torch.Size(sample_shape))
            normal = self._normal()
            return torch.normal(normal.loc[k], normal.scale[k])

    def _normal(self) -> Normal:
        components = self.component_distribution
        assert isinstance(components, Independent)
        assert isinstance(components.base_dist, Normal)
        return components.base_dist
