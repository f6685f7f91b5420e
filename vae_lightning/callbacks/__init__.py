"""Callbacks: pictures and run-keeping. They use `trace` and `sample` alone, so each serves every model."""

from vae_lightning.callbacks.checkpoint import BestAndLast
from vae_lightning.callbacks.pictures import Pictures
from vae_lightning.callbacks.run import ProgressLines, RunFolder

__all__ = ["BestAndLast", "Pictures", "ProgressLines", "RunFolder"]
