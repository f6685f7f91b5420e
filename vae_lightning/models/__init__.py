"""Models: one file for each structure."""

from vae_lightning.models.air import AIR
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.counts import CountPrior, DecayingCount, UniformCount
from vae_lightning.models.cvae import CVAE, ClassLabel, Condition, ImageColumns
from vae_lightning.models.dlgm import DLGM
from vae_lightning.models.dreaming import Dreaming, Step
from vae_lightning.models.dynamics import ConstantVelocity, Interactions
from vae_lightning.models.hvae import HVAE, BottomUp, Inference, Ladder
from vae_lightning.models.monet import MONet
from vae_lightning.models.rollouts import PredictsFrames, Rollout
from vae_lightning.models.seq4 import Seq4
from vae_lightning.models.stove import STOVE
from vae_lightning.models.vae import VAE
from vae_lightning.models.weights_file import load_safetensors, save_safetensors

__all__ = [
    "AIR",
    "CVAE",
    "DLGM",
    "HVAE",
    "STOVE",
    "VAE",
    "BottomUp",
    "ClassLabel",
    "Condition",
    "ConstantVelocity",
    "CountPrior",
    "DecayingCount",
    "Dreaming",
    "ImageColumns",
    "Inference",
    "Interactions",
    "Ladder",
    "LatentVariableModel",
    "MONet",
    "PredictsFrames",
    "Rollout",
    "Seq4",
    "Step",
    "UniformCount",
    "load_safetensors",
    "save_safetensors",
]
