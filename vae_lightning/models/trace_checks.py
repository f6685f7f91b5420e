"""Checks of a model's first trace: does its mathematics make sense for these data?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vae_lightning.distributions import share_support
from vae_lightning.models.weights import check_finite
from vae_lightning.trace import Trace, distribution_name, has_mean
from vae_lightning.types import UserError


def check_trace(owner: str, state: Mapping[str, Tensor], trace: Trace) -> None:
    """Check the weights, x under p(x|z), and each latent's sample, posterior and prior. Synchronises with the device.

    Args:
        owner: The model's class, for messages.
        state: The model's weights and buffers by name.
        trace: The model's trace of a batch.

    Raises:
        UserError: if a weight or a sample is not finite, if p(x|z) has no mean or gives x no probability, or if a
            posterior and its prior are not over the same space.
    """
    check_finite(owner, state)
    _check_likelihood(trace)
    for name, latent in trace.latents.items():
        posterior, prior = distribution_name(latent.q), distribution_name(latent.p)
        if not torch.isfinite(latent.z).all():
            raise UserError(
                f"latent {name}: a sample of its posterior {posterior} is not finite, with weights that are; "
                "they are too large: train again with a smaller learning rate or --trainer.gradient_clip_val"
            )
        if not share_support(latent.q, latent.p, latent.z):
            raise UserError(
                f"latent {name}: its posterior {posterior} and its prior {prior} are not over the "
                "same space; give the posterior's own family as the prior (--model.prior=FamilyPrior "
                "--model.prior.family=...), or on the sphere --model.prior=UniformSphere, with one group_size; a "
                "latent whose prior has no such flag takes DiagonalNormal, or another posterior over R^D"
            )


def _check_likelihood(trace: Trace) -> None:
    likelihood = distribution_name(trace.p_x)
    if not has_mean(trace.p_x):
        raise UserError(
            f"the likelihood {likelihood} does not know its mean, which reconstructions and samples are; choose "
            "one that does (--model.likelihood=DiagonalNormal or ContinuousBernoulli, Bernoulli for binarised pixels)"
        )
    value = trace.outside_support()
    if value is not None:
        raise UserError(
            f"the likelihood {likelihood} gives no probability to a pixel of value {value:.4g}, or an infinite "
            "density; choose Bernoulli for pixels of 0 and 1 (--data.binarisation=dynamic or threshold makes them "
            "such), or a likelihood for grey pixels (--model.likelihood=ContinuousBernoulli or DiagonalNormal, or "
            "Binomial or DiscretizedLogistic where its number of levels fits)"
        )
