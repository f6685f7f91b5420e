"""A small classifier, trained on the data set's own labels. `FrechetDistance` compares images by its features."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning.data import ImageDataModule, Images
from vae_lightning.networks import ConvEncoder
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.types import Shape, UserError


class Classifier(nn.Module):
    """Map x [B, C, H, W] to features [B, 64]; an affine map of the features gives the logits of each label.

    The network has two convolutions of stride 2 and two linear layers.

    Args:
        image_shape: (C, H, W).
        num_classes: the number of values of each label column. Several columns (factors, attributes) are predicted
            side by side.
    """

    num_features = 64

    def __init__(self, image_shape: Shape, num_classes: Sequence[int]) -> None:
        super().__init__()
        self.num_classes = tuple(num_classes)
        self.features = ConvEncoder(image_shape, (self.num_features,), channels=(32, 64))
        self.head = nn.Linear(self.num_features, sum(num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.features(x))

    def logits(self, x: Tensor) -> Sequence[Tensor]:
        return self.head(self(x)).split(self.num_classes, dim=1)

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        """The sum of the cross-entropies of the columns of `labels` [B, F]."""
        pairs = zip(self.logits(x), labels.T, strict=True)
        return torch.stack([F.cross_entropy(logits, label) for logits, label in pairs]).sum()

    @torch.no_grad()
    def accuracy(self, images: Images, batch_size: int = 500) -> float:
        """The fraction of all labels [N, F] that the classifier predicts correctly."""
        hits = 0
        labels = label_columns(images)
        for start in range(0, len(labels), batch_size):
            index = torch.arange(start, min(start + batch_size, len(labels)))
            guess = torch.stack([logits.argmax(1) for logits in self.logits(grey_images(images, index))], 1)
            hits += int((guess == labels[index].to(guess.device)).sum())
        return hits / labels.numel()

    def digest(self) -> str:
        """Eight hexadecimal digits of SHA-256 over the weights."""
        found = hashlib.sha256()
        for value in self.state_dict().values():
            found.update(value.cpu().numpy().tobytes())
        return found.hexdigest()[:8]


def label_columns(images: Images) -> Tensor:
    """The labels as int64 [N, F]. A single label per image becomes one column."""
    assert images.labels is not None
    return images.labels.long().reshape(len(images.labels), -1)


def grey_images(images: Images, index: Tensor) -> Tensor:
    """The images of the files, in [0, 1], before any binarisation."""
    images.verify(index)
    return images.pixels[index.to(images.pixels.device)].float() / images.max_value


def train_classifier(images: Images, num_steps: int = 1000, batch_size: int = 128, seed: int = 0) -> Classifier:
    """Train on the grey images and their labels with Adam at 1e-3.

    On MNIST the training takes 47 s on one CPU core and reaches an accuracy of 0.98. The global random state is kept.
    """
    labels = label_columns(images).to(images.pixels.device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        classifier = Classifier(tuple(images.pixels.shape[1:]), (labels.amax(0) + 1).tolist())
    classifier.to(images.pixels.device)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(num_steps):
        index = torch.randint(len(labels), (batch_size,), generator=generator)
        loss = classifier.loss(grey_images(images, index), labels[index.to(labels.device)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier.eval().requires_grad_(False)


def prepare_classifier(data: ImageDataModule, path: Path, num_steps: int) -> None:
    """Train a classifier on the training split and write it to `path`, unless `path` exists."""
    if path.is_file():
        return
    print(f"training the classifier of the Frechet distance, once: {path}", flush=True)
    with torch.inference_mode(False), torch.enable_grad():
        classifier = train_classifier(data.images("train"), num_steps)
    about = {
        "data": type(data).__name__,
        "num_classes": list(classifier.num_classes),
        "accuracy": classifier.accuracy(data.images("val")),
    }
    contents = io.BytesIO()
    torch.save({"state_dict": classifier.cpu().state_dict(), "about": about}, contents)
    write_whole(path, contents.getvalue())


def load_classifier(data: ImageDataModule, path: Path) -> tuple[Classifier, float]:
    """The classifier in `path` and its accuracy on the validation split.

    Raises:
        UserError: if the file is damaged, or the classifier was trained on another data set.
    """
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        about = kept["about"]
        if about["data"] != type(data).__name__:
            raise UserError(f"{path}: was trained on {about['data']}, and the data are {type(data).__name__}")
        classifier = Classifier(data.image_shape, about["num_classes"])
        classifier.load_state_dict(kept["state_dict"])
    except UserError:
        raise
    except Exception as error:  # torch raises OSError, EOFError, UnpicklingError or RuntimeError
        what = f"no classifier of images {list(data.image_shape)}"
        raise UserError(f"{path}: {what} that can be read; delete it, and the next test trains it anew") from error
    return classifier.eval().requires_grad_(False), float(about["accuracy"])
