"""Numbers about a trained model. Every metric uses only `trace` and `sample`, so it works with every model."""

from vae_lightning.metrics.collapse import CollapseReport
from vae_lightning.metrics.disentanglement import Disentanglement
from vae_lightning.metrics.evaluation import Evaluation
from vae_lightning.metrics.evaluator import Evaluator
from vae_lightning.metrics.found import FoundAccuracy
from vae_lightning.metrics.frechet import FID, FrechetDistance
from vae_lightning.metrics.imputation import Imputation, draw_missing, impute, missing_error
from vae_lightning.metrics.information import Information
from vae_lightning.metrics.latents import LatentUnits, RateDistortion
from vae_lightning.metrics.likelihood import MarginalLikelihood, MeanAndError, log_marginal_likelihood
from vae_lightning.metrics.reconstruction import Reconstruction
from vae_lightning.metrics.rows import SpreadRows
from vae_lightning.metrics.scenes import SceneScores
from vae_lightning.metrics.segments import foreground_ari
from vae_lightning.metrics.transitions import TransitionScores

__all__ = [
    "FID",
    "CollapseReport",
    "Disentanglement",
    "Evaluation",
    "Evaluator",
    "FoundAccuracy",
    "FrechetDistance",
    "Imputation",
    "Information",
    "LatentUnits",
    "MarginalLikelihood",
    "MeanAndError",
    "RateDistortion",
    "Reconstruction",
    "SceneScores",
    "SpreadRows",
    "TransitionScores",
    "draw_missing",
    "foreground_ari",
    "impute",
    "log_marginal_likelihood",
    "missing_error",
]
