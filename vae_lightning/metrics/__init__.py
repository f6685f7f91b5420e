"""Numbers about a trained model, from `trace` and `sample` alone: so they serve every model."""

from vae_lightning.metrics.imputation import Imputation, draw_missing, impute, missing_error
from vae_lightning.metrics.likelihood import MarginalLikelihood, MeanAndError, log_marginal_likelihood

__all__ = [
    "Imputation",
    "MarginalLikelihood",
    "MeanAndError",
    "draw_missing",
    "impute",
    "log_marginal_likelihood",
    "missing_error",
]
