"""Objectives: functions of a `Trace`. The ELBO is in `elbo.py`.

An objective returns named terms, one number per example, in nats. `loss` is minimised. `elbo`, `log_likelihood`, `kl`
and `kl/<latent>` are the same quantities under every objective, so that runs can be compared.
"""

from vae_lightning.objectives.aggregate import IMQ, RBF, BetaTC, InfoVAE, Kernel
from vae_lightning.objectives.constrained import GECO, Capacity, FreeBits
from vae_lightning.objectives.elbo import ELBO, Objective, ObjectiveRecipe, elbo_terms, log_mean_exp
from vae_lightning.objectives.frozen import Frozen
from vae_lightning.objectives.importance import CIWAE, IWAE, MIWAE, PIWAE, STL, DReG
from vae_lightning.objectives.schedules import Constant, Cyclic, LinearWarmup, Schedule

__all__ = [
    "CIWAE",
    "ELBO",
    "GECO",
    "IMQ",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "RBF",
    "STL",
    "BetaTC",
    "Capacity",
    "Constant",
    "Cyclic",
    "DReG",
    "FreeBits",
    "Frozen",
    "InfoVAE",
    "Kernel",
    "LinearWarmup",
    "Objective",
    "ObjectiveRecipe",
    "Schedule",
    "elbo_terms",
    "log_mean_exp",
]
