"""Data sets. Images are held as bytes; one index gathers a whole batch."""

from vae_lightning.data.base import CachedImages, ImageDataModule, Source
from vae_lightning.data.celeba import CelebA
from vae_lightning.data.digits import Digits
from vae_lightning.data.images import ImageFolder
from vae_lightning.data.mnist import MNIST, BinarizedMNIST
from vae_lightning.data.procedural import ProceduralFaces, ProceduralSprites
from vae_lightning.data.torchvision_sets import CIFAR10, EMNIST, KMNIST, SVHN, FashionMNIST, Omniglot
from vae_lightning.storage.loader import ImageLoader, Images
from vae_lightning.storage.transforms import Transform

__all__ = [
    "CIFAR10",
    "EMNIST",
    "KMNIST",
    "MNIST",
    "SVHN",
    "BinarizedMNIST",
    "CachedImages",
    "CelebA",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "ImageLoader",
    "Images",
    "Omniglot",
    "ProceduralFaces",
    "ProceduralSprites",
    "Source",
    "Transform",
]
