"""From features to distributions: families (posteriors and likelihoods) and priors."""

from vae_lightning.distributions import kl as kl  # registers the closed forms
from vae_lightning.distributions.families import (
    Bernoulli,
    Binomial,
    ContinuousBernoulli,
    DiagonalNormal,
    Family,
    FamilyRecipe,
    Laplace,
    StudentT,
    noise_scale,
)
from vae_lightning.distributions.gaussians import FullNormal, LowRankNormal, RankOneNormal
from vae_lightning.distributions.groups import Categorical, Dirichlet, RelaxedCategorical, VonMisesFisher, share_support
from vae_lightning.distributions.intervals import Beta, Gamma
from vae_lightning.distributions.levels import (
    CategoricalLevels,
    DiscretizedLogistic,
    MixtureOfDiscretizedLogistics,
    bits_per_dimension,
    is_mass,
)
from vae_lightning.distributions.priors import FamilyPrior, Prior, PriorRecipe, StandardNormal, UniformSphere

__all__ = [
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "CategoricalLevels",
    "ContinuousBernoulli",
    "DiagonalNormal",
    "Dirichlet",
    "DiscretizedLogistic",
    "Family",
    "FamilyPrior",
    "FamilyRecipe",
    "FullNormal",
    "Gamma",
    "Laplace",
    "LowRankNormal",
    "MixtureOfDiscretizedLogistics",
    "Prior",
    "PriorRecipe",
    "RankOneNormal",
    "RelaxedCategorical",
    "StandardNormal",
    "StudentT",
    "UniformSphere",
    "VonMisesFisher",
    "bits_per_dimension",
    "is_mass",
    "noise_scale",
    "share_support",
]
