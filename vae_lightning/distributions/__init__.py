"""From features to distributions: families (posteriors and likelihoods) and priors."""

from vae_lightning.distributions.families import (
    Bernoulli,
    Binomial,
    ContinuousBernoulli,
    DiagonalNormal,
    Family,
    FamilyRecipe,
    noise_scale,
)
from vae_lightning.distributions.flows import IAF, LinearIAF, NeuralSplineFlow, RealNVP
from vae_lightning.distributions.priors import (
    FlowPrior,
    LearnedNormal,
    MixtureOfFullNormals,
    MixtureOfNormals,
    Prior,
    PriorRecipe,
    StandardNormal,
    VampPrior,
)

__all__ = [
    "IAF",
    "Bernoulli",
    "Binomial",
    "ContinuousBernoulli",
    "DiagonalNormal",
    "Family",
    "FamilyRecipe",
    "FlowPrior",
    "LearnedNormal",
    "LinearIAF",
    "MixtureOfFullNormals",
    "MixtureOfNormals",
    "NeuralSplineFlow",
    "Prior",
    "PriorRecipe",
    "RealNVP",
    "StandardNormal",
    "VampPrior",
    "noise_scale",
]
