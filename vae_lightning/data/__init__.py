"""Data sets: one uint8 tensor each, served in whole batches by index."""

from vae_lightning.data.base import ImageDataModule, ImageLoader, Images
from vae_lightning.data.digits import Digits
from vae_lightning.data.mnist import MNIST, BinarizedMNIST

__all__ = ["MNIST", "BinarizedMNIST", "Digits", "ImageDataModule", "ImageLoader", "Images"]
