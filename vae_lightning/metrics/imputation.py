"""Missing pixels, filled in by a Markov chain over x and z, and how far the fill is from the truth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vae_lightning.distributions import known_pixels
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError


@dataclass(frozen=True)
class Imputation:
    """What the chain says of x: its last draw, the mean of p(x|z) over its second half, and how often it moved.

    `draw` and `mean` are [B, C, H, W] and hold the observed pixels as they are; `acceptance` is 1 without correction.
    """

    draw: Tensor
    mean: Tensor
    acceptance: float


@torch.no_grad()
def impute(
    model: LatentVariableModel, batch: Batch, missing: Tensor, num_steps: int = 100, corrected: bool = False
) -> Imputation:
    """x_missing ~ p(x_missing|x_observed): from noise, z ~ q(z|x) and x_missing ~ p(x|z) in turn, `num_steps` times.

    `missing`: bool, broadcasts against [B, C, H, W]. Rezende, Mohamed & Wierstra 2014 (https://arxiv.org/abs/1401.4082):
    the chain's law is p(x_missing|x_observed) only where q(z|x) is the posterior. `corrected` makes it so for every q:
    a z is accepted with the probability of Metropolis and Hastings (Mattei & Frellsen 2018,
    https://arxiv.org/abs/1802.04826), after a first quarter of steps without, for from noise hardly any would be.
    That needs the model's `decode`, and a q(z|x) that depends on x alone.
    """
    if num_steps < 1:
        raise UserError(f"impute: the number of steps is {num_steps}; it must be at least 1")
    x = batch["x"]
    trace = model.trace({**batch, "x": torch.where(missing, torch.rand_like(x), x)})
    _refuse_what_cannot_be(model, trace, missing, corrected)
    z, p_x = _drawn(trace), trace.p_x
    kept, shares = torch.zeros_like(x), []
    for step in range(num_steps):
        draw = torch.where(missing, p_x.sample()[0], x)  # [1, B, C, H, W] -> [B, C, H, W]
        kept += p_x.mean[0] if step >= num_steps // 2 else 0
        trace = model.trace({**batch, "x": draw})
        if corrected and step >= num_steps // 4:
            z, share = _accept_or_stay(model, trace, z)
            p_x = model.decode(z)
            shares.append(share)
        else:
            z, p_x = _drawn(trace), trace.p_x
    mean = torch.where(missing, kept / (num_steps - num_steps // 2), x)
    return Imputation(draw, mean, sum(shares) / len(shares) if corrected else 1.0)


def _refuse_what_cannot_be(model: LatentVariableModel, trace: Trace, missing: Tensor, corrected: bool) -> None:
    known = known_pixels(trace.p_x)
    if known is not None and bool((known & missing).any()):
        raise UserError(f"{type(model).__name__}: pixels that the model is conditioned on cannot be missing")
    for name, latent in trace.latents.items():
        if corrected and len(latent.q.batch_shape) > 1:
            raise UserError(
                f"a corrected chain weighs z by q(z|x), and {type(model).__name__}'s q of {name} depends on other "
                "latents as well; leave out --corrected"
            )
    if corrected:
        model.decode(_drawn(trace))


def _drawn(trace: Trace) -> dict[str, Tensor]:
    return {name: latent.z for name, latent in trace.latents.items()}


def _accept_or_stay(
    model: LatentVariableModel, proposed: Trace, z: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], float]:
    """z' ~ q(z|x) with probability min(1, w' / w), else z, where w = p(x, z) / q(z|x) at the present x."""
    held = {name: replace(latent, z=z[name]) for name, latent in proposed.latents.items()}
    log_ratio = proposed.log_weight() - Trace(proposed.x, model.decode(z), held).log_weight()  # [1, B]
    accept = torch.rand_like(log_ratio).log() < log_ratio
    moved = {
        name: torch.where(accept.reshape(*accept.shape, *[1] * (new.dim() - 2)), new, z[name])
        for name, new in _drawn(proposed).items()
    }
    return moved, accept.double().mean().item()


def draw_missing(x: Tensor, fraction: float) -> Tensor:
    """Each pixel is missing with probability `fraction`, in all of its channels: bool [B, 1, H, W]."""
    if not 0 < fraction < 1:
        raise UserError(f"impute: the share of missing pixels is {fraction}; it must be between 0 and 1, such as 0.6")
    return torch.rand_like(x[:, :1]) < fraction


def missing_error(guess: Tensor, x: Tensor, missing: Tensor) -> Tensor:
    """The mean of (guess - x)^2 over the missing pixels of each image: [B]. Of a probability it is the Brier score."""
    chosen = missing.expand_as(x).flatten(1)
    squares = (guess - x).square().flatten(1)
    return (squares * chosen).sum(1) / chosen.sum(1).clamp(min=1)
