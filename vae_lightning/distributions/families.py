"""Families: modules that turn raw features into a distribution. Posteriors and likelihoods are both families.

To add one: subclass `Family`, say how many numbers it wants for each dimension (`num_params`) and build the
distribution from them. Add a row to the table in `tests/distributions/test_families.py`: every law is checked.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Distribution, Independent
from torch.distributions import Normal as TorchNormal
from torch.nn import functional as F

from vae_lightning.distributions import pixels
from vae_lightning.types import Shape, UserError


class Family(nn.Module):
    """features [..., *param_shape] -> a distribution with batch shape [...] and event shape `event_shape`.

    `param_shape` is `event_shape` with its first dimension (features, or channels) repeated `num_params` times.
    Features are cast to float32 at the door, with autocast off: the density is never computed in half precision
    (float64 stays float64). `log_prob` is in nats, summed over the event.
    """

    num_params: int = 1
    validate_args: ClassVar[bool] = False
    """Off: the check of every argument waits for the device at each step. The test suite turns it on."""

    def __init__(self, event_shape: Shape) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)

    @property
    def param_shape(self) -> Shape:
        """The shape of the features that one distribution is made of."""
        return (self.num_params * self.event_shape[0], *self.event_shape[1:])

    def forward(self, features: Tensor) -> Distribution:
        with torch.autocast(features.device.type, enabled=False):
            full = features if features.dtype == torch.float64 else features.float()
            params = full.chunk(self.num_params, dim=-len(self.event_shape))  # num_params x [..., *event_shape]
            return Independent(self.pointwise(*params), len(self.event_shape), validate_args=self.validate_args)

    @abstractmethod
    def pointwise(self, *params: Tensor) -> Distribution:
        """The distribution of each dimension alone, batch shape [..., *event_shape]."""


FamilyRecipe: TypeAlias = Callable[[Shape], Family]
"""A `Family` class, or a `functools.partial` of one: called as `recipe(event_shape)`."""


class DiagonalNormal(Family):
    """N(mu, diag sigma^2), with sigma predicted, fixed, or learned as one number.

    `sigma=None`: the features hold mu and a raw scale for every dimension, sigma = min_sigma + softplus(raw).
    `sigma=0.1`: the features are mu, sigma is that number. With `learn_sigma` it is where one shared parameter starts
    (the sigma-VAE of Rybkin et al. 2021, https://arxiv.org/abs/2006.13202).
    `min_sigma` is a floor: without one, a likelihood that can fit a pixel exactly has no upper bound. It is in the
    units of the variable, so a likelihood of pixels in [0, 1] wants no more than about 1/255.
    """

    raw_sigma: Tensor

    def __init__(
        self, event_shape: Shape, sigma: float | None = None, learn_sigma: bool = False, min_sigma: float = 1e-3
    ) -> None:
        super().__init__(event_shape)
        if min_sigma < 0 or (sigma is not None and sigma <= min_sigma):
            raise UserError(f"DiagonalNormal: sigma {sigma} must be above min_sigma {min_sigma}, and that at least 0")
        if learn_sigma and sigma is None:
            raise UserError("DiagonalNormal: learn_sigma needs a sigma to start from, such as 0.1")
        self.num_params = 2 if sigma is None else 1
        self.min_sigma = min_sigma
        if sigma is not None:
            rest = sigma - min_sigma
            raw = torch.tensor(rest + math.log(-math.expm1(-rest)))  # softplus(raw) = rest
            if learn_sigma:
                self.raw_sigma = nn.Parameter(raw)
            else:
                self.register_buffer("raw_sigma", raw, persistent=False)

    def pointwise(self, *params: Tensor) -> TorchNormal:
        mu, raw = params if self.num_params == 2 else (params[0], self.raw_sigma.to(params[0].dtype))
        sigma = self.min_sigma + F.softplus(raw)
        return TorchNormal(mu, sigma.expand_as(mu), validate_args=self.validate_args)


class Bernoulli(Family):
    """Bern(x; sigmoid(logit)), for pixels that are 0 or 1: a grey pixel has no probability under it."""

    def pointwise(self, *params: Tensor) -> TorchBernoulli:
        return TorchBernoulli(logits=params[0], validate_args=self.validate_args)


class ContinuousBernoulli(Family):
    """CB(x; logit), a density of grey values in [0, 1] that a Bernoulli's cross-entropy is often mistaken for."""

    def pointwise(self, *params: Tensor) -> pixels.ContinuousBernoulli:
        return pixels.ContinuousBernoulli(params[0], validate_args=self.validate_args)


class Binomial(Family):
    """Bin(n x; n, sigmoid(logit)), for pixels with n + 1 grey levels 0, 1/n, ..., 1."""

    def __init__(self, event_shape: Shape, num_steps: int) -> None:
        super().__init__(event_shape)
        if num_steps < 1:
            raise UserError(f"Binomial: num_steps is {num_steps}; pixels with L grey levels need L - 1, at least 1")
        self.num_steps = num_steps

    def pointwise(self, *params: Tensor) -> pixels.Binomial:
        return pixels.Binomial(self.num_steps, params[0], validate_args=self.validate_args)


def noise_scale(p_x: Distribution) -> Tensor | None:
    """The standard deviation of a Gaussian p(x|z), averaged over pixels and examples; None for any other likelihood.

    Logged as `sigma`: a squared error with a weight is a Gaussian with some sigma, and this says which.
    """
    base = p_x.base_dist if isinstance(p_x, Independent) else p_x
    return base.scale.mean() if isinstance(base, TorchNormal) else None
