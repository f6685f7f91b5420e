"""Likelihoods of pixels with L grey levels 0, 1/(L - 1), ..., 1. Each is a probability mass: its values have sum 1.

So their nats can be compared with those of every other mass over the same levels, and converted to bits per dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, MixtureSameFamily
from torch.nn import functional as F

from vae_lightning.distributions import pixels
from vae_lightning.distributions.combined import num_unknown
from vae_lightning.distributions.families import Family
from vae_lightning.types import Shape, UserError


class _LevelsFamily(Family):
    """A mass over `num_levels` grey levels, for images whose pixels have as many."""

    def __init__(self, event_shape: Shape, num_levels: int = 256) -> None:
        super().__init__(event_shape)
        if num_levels < 2:
            raise UserError(f"{type(self).__name__}: num_levels is {num_levels}; pixels have at least 2 levels")
        self.num_levels = num_levels


class _LogisticFamily(_LevelsFamily):
    def __init__(self, event_shape: Shape, num_levels: int = 256, min_scale: float = 1e-3) -> None:
        super().__init__(event_shape, num_levels)
        if not min_scale > 0:
            raise UserError(f"{type(self).__name__}: min_scale is {min_scale}; it must be above 0, such as 0.001")
        self.min_scale = min_scale

    def logistic(self, mu: Tensor, raw_scale: Tensor) -> pixels.DiscretizedLogisticDistribution:
        scale = self.min_scale + F.softplus(raw_scale)
        return pixels.DiscretizedLogisticDistribution(self.num_levels - 1, mu, scale, validate_args=self.validate_args)


class DiscretizedLogistic(_LogisticFamily):
    """P(x) = F(x + 1/2n) - F(x - 1/2n), F of a logistic(mu, s), n = L - 1, with open first and last bins.

    A likelihood for grey or colour bytes. Salimans et al. 2017 (https://arxiv.org/abs/1701.05517). The features hold
    mu - 1/2 and a raw s for each dimension. Deviation: in the paper mu of a channel depends on the channels before it;
    here channels are independent.

    Args:
        event_shape: Shape of one x; the model sets it.
        num_levels: L, the number of grey levels of a pixel; 256 for bytes.
        min_scale: Floor of s, in the units of x; above 0.
    """

    num_params = 2

    def pointwise(self, *params: Tensor) -> pixels.DiscretizedLogisticDistribution:
        mu, raw_scale = params
        return self.logistic(0.5 + mu, raw_scale)


class MixtureOfDiscretizedLogistics(_LogisticFamily):
    """P(x) = sum_m pi_m P(x; mu_m, s_m): a mixture of discretised logistics for each dimension.

    A likelihood for bytes whose distribution has several peaks. The features hold logits of pi, mu and raw s for each
    component. At features of 0 the means are spread over [0, 1], so components differ from the start. Deviation: each
    dimension has its own mixture; Salimans et al. 2017 (https://arxiv.org/abs/1701.05517) share one over the channels
    of a pixel.

    Args:
        event_shape: Shape of one x; the model sets it.
        num_components: The number of logistics, at least 1.
        num_levels: L, the number of grey levels of a pixel; 256 for bytes.
        min_scale: Floor of s, in the units of x; above 0.
    """

    def __init__(
        self, event_shape: Shape, num_components: int = 5, num_levels: int = 256, min_scale: float = 1e-3
    ) -> None:
        super().__init__(event_shape, num_levels, min_scale)
        if num_components < 1:
            raise UserError(f"{type(self).__name__}: num_components is {num_components}; it must be at least 1")
        self.num_components = num_components
        self.num_params = 3 * num_components

    def pointwise(self, *params: Tensor) -> MixtureSameFamily:
        logits, mu, raw_scale = torch.stack(params, dim=-1).chunk(3, dim=-1)  # [..., *event_shape, num_components]
        spread = (torch.arange(self.num_components, dtype=mu.dtype, device=mu.device) + 0.5) / self.num_components
        which = Categorical(logits=logits, validate_args=self.validate_args)
        return MixtureSameFamily(which, self.logistic(mu + spread, raw_scale), validate_args=self.validate_args)


class CategoricalLevels(_LevelsFamily):
    """P(x = k / (L - 1)) = softmax(logits)_k: any distribution over the L levels of each dimension.

    The features hold L logits for each dimension, so choose it for small L or small images.

    Args:
        event_shape: Shape of one x; the model sets it.
        num_levels: L, the number of grey levels of a pixel; 256 for bytes.
    """

    def __init__(self, event_shape: Shape, num_levels: int = 256) -> None:
        super().__init__(event_shape, num_levels)
        self.num_params = num_levels

    def pointwise(self, *params: Tensor) -> pixels.CategoricalLevelsDistribution:
        return pixels.CategoricalLevelsDistribution(torch.stack(params, dim=-1), validate_args=self.validate_args)


def is_mass(p_x: Distribution) -> bool:
    """Whether e^log_prob is a probability of x; otherwise it is a density."""
    return p_x.support is not None and p_x.support.is_discrete


def bits_per_dimension(
    nats: Tensor, p_x: Distribution, dequantised_levels: int | None = None, num_dimensions: float | None = None
) -> Tensor:
    """-log P(x) / (D log 2), with D the number of unknown numbers of x.

    If x was dequantised, x = (k + u) / L with L = `dequantised_levels`, a density bounds the mass of the level k:
    -log P(k) <= E[-log p(x)] + D log L (Theis et al. 2016, https://arxiv.org/abs/1511.01844, eq. 7).

    Args:
        nats: -log p(x), any shape.
        p_x: The likelihood; pixels that it was given are not counted, nor positions that a mask hides.
        dequantised_levels: L, if the data were dequantised.
        num_dimensions: D, if p_x is not of all the examples that the nats are of; None for the mean over those of p_x.

    Raises:
        UserError: for a density without dequantised data, because its nats bound no mass of grey levels.
    """
    dimensions = num_unknown(p_x).mean().item() if num_dimensions is None else num_dimensions
    per_dimension = nats / dimensions / math.log(2)
    if is_mass(p_x):
        return per_dimension
    if dequantised_levels is None:
        raise UserError(
            "bits per dimension: the likelihood is a density, and grey levels have none; choose a likelihood over "
            "levels (--model.likelihood=DiscretizedLogistic), or dequantise the data (--data.dequantise=true)"
        )
    return per_dimension + math.log2(dequantised_levels)
