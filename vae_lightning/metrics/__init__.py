"""Numbers about a trained model, from `trace` and `sample` alone: so they serve every model."""

from vae_lightning.metrics.collapse import CollapseReport
from vae_lightning.metrics.likelihood import MarginalLikelihood, MeanAndError, log_marginal_likelihood

__all__ = ["CollapseReport", "MarginalLikelihood", "MeanAndError", "log_marginal_likelihood"]
