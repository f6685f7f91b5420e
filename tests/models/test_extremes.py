"""Extreme inputs and weights: loss and gradient stay finite, in float32 and under bfloat16."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from vae_lightning.distributions import Bernoulli, Binomial, ContinuousBernoulli, DiagonalNormal
from vae_lightning.models import VAE
from vae_lightning.networks import MLP, ConvDecoder, ConvEncoder
from vae_lightning.objectives import ELBO, IWAE

LIKELIHOODS: dict[str, Any] = {
    "bernoulli": Bernoulli,
    "binomial": partial(Binomial, num_steps=16),
    "continuous-bernoulli": ContinuousBernoulli,
    "normal": partial(DiagonalNormal, sigma=0.1),
    "normal-learned": partial(DiagonalNormal, sigma=0.1, learn_sigma=True),
}
IMAGES = {
    "zeros": torch.zeros(4, 1, 8, 8),
    "ones": torch.ones(4, 1, 8, 8),
    "constant": torch.full((4, 1, 8, 8), 0.5),
    "one-image": torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
}
TINY = partial(MLP, hidden_sizes=(16,))


def losses(model: VAE, x: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        trace = model.trace({"x": x}, model.objective.num_samples)
    loss: Tensor = model.objective(trace, 0)["loss"]  # [B]
    return loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 1e4], ids=["plain", "huge-weights"])
@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_loss_and_gradient_are_finite(likelihood: str, images: str, scale: float, dtype: torch.dtype) -> None:
    """The last layers are 10^4 times larger, so log sigma and logits are far outside their usual range."""
    x = IMAGES[images] if likelihood not in ("bernoulli", "binomial") else IMAGES[images].round()
    model = VAE((1, 8, 8), 4, TINY, decoder=TINY, likelihood=LIKELIHOODS[likelihood], objective=IWAE)
    with torch.no_grad():
        for network in (model.encoder, model.decoder):
            list(network.parameters())[-2].mul_(scale)
    loss = losses(model, x, dtype)
    loss.mean().backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_bfloat16_networks_keep_the_loss_to_a_thousandth(likelihood: str) -> None:
    """Compared with float32 networks of the same weights and noise, over 256 images."""
    convolutions = {
        "encoder": partial(ConvEncoder, channels=(8, 16)),
        "decoder": partial(ConvDecoder, channels=(8, 16)),
    }
    model = VAE((1, 8, 8), 4, **convolutions, likelihood=LIKELIHOODS[likelihood], objective=ELBO)
    x = torch.rand(256, 1, 8, 8).round()
    torch.manual_seed(1)
    half = losses(model, x, torch.bfloat16)
    torch.manual_seed(1)
    whole = losses(model, x, torch.float32)
    assert half.dtype == torch.float32
    assert half.mean().item() == pytest.approx(whole.mean().item(), rel=1e-3)
