"""Samples at a temperature: every standard deviation of the prior is multiplied by T."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributions import (
    Distribution,
    Independent,
    Laplace,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    StudentT,
    TransformedDistribution,
)

from vae_lightning.distributions.flows import Flowed
from vae_lightning.distributions.mixtures import DiagonalMixture
from vae_lightning.models.looking import Looking
from vae_lightning.trace import distribution_name
from vae_lightning.types import UserError


def tempered(p: Distribution, temperature: float) -> Distribution:
    """Return p with every standard deviation multiplied by T, about the same means.

    The components of a mixture keep their places and weights; a flow maps narrower noise.

    Args:
        p: The prior.
        temperature: T, above 0; below 1 samples are more typical and less diverse.

    Raises:
        UserError: if p has no standard deviation to change.
    """
    if isinstance(p, Independent):
        return Independent(tempered(p.base_dist, temperature), p.reinterpreted_batch_ndims)
    if isinstance(p, Normal | Laplace):
        return type(p)(p.loc, p.scale * temperature)
    if isinstance(p, StudentT):
        return StudentT(p.df, p.loc, p.scale * temperature)
    if isinstance(p, MultivariateNormal):
        return MultivariateNormal(p.loc, scale_tril=p.scale_tril * temperature)
    if isinstance(p, MixtureSameFamily):
        kind = DiagonalMixture if isinstance(p, DiagonalMixture) else MixtureSameFamily
        return kind(p.mixture_distribution, tempered(p.component_distribution, temperature))
    if isinstance(p, Flowed):
        return Flowed(tempered(p.q_0, temperature), p.flow, p.context)
    if isinstance(p, TransformedDistribution):
        return TransformedDistribution(tempered(p.base_dist, temperature), p.transforms)
    raise UserError(f"temperature: the prior {distribution_name(p)} has no standard deviation to change")


@contextmanager
def at_temperature(model: Looking, temperature: float) -> Iterator[None]:
    """Let `model.sample` draw every latent at the temperature.

    Args:
        model: The model, with its priors as `Prior` modules, or in `prior_modules`.
        temperature: T, above 0; 1 changes nothing.

    Raises:
        UserError: if T is not above 0, or the model has no prior that could change.
    """
    if not 0 < temperature < torch.inf:
        raise UserError(f"temperature is {temperature}; it must be above 0, such as 0.7")
    priors = model.prior_modules() if temperature != 1 else []
    if temperature != 1 and not priors:
        raise UserError(
            f"temperature: {type(model).__name__} has no Prior module, whose samples could be narrowed; sample without "
            "a temperature"
        )
    handles = [module.register_forward_hook(_hook(temperature)) for module in priors]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(temperature: float) -> Callable[[nn.Module, Any, Distribution], Distribution]:
    return lambda _module, _inputs, p: tempered(p, temperature)
