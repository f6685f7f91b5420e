"""Fill in missing pixels by a Markov chain over x and z, and measure the error of the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vae_lightning.distributions import known_pixels
from vae_lightning.models import LatentVariableModel
from vae_lightning.objectives.elbo import check_not_enumerated
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError


@dataclass(frozen=True)
class Imputation:
    """The result of a chain.

    Args:
        draw: the last draw of x, [B, C, H, W]; observed pixels are unchanged.
        mean: the mean of p(x|z) over the second half of the chain, [B, C, H, W]; observed pixels are unchanged.
        acceptance: the fraction of accepted proposals; 1 without correction.
    """

    draw: Tensor
    mean: Tensor
    acceptance: float


@torch.no_grad()
def impute(
    model: LatentVariableModel, batch: Batch, missing: Tensor, num_steps: int = 100, corrected: bool = False
) -> Imputation:
    """Sample x_missing ~ p(x_missing|x_observed) by drawing z ~ q(z|x) and x_missing ~ p(x|z) in turn, from noise.

    Rezende, Mohamed & Wierstra 2014 (https://arxiv.org/abs/1401.4082). The plain chain has this
    distribution only if q(z|x) is the exact posterior; the corrected chain has it for every q.

    Args:
        model: the trained model.
        batch: the batch; the values of its missing pixels are not used.
        missing: bool, true where a pixel is missing; broadcasts against [B, C, H, W].
        num_steps: the number of steps of the chain.
        corrected: accept or reject each z with the probability of Metropolis and Hastings (Mattei & Frellsen 2018,
            https://arxiv.org/abs/1802.04826). The first quarter of the steps accepts every z, because hardly any
            proposal would be accepted from noise. Needs the model's `decode`, and a q(z|x) that depends on x alone.

    Raises:
        UserError: if `num_steps` is below 1, if the model is conditioned on a missing pixel, or if the chain cannot be
            corrected for this model.
    """
    if num_steps < 1:
        raise UserError(f"impute: the number of steps is {num_steps}; it must be at least 1")
    x = batch["x"]
    trace = model.trace({**batch, "x": torch.where(missing, torch.rand_like(x), x)})
    _refuse_impossible_chain(model, trace, batch, missing, corrected)
    z, p_x = _samples(trace), trace.p_x
    sum_of_means, shares = torch.zeros_like(x), []
    for step in range(num_steps):
        draw = torch.where(missing, trace.sampled_rows(p_x.sample())[0], x)  # [K, B, C, H, W] -> [B, C, H, W]
        sum_of_means += trace.mean(p_x.mean) if step >= num_steps // 2 else 0
        trace = model.trace({**batch, "x": draw})
        if corrected and step >= num_steps // 4:
            z, share = _accept_or_stay(model, trace, z, batch)
            p_x = model.decode_given(z, batch)
            shares.append(share)
        else:
            z, p_x = _samples(trace), trace.p_x
    mean = torch.where(missing, sum_of_means / (num_steps - num_steps // 2), x)
    return Imputation(draw, mean, sum(shares) / len(shares) if corrected else 1.0)


def _refuse_impossible_chain(
    model: LatentVariableModel, trace: Trace, batch: Batch, missing: Tensor, corrected: bool
) -> None:
    known = known_pixels(trace.p_x)
    if known is not None and bool((known & missing).any()):
        raise UserError(f"{type(model).__name__}: pixels that the model is conditioned on cannot be missing")
    if corrected:
        check_not_enumerated("impute --corrected", trace)
    for name, latent in trace.latents.items():
        if corrected and len(latent.q.batch_shape) > 1:
            raise UserError(
                f"a corrected chain weighs z by q(z|x), but {type(model).__name__}'s q of {name} also depends on other "
                "latents; leave out --corrected"
            )
    if corrected:
        model.decode_given(_samples(trace), batch)


def _samples(trace: Trace) -> dict[str, Tensor]:
    return {name: latent.z for name, latent in trace.latents.items()}


def _accept_or_stay(
    model: LatentVariableModel, proposed: Trace, z: Mapping[str, Tensor], batch: Batch
) -> tuple[dict[str, Tensor], float]:
    """Take z' ~ q(z|x) with probability min(1, w' / w), else keep z, with w = p(x, z) / q(z|x) at the present x."""
    held = {name: replace(latent, z=z[name]) for name, latent in proposed.latents.items()}
    log_ratio = proposed.log_weight() - Trace(proposed.x, model.decode_given(z, batch), held).log_weight()  # [1, B]
    accept = torch.rand_like(log_ratio).log() < log_ratio
    moved = {
        name: torch.where(accept.reshape(*accept.shape, *[1] * (new.dim() - 2)), new, z[name])
        for name, new in _samples(proposed).items()
    }
    return moved, accept.double().mean().item()


def draw_missing(x: Tensor, fraction: float) -> Tensor:
    """Draw a mask, bool [B, 1, H, W]: each pixel is missing, in all channels, with probability `fraction`."""
    if not 0 < fraction < 1:
        raise UserError(f"impute: the share of missing pixels is {fraction}; it must be between 0 and 1, such as 0.6")
    return torch.rand_like(x[:, :1]) < fraction


def missing_error(guess: Tensor, x: Tensor, missing: Tensor) -> Tensor:
    """The mean of (guess - x)^2 over the missing pixels of each image: [B]. For probabilities: the Brier score."""
    chosen = missing.expand_as(x).flatten(1)
    squares = (guess - x).square().flatten(1)
    return (squares * chosen).sum(1) / chosen.sum(1).clamp(min=1)
