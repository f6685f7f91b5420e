"""From features to distributions: families (posteriors and likelihoods) and priors."""

from vae_lightning.distributions.combined import Given, normal_product
from vae_lightning.distributions.families import (
    Bernoulli,
    Binomial,
    ContinuousBernoulli,
    DiagonalNormal,
    Family,
    FamilyRecipe,
    noise_scale,
)
from vae_lightning.distributions.priors import Prior, PriorRecipe, StandardNormal

__all__ = [
    "Bernoulli",
    "Binomial",
    "ContinuousBernoulli",
    "DiagonalNormal",
    "Family",
    "FamilyRecipe",
    "Given",
    "Prior",
    "PriorRecipe",
    "StandardNormal",
    "noise_scale",
    "normal_product",
]
