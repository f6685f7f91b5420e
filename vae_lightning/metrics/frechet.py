"""The Frechet distance between samples and test images. The results name the network that gives the features."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from vae_lightning.data import DataModule, ImageDataModule
from vae_lightning.metrics.classifier import grey_images, load_classifier, prepare_classifier
from vae_lightning.metrics.evaluator import Evaluator, Finding, rank_and_world_size
from vae_lightning.models import LatentVariableModel
from vae_lightning.noise import reseed
from vae_lightning.storage.loader import evaluation_batch_size, evaluation_batches
from vae_lightning.trace import Trace
from vae_lightning.types import UserError

_SAMPLE = 3  # a noise stream of its own, apart from that of `collapse.py` and those of the model's steps


class _Frechet(Evaluator):
    """|mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)), the Frechet distance of two Gaussians in a feature space.

    mu and S are the mean and covariance of the features of the test images; mu' and S' are those of as many samples.
    Heusel et al. 2017 (https://arxiv.org/abs/1706.08500), computed by torchmetrics with sums in float64. The images are
    those of the files, before binarisation. The samples are means of p(x|z) with z ~ p(z), as `sample` returns them.
    The value depends on the number of images (`frechet_images`): compare only values of equal numbers.
    """

    num_features: ClassVar[int]

    def why_not_applicable(self, trace: Trace, data: DataModule | None) -> str | None:
        if not isinstance(data, ImageDataModule):
            return "the distance needs a data set of images"
        count, least = len(data.images("test").pixels), 2 * self.num_features
        enough = count >= least
        return None if enough else f"{self.num_features} features need {least} test images; there are {count}"

    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        assert isinstance(data, ImageDataModule)
        self._model, self._data = model, data

    @abstractmethod
    def distance(self, data: ImageDataModule) -> FrechetInceptionDistance:
        """The torchmetrics metric with its feature extractor."""

    @torch.no_grad()
    def measure(self) -> tuple[float, int]:
        """The distance and the number of images; each rank evaluates its share of images and samples."""
        model, images = self._model, self._data.images("test")
        distance = self.distance(self._data).to(model.device)
        rank, world_size = rank_and_world_size()
        count = len(images.pixels)
        size = evaluation_batch_size(count, self._data.eval_batch_size, world_size)
        for turn, index in enumerate(evaluation_batches(count, size, rank, world_size)):
            reseed(model.device, self._data.seed, _SAMPLE, turn * world_size + rank)
            distance.update(grey_images(images, index).to(model.device), real=True)
            distance.update(model.sample(len(index)).float().clamp(0, 1), real=False)
        return float(distance.compute()), count


class FrechetDistance(_Frechet):
    """`frechet_<data set>`: the Frechet distance in the 64 features of a classifier of this data set's labels.

    Use this distance to compare models of this project on one data set. The distance is not the FID and does not
    compare with numbers from elsewhere. The classifier is trained at the first test and then reused; its digest and its
    accuracy are part of the results' details.

    Args:
        classifier: The file of the classifier. null: `<data_dir>/frechet/<data set>.pt`.
        num_steps: The number of training steps of the classifier, if its file does not exist.
    """

    units: ClassVar[Mapping[str, str]] = {"frechet": "squared units of the classifier's features"}
    num_features = 64

    def __init__(self, classifier: str | None = None, num_steps: int = 1000) -> None:
        if num_steps < 1:
            raise UserError(f"FrechetDistance: num_steps is {num_steps}; it must be at least 1")
        self.classifier, self.num_steps = classifier, num_steps

    def why_not_applicable(self, trace: Trace, data: DataModule | None) -> str | None:
        if isinstance(data, ImageDataModule) and data.images("test").labels is None:
            return f"{type(data).__name__} has no labels to train a classifier on"
        return super().why_not_applicable(trace, data)

    def distance(self, data: ImageDataModule) -> FrechetInceptionDistance:
        default = Path(data.data_dir) / "frechet" / f"{type(data).__name__.lower()}.pt"
        path = Path(self.classifier).expanduser() if self.classifier else default
        rank, world_size = rank_and_world_size()
        if rank == 0:
            prepare_classifier(data, path, self.num_steps)
        if world_size > 1:
            torch.distributed.barrier()
        classifier, accuracy = load_classifier(data, path)
        self._about = f"{path}, {classifier.digest()}, accuracy {accuracy:.3f} on the validation split"
        return FrechetInceptionDistance(feature=_Double(classifier, self.num_features))

    def compute(self) -> dict[str, Finding]:
        value, count = self.measure()
        name = f"frechet_{type(self._data).__name__.lower()}"
        return {name: value, "frechet_extractor": self._about, "frechet_images": f"{count} of each"}


class FID(_Frechet):
    """`fid`: the Frechet distance in the 2,048 features of the Inception network of the FID's authors.

    Use the FID to compare with published numbers. It needs the package torch-fidelity and a file with the network's
    weights; nothing is downloaded. A grey image becomes three equal channels.

    Args:
        weights: The path of the file `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity.
    """

    units: ClassVar[Mapping[str, str]] = {"fid": "squared units of Inception's features"}
    num_features = 2048

    def __init__(self, weights: str) -> None:
        self.weights = str(Path(weights).expanduser())

    def why_not_applicable(self, trace: Trace, data: DataModule | None) -> str | None:
        if find_spec("torch_fidelity") is None:
            return "torch-fidelity is not installed (pip install torch-fidelity)"
        if not Path(self.weights).is_file():
            return f"there is no file {self.weights}; wanted: weights-inception-2015-12-05-6726825d.pth"
        return super().why_not_applicable(trace, data)

    def distance(self, data: ImageDataModule) -> FrechetInceptionDistance:
        try:
            with torch.inference_mode(False):
                inception: Any = FrechetInceptionDistance(feature_extractor_weights_path=self.weights).inception
        except Exception as error:  # torch raises several types for a file of another kind
            raise UserError(f"FID: {self.weights} holds no Inception weights of torch-fidelity") from error
        return FrechetInceptionDistance(feature=_Double(_Colour(inception), self.num_features))

    def compute(self) -> dict[str, Finding]:
        value, count = self.measure()
        path = Path(self.weights)
        extractor = f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
        return {"fid": value, "fid_extractor": extractor, "fid_images": f"{count} of each"}


class _Double(nn.Module):
    """Features in float64, because torchmetrics computes the distance in the type of the features."""

    def __init__(self, extractor: nn.Module, num_features: int) -> None:
        super().__init__()
        self.extractor, self.num_features = extractor.eval().requires_grad_(False), num_features

    def forward(self, x: Tensor) -> Tensor:
        return self.extractor(x).double()


class _Colour(nn.Module):
    """Convert x to the input of Inception: bytes with three channels."""

    def __init__(self, inception: nn.Module) -> None:
        super().__init__()
        self.inception = inception

    def forward(self, x: Tensor) -> Tensor:
        return self.inception((255 * x.expand(-1, 3, -1, -1)).round().to(torch.uint8))
