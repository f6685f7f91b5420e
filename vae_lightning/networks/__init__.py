"""Networks: functions from tensor to tensor, without any probability."""

from vae_lightning.networks.attention import TransformerTranslator
from vae_lightning.networks.broadcast import SpatialBroadcast
from vae_lightning.networks.conv import ConvDecoder, ConvEncoder
from vae_lightning.networks.local import LocalConv
from vae_lightning.networks.mlp import MLP, GatedMLP, LadderMLP
from vae_lightning.networks.resnet import ResidualMLP, ResNetDecoder, ResNetEncoder
from vae_lightning.networks.translators import GRUTranslator, LanguageModel, Translator
from vae_lightning.networks.unet import UNet

__all__ = [
    "MLP",
    "ConvDecoder",
    "ConvEncoder",
    "GRUTranslator",
    "GatedMLP",
    "LadderMLP",
    "LanguageModel",
    "LocalConv",
    "ResNetDecoder",
    "ResNetEncoder",
    "ResidualMLP",
    "SpatialBroadcast",
    "TransformerTranslator",
    "Translator",
    "UNet",
]
