"""Callbacks: pictures, run-keeping and speed. They use only `trace` and `sample`, so each works with every model."""

from vae_lightning.callbacks.averaging import EMA
from vae_lightning.callbacks.checkpoint import BestAndLast
from vae_lightning.callbacks.finite import FiniteSteps
from vae_lightning.callbacks.pictures import Pictures
from vae_lightning.callbacks.resume import ExactResume
from vae_lightning.callbacks.run import ProgressLines, RunFolder
from vae_lightning.callbacks.speed import FastNetworks, SteadyBar
from vae_lightning.callbacks.start import StartNotes

__all__ = [
    "EMA",
    "BestAndLast",
    "ExactResume",
    "FastNetworks",
    "FiniteSteps",
    "Pictures",
    "ProgressLines",
    "RunFolder",
    "StartNotes",
    "SteadyBar",
]
