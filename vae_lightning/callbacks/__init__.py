"""Callbacks: pictures, run-keeping and speed. They use `trace` and `sample` alone, so each serves every model."""

from vae_lightning.callbacks.checkpoint import BestAndLast
from vae_lightning.callbacks.pictures import Pictures
from vae_lightning.callbacks.run import ProgressLines, RunFolder
from vae_lightning.callbacks.speed import FastNetworks, SteadyBar

__all__ = ["BestAndLast", "FastNetworks", "Pictures", "ProgressLines", "RunFolder", "SteadyBar"]
