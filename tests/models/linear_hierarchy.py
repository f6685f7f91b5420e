"""Linear-Gaussian hierarchies, whose log p(x) is known because every map is affine and every sigma a constant."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from vae_lightning.distributions import DiagonalNormal
from vae_lightning.models import DLGM, HVAE, BottomUp, Ladder, LatentVariableModel
from vae_lightning.networks import MLP
from vae_lightning.types import Network

SIGMA = 1.0
IMAGE_SHAPE, SIZES = (1, 2, 3), (3, 2)
AFFINE = partial(MLP, hidden_sizes=())
M = TypeVar("M", bound=LatentVariableModel)
LIKELIHOOD = partial(DiagonalNormal, sigma=SIGMA, min_sigma=0.0)
WIDE = partial(DiagonalNormal, min_sigma=0.4)  # a q wider than the posterior, so that the weights have a small variance


def hierarchy(inference: Callable[..., BottomUp | Ladder]) -> HVAE:
    model = set_weights(HVAE(IMAGE_SHAPE, SIZES, inference, transition=AFFINE, decoder=AFFINE, likelihood=LIKELIHOOD))
    _last(model.transitions[0]).weight.data[SIZES[0] :] = 0  # sigma of z1 does not depend on z2
    return model


def bottom_up() -> HVAE:
    return hierarchy(partial(BottomUp, encoder=AFFINE, upward=AFFINE, posterior=WIDE))


def ladder() -> HVAE:
    model = hierarchy(partial(Ladder, encoder=AFFINE, upward=AFFINE, feature_size=5))
    for normal in model.inference.normals:
        normal.min_sigma = WIDE.keywords["min_sigma"]
    return model


def dlgm() -> DLGM:
    slots = {"encoder": AFFINE, "transition": AFFINE, "decoder": AFFINE}
    return set_weights(DLGM(IMAGE_SHAPE, SIZES, posterior=WIDE, likelihood=LIKELIHOOD, **slots))


def set_weights(model: M) -> M:
    """Set weights in float64 at which every layer matters; q's are smaller, so that q is near the posterior."""
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.double().named_parameters():
            weight.copy_((0.1 if name.startswith(("inference", "encoder")) else 0.4) * torch.randn_like(weight))
    return model


def exact_log_p(model: DLGM | HVAE, x: Tensor) -> Tensor:
    """x ~ N(b + W E[z1], W Cov(z1) W^T + sigma^2 I), from the weights: [B] nats."""
    mean, covariance = _law_of_noise(model) if isinstance(model, DLGM) else _law_of_z1(model)
    w, b = _last(model.decoder).weight, _last(model.decoder).bias
    noise = SIGMA**2 * torch.eye(len(b), dtype=torch.float64)
    return MultivariateNormal(w @ mean + b, w @ covariance @ w.T + noise).log_prob(x.flatten(1)).detach()


def _law_of_z1(model: HVAE) -> tuple[Tensor, Tensor]:
    """z1 = A z2 + a + s eps: N(a, A A^T + s^2)."""
    layer, size = _last(model.transitions[0]), SIZES[0]
    s = 1e-3 + nn.functional.softplus(layer.bias[size:])
    return layer.bias[:size], layer.weight[:size] @ layer.weight[:size].T + torch.diag(s**2)


def _law_of_noise(model: DLGM) -> tuple[Tensor, Tensor]:
    """h1 = T (G_2 xi_2) + t + G_1 xi_1: N(t, T G_2 G_2^T T^T + G_1 G_1^T)."""
    layer = _last(model.transitions[0])
    g1, g2 = (one.weight for one in model.noise_maps)
    return layer.bias, layer.weight @ g2 @ g2.T @ layer.weight.T + g1 @ g1.T


def _last(network: nn.Module) -> nn.Linear:
    assert isinstance(network, Network)
    layer = list(network.modules())[-1]
    assert isinstance(layer, nn.Linear)
    return layer
