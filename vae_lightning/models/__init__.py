"""Models: one file for each structure."""

from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.vae import VAE

__all__ = ["VAE", "LatentVariableModel"]
