"""Numbers about a trained model, from `trace` and `sample` alone: so they serve every model."""

from vae_lightning.metrics.likelihood import MarginalLikelihood, MeanAndError, log_marginal_likelihood

__all__ = ["MarginalLikelihood", "MeanAndError", "log_marginal_likelihood"]
