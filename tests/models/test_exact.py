"""The linear-Gaussian VAE against exact results: probabilistic PCA, the mean-field gap, the order of the bounds."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from tests.models.linear_gaussian import IMAGE_SHAPE, exact_log_p, linear_gaussian, weights
from vae_lightning.distributions import (
    DiagonalNormal,
    Family,
    FamilyRecipe,
    FullNormal,
    LowRankNormal,
    RankOneNormal,
)
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.objectives import ELBO, IWAE, Objective, elbo_terms
from vae_lightning.trace import Latent, Trace

AFFINE = partial(MLP, hidden_sizes=())


# -- probabilistic PCA -------------------------------------------------------------------------------------------------


def pca_nll(x: Tensor, latent_size: int) -> float:
    """Return min over W, b, sigma of the mean -log N(x; b, W W^T + sigma^2 I), in nats.

    Tipping & Bishop 1999 (https://doi.org/10.1111/1467-9868.00196): sigma^2 is the mean of the eigenvalues of the
    covariance that W leaves out, so the optimum is 1/2 (d log 2 pi + sum log kept + (d - q) log sigma^2 + d).
    """
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    kept, left = eigenvalues[:latent_size], eigenvalues[latent_size:]
    d = len(eigenvalues)
    return float(0.5 * (d * math.log(2 * math.pi) + kept.log().sum() + len(left) * left.mean().log() + d))


def test_a_fitted_linear_gaussian_vae_is_probabilistic_pca() -> None:
    """With a full-covariance posterior, its exact NLL and its ELBO come within 0.05 nats of the optimum."""
    torch.manual_seed(0)
    true = torch.randn(2, 6, dtype=torch.float64)
    x = torch.randn(300, 2, dtype=torch.float64) @ true + 0.4 * torch.randn(300, 6, dtype=torch.float64) + 1
    batch = {"x": x.view(-1, *IMAGE_SHAPE)}
    model = VAE(
        IMAGE_SHAPE,
        latent_size=2,
        encoder=AFFINE,
        decoder=AFFINE,
        posterior=FullNormal,
        likelihood=partial(DiagonalNormal, sigma=1.0, learn_sigma=True),
    ).double()
    steps = 300
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        optimizer.zero_grad()
        model.objective(model.trace(batch, 1), step)["loss"].mean().backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        w, b = weights(model)
        trace = model.trace(batch, 500)
        sigma = trace.p_x.stddev.mean()
        covariance = w @ w.T + sigma**2 * torch.eye(6, dtype=torch.float64)
        nll = -MultivariateNormal(b, covariance).log_prob(x).mean().item()
        elbo = elbo_terms(trace)["elbo"].mean().item()
    optimum = pca_nll(x, 2)
    assert optimum - 1e-9 <= nll < optimum + 0.05
    assert -elbo == pytest.approx(nll, abs=0.05)


# -- the mean-field gap ------------------------------------------------------------------------------------------------


def correlated_model(rho: float, posterior: FamilyRecipe) -> VAE:
    """A VAE of 2 pixels and 2 latents whose p(z|x) has correlation rho.

    Its precision is M = I + W^T W / sigma^2; here M = 2 [[1, -rho], [-rho, 1]] / (1 - rho^2), which is above I.
    """
    model = VAE(
        (1, 1, 2),
        latent_size=2,
        encoder=AFFINE,
        decoder=AFFINE,
        posterior=posterior,
        likelihood=partial(DiagonalNormal, sigma=1.0),
    ).double()
    precision = 2 / (1 - rho**2) * torch.tensor([[1, -rho], [-rho, 1]], dtype=torch.float64)
    with torch.no_grad():
        layer = list(model.decoder.modules())[-1]
        assert isinstance(layer, nn.Linear)
        layer.weight.copy_(torch.linalg.cholesky(precision - torch.eye(2, dtype=torch.float64)).mT)
        layer.bias.zero_()
    return model


def exact_posterior(model: VAE, x: Tensor) -> MultivariateNormal:
    """N(M^-1 W^T (x - b), M^-1) with sigma = 1."""
    w, b = weights(model)
    precision = torch.eye(2, dtype=torch.float64) + w.T @ w
    return MultivariateNormal(torch.linalg.solve(precision, w.T @ (x - b)), precision_matrix=precision)


def best_features(family: Family, target: MultivariateNormal) -> Tensor:
    """Return the features that minimise KL(q || target)."""
    raw = 0.1 * torch.randn(family.param_shape, dtype=torch.float64)  # 0 is a saddle point of low-rank covariances
    raw.requires_grad_()
    optimizer = torch.optim.LBFGS([raw], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        kl = kl_divergence(family(raw), target)
        kl.backward()
        return kl

    optimizer.step(loss)
    return raw.detach()


@pytest.mark.parametrize("rho", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("posterior", [DiagonalNormal, FullNormal, LowRankNormal, RankOneNormal])
def test_mean_field_gap(rho: float, posterior: FamilyRecipe) -> None:
    """log p(x) - ELBO = -1/2 log(1 - rho^2) at the best diagonal q, and 0 with correlations, to 1e-2.

    In 2 dimensions a single direction, wide or narrow, makes up the difference.
    """
    torch.manual_seed(0)
    model = correlated_model(rho, partial(posterior, min_sigma=0.0))
    x = torch.tensor([0.4, -1.0], dtype=torch.float64)
    q = model.posterior(best_features(model.posterior, exact_posterior(model, x)).expand(1, -1))
    z = q.sample((400_000,))  # [K, 1, 2]
    trace = Trace(x.view(1, 1, 1, 2), model.likelihood(model.decoder(z)), {"z": Latent(z, q, model.prior())})
    with torch.no_grad():
        elbo = elbo_terms(trace)["elbo"].item()
        w, b = weights(model)
        log_p = MultivariateNormal(b, w @ w.T + torch.eye(2, dtype=torch.float64)).log_prob(x).item()
    gap = -0.5 * math.log(1 - rho**2) if posterior is DiagonalNormal else 0.0
    assert log_p - elbo == pytest.approx(gap, abs=1e-2)


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", [DiagonalNormal, RankOneNormal, LowRankNormal, FullNormal])
def test_bounds_are_ordered(posterior: FamilyRecipe) -> None:
    """ELBO <= IWAE_5 <= IWAE_50 <= log p(x), with an untrained encoder."""
    model = linear_gaussian(ELBO, posterior)
    x = torch.randn(6, *IMAGE_SHAPE, dtype=torch.float64)

    def bound(objective: Objective, name: str, repeats: int) -> float:
        with torch.no_grad():
            wide = {"x": x.repeat(repeats, 1, 1, 1)}
            return objective(model.trace(wide, objective.num_samples), 0)[name].mean().item()

    bounds = [bound(ELBO(), "elbo", 4000), bound(IWAE(5), "iwae", 2000), bound(IWAE(50), "iwae", 1000)]
    bounds.append(exact_log_p(model, x).mean().item())
    assert bounds == sorted(bounds)
    assert bounds[3] - bounds[0] > 0.2
