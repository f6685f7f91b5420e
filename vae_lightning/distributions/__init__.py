"""From features to distributions: families (posteriors and likelihoods) and priors."""

from vae_lightning.distributions import kl as kl  # registers the closed forms
from vae_lightning.distributions.combined import Given, given, known_pixels, normal_product, num_unknown
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
from vae_lightning.distributions.flows import IAF, Flowed, LinearIAF, NeuralSplineFlow, RealNVP
from vae_lightning.distributions.gaussians import FullNormal, LowRankNormal, RankOneNormal
from vae_lightning.distributions.groups import (
    Categorical,
    Dirichlet,
    RelaxedCategorical,
    VonMisesFisher,
    is_straight_through,
    share_support,
)
from vae_lightning.distributions.intervals import Beta, Gamma
from vae_lightning.distributions.levels import (
    CategoricalLevels,
    DiscretizedLogistic,
    MixtureOfDiscretizedLogistics,
    bits_per_dimension,
    is_mass,
)
from vae_lightning.distributions.map_flows import ConvIAF
from vae_lightning.distributions.masks import Masked, seen_in_neighbour, seen_positions
from vae_lightning.distributions.priors import (
    FamilyPrior,
    FlowPrior,
    LearnedNormal,
    MixtureOfFullNormals,
    MixtureOfNormals,
    Prior,
    PriorRecipe,
    StandardNormal,
    UniformSphere,
    VampPrior,
)
from vae_lightning.distributions.sequences import Classes, Repeated, num_steps
from vae_lightning.distributions.slots import SlotMixture

__all__ = [
    "IAF",
    "Bernoulli",
    "Beta",
    "Binomial",
    "Categorical",
    "CategoricalLevels",
    "Classes",
    "ContinuousBernoulli",
    "ConvIAF",
    "DiagonalNormal",
    "Dirichlet",
    "DiscretizedLogistic",
    "Family",
    "FamilyPrior",
    "FamilyRecipe",
    "FlowPrior",
    "Flowed",
    "FullNormal",
    "Gamma",
    "Given",
    "Laplace",
    "LearnedNormal",
    "LinearIAF",
    "LowRankNormal",
    "Masked",
    "MixtureOfDiscretizedLogistics",
    "MixtureOfFullNormals",
    "MixtureOfNormals",
    "NeuralSplineFlow",
    "Prior",
    "PriorRecipe",
    "RankOneNormal",
    "RealNVP",
    "RelaxedCategorical",
    "Repeated",
    "SlotMixture",
    "StandardNormal",
    "StudentT",
    "UniformSphere",
    "VampPrior",
    "VonMisesFisher",
    "bits_per_dimension",
    "given",
    "is_mass",
    "is_straight_through",
    "known_pixels",
    "noise_scale",
    "normal_product",
    "num_steps",
    "num_unknown",
    "seen_in_neighbour",
    "seen_positions",
    "share_support",
]
