"""Networks: tensor to tensor. They know no probability."""

from vae_lightning.networks.conv import ConvDecoder, ConvEncoder
from vae_lightning.networks.mlp import MLP, GatedMLP

__all__ = ["MLP", "ConvDecoder", "ConvEncoder", "GatedMLP"]
