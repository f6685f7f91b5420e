"""Data sets. One index gathers a whole batch of examples; images are held as bytes."""

from vae_lightning.data.base import CachedImages, ImageDataModule, Source
from vae_lightning.data.billiards import Billiards
from vae_lightning.data.celeba import CelebA
from vae_lightning.data.digits import Digits
from vae_lightning.data.images import ImageFolder
from vae_lightning.data.mnist import MNIST, BinarizedMNIST
from vae_lightning.data.module import DataModule, Split
from vae_lightning.data.multi_digits import MultiDigits
from vae_lightning.data.procedural import ProceduralFaces, ProceduralSprites
from vae_lightning.data.procedural_scenes import ProceduralScenes
from vae_lightning.data.recorded import Recorded
from vae_lightning.data.scenes import SceneFolder, Scenes
from vae_lightning.data.torchvision_sets import CIFAR10, EMNIST, KMNIST, SVHN, FashionMNIST, Omniglot
from vae_lightning.data.transitions import Mazes, Transitions
from vae_lightning.storage.examples import Examples, Images, join, windows
from vae_lightning.storage.loader import ImageLoader, Loader
from vae_lightning.storage.transforms import BatchTransform, Draw, Transform

__all__ = [
    "CIFAR10",
    "EMNIST",
    "KMNIST",
    "MNIST",
    "SVHN",
    "BatchTransform",
    "Billiards",
    "BinarizedMNIST",
    "CachedImages",
    "CelebA",
    "DataModule",
    "Digits",
    "Draw",
    "Examples",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "ImageLoader",
    "Images",
    "Loader",
    "Mazes",
    "MultiDigits",
    "Omniglot",
    "ProceduralFaces",
    "ProceduralScenes",
    "ProceduralSprites",
    "Recorded",
    "SceneFolder",
    "Scenes",
    "Source",
    "Split",
    "Transform",
    "Transitions",
    "join",
    "windows",
]
