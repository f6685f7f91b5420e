"""The Frechet distance between samples and test images, in the features of a network that is always named."""

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

from vae_lightning.data import ImageDataModule
from vae_lightning.metrics.classifier import grey, load_classifier, prepare_classifier
from vae_lightning.metrics.evaluator import Evaluator, Finding, rank_and_world_size
from vae_lightning.models import LatentVariableModel
from vae_lightning.noise import reseed
from vae_lightning.storage.loader import evaluation_batch_size, evaluation_batches
from vae_lightning.trace import Trace
from vae_lightning.types import UserError

_SAMPLE = 3  # a stream of noise; those of the model's own steps are beside it


class _Frechet(Evaluator):
    """|mu - mu'|^2 + tr(S + S' - 2 (S S')^(1/2)): mu, S of the features of the test images, mu', S' of as many samples.

    Heusel et al. 2017 (https://arxiv.org/abs/1706.08500), by torchmetrics, sums in float64. The images are those of the
    files, before binarisation; the samples are means of p(x|z) with z ~ p(z), as `sample` gives them. The value depends
    on how many there are (`frechet_images` of each): compare equal numbers alone.
    """

    num_features: ClassVar[int]

    def misfit(self, trace: Trace, data: ImageDataModule | None) -> str | None:
        if data is None:
            return "it needs a data module"
        count, least = len(data.images("test").pixels), 2 * self.num_features
        enough = count >= least
        return None if enough else f"of {self.num_features} features it needs {least} test images; there are {count}"

    def begin(self, model: LatentVariableModel, data: ImageDataModule | None) -> None:
        assert data is not None
        self._model, self._data = model, data

    @abstractmethod
    def distance(self, data: ImageDataModule) -> FrechetInceptionDistance:
        """With its extractor."""

    @torch.no_grad()
    def measure(self) -> tuple[float, int]:
        """The distance and the number of images: each rank has its share of both."""
        model, images = self._model, self._data.images("test")
        distance = self.distance(self._data).to(model.device)
        rank, world_size = rank_and_world_size()
        count = len(images.pixels)
        size = evaluation_batch_size(count, self._data.eval_batch_size, world_size)
        for turn, index in enumerate(evaluation_batches(count, size, rank, world_size)):
            reseed(model.device, self._data.seed, _SAMPLE, turn * world_size + rank)
            distance.update(grey(images, index).to(model.device), real=True)
            distance.update(model.sample(len(index)).float().clamp(0, 1), real=False)
        return float(distance.compute()), count


class FrechetDistance(_Frechet):
    """`frechet_<data set>`: in the 64 features of a classifier that is trained on this data set's own labels.

    A measure within this project: it is no FID, and comparable with no other. The classifier is trained once, in
    `num_steps` steps, and kept in `classifier` (default: `<data_dir>/frechet/<data set>.pt`); its digest and its
    accuracy stand in the details.
    """

    units: ClassVar[Mapping[str, str]] = {"frechet": "squared units of the classifier's features"}
    num_features = 64

    def __init__(self, classifier: str | None = None, num_steps: int = 1000) -> None:
        if num_steps < 1:
            raise UserError(f"FrechetDistance: num_steps is {num_steps}; it must be at least 1")
        self.classifier, self.num_steps = classifier, num_steps

    def misfit(self, trace: Trace, data: ImageDataModule | None) -> str | None:
        if data is not None and data.images("test").labels is None:
            return f"{type(data).__name__} has no labels to train a classifier on"
        return super().misfit(trace, data)

    def distance(self, data: ImageDataModule) -> FrechetInceptionDistance:
        kept = Path(data.data_dir) / "frechet" / f"{type(data).__name__.lower()}.pt"
        path = Path(self.classifier).expanduser() if self.classifier else kept
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
    """`fid`: in the 2,048 features of the Inception network of the FID's authors, from a file that the user has.

    `weights`: `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity, which has to be installed. Nothing is
    downloaded. Grey images are given to it as three equal channels.
    """

    units: ClassVar[Mapping[str, str]] = {"fid": "squared units of Inception's features"}
    num_features = 2048

    def __init__(self, weights: str) -> None:
        self.weights = str(Path(weights).expanduser())

    def misfit(self, trace: Trace, data: ImageDataModule | None) -> str | None:
        if find_spec("torch_fidelity") is None:
            return "torch-fidelity is not installed (pip install torch-fidelity)"
        if not Path(self.weights).is_file():
            return f"there is no file {self.weights}; wanted: weights-inception-2015-12-05-6726825d.pth"
        return super().misfit(trace, data)

    def distance(self, data: ImageDataModule) -> FrechetInceptionDistance:
        try:
            with torch.inference_mode(False):
                inception: Any = FrechetInceptionDistance(feature_extractor_weights_path=self.weights).inception
        except Exception as error:  # whatever torch says of a file that is something else
            raise UserError(f"FID: {self.weights} holds no Inception weights of torch-fidelity") from error
        return FrechetInceptionDistance(feature=_Double(_Colour(inception), self.num_features))

    def compute(self) -> dict[str, Finding]:
        value, count = self.measure()
        path = Path(self.weights)
        extractor = f"{path.name}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"
        return {"fid": value, "fid_extractor": extractor, "fid_images": f"{count} of each"}


class _Double(nn.Module):
    """Features in float64: torchmetrics casts the distance to their type."""

    def __init__(self, extractor: nn.Module, num_features: int) -> None:
        super().__init__()
        self.extractor, self.num_features = extractor.eval().requires_grad_(False), num_features

    def forward(self, x: Tensor) -> Tensor:
        return self.extractor(x).double()


class _Colour(nn.Module):
    """Inception's input: bytes, three channels."""

    def __init__(self, inception: nn.Module) -> None:
        super().__init__()
        self.inception = inception

    def forward(self, x: Tensor) -> Tensor:
        return self.inception((255 * x.expand(-1, 3, -1, -1)).round().to(torch.uint8))
