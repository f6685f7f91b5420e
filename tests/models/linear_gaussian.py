"""A VAE whose log p(x) is known: z ~ N(0, I), x|z ~ N(W z + b, sigma^2 I), so x ~ N(b, W W^T + sigma^2 I)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vae_lightning.distributions import DiagonalNormal, FamilyRecipe
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.objectives import ObjectiveRecipe

SIGMA = 0.5
IMAGE_SHAPE, LATENT_SIZE = (1, 2, 3), 2


def linear_gaussian(objective: ObjectiveRecipe, posterior: FamilyRecipe = DiagonalNormal) -> VAE:
    affine = partial(MLP, hidden_sizes=())
    torch.manual_seed(3)
    model = VAE(
        IMAGE_SHAPE,
        LATENT_SIZE,
        encoder=affine,
        decoder=affine,
        posterior=partial(posterior, min_sigma=0.0),
        likelihood=partial(DiagonalNormal, sigma=SIGMA, min_sigma=0.0),
        objective=objective,
    ).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.4 * torch.randn_like(weight))
    return model


def weights(model: VAE) -> tuple[Tensor, Tensor]:
    """Return W [pixels, D] and b [pixels] of the decoder."""
    layer = list(model.decoder.modules())[-1]
    assert isinstance(layer, nn.Linear)
    return layer.weight.detach(), layer.bias.detach()


def exact_log_p(model: VAE, x: Tensor) -> Tensor:
    w, b = weights(model)
    covariance = w @ w.T + SIGMA**2 * torch.eye(len(b), dtype=torch.float64)
    return MultivariateNormal(b, covariance).log_prob(x.flatten(1))


def set_exact_posterior(model: VAE) -> None:
    """Rotate the latent space so that the posterior is diagonal, and make the encoder exact.

    p(z|x) = N(M^-1 W^T (x - b) / sigma^2, M^-1) with M = I + W^T W / sigma^2, which is diagonal if W^T W is.
    """
    w, b = weights(model)
    left, values, _ = torch.linalg.svd(w, full_matrices=False)
    decoder, encoder = list(model.decoder.modules())[-1], list(model.encoder.modules())[-1]
    assert isinstance(decoder, nn.Linear)
    assert isinstance(encoder, nn.Linear)
    precision = 1 + values**2 / SIGMA**2  # the diagonal of M
    gain = (left * values).T / precision[:, None] / SIGMA**2  # [D, pixels]
    with torch.no_grad():
        decoder.weight.copy_(left * values)
        encoder.weight.copy_(torch.cat([gain, torch.zeros_like(gain)]))
        encoder.bias.copy_(torch.cat([-gain @ b, torch.log(torch.expm1(precision**-0.5))]))
