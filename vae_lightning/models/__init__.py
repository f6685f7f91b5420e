"""Models: one file for each structure."""

from vae_lightning.models.air import AIR
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.counts import CountPrior, DecayingCount, UniformCount
from vae_lightning.models.cvae import CVAE, ClassLabel, Condition, ImageColumns
from vae_lightning.models.dlgm import DLGM
from vae_lightning.models.dreaming import Dreaming, Step
from vae_lightning.models.hvae import HVAE, BottomUp, Inference, Ladder
from vae_lightning.models.seq4 import Seq4
from vae_lightning.models.vae import VAE
from vae_lightning.models.weights_file import load_safetensors, save_safetensors

__all__ = [
    "AIR",
    "CVAE",
    "DLGM",
    "HVAE",
    "VAE",
    "BottomUp",
    "ClassLabel",
    "Condition",
    "CountPrior",
    "DecayingCount",
    "Dreaming",
    "ImageColumns",
    "Inference",
    "Ladder",
    "LatentVariableModel",
    "Seq4",
    "Step",
    "UniformCount",
    "load_safetensors",
    "save_safetensors",
]
