"""The usual sets, read from small files in their own formats."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import idx_bytes, write_mnist
from vae_lightning.data import CIFAR10, EMNIST, KMNIST, SVHN, FashionMNIST, Omniglot
from vae_lightning.types import UserError

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dataset", [FashionMNIST, KMNIST])
def test_look_alikes_of_mnist_have_their_own_folder(tmp_path: Path, dataset: type[FashionMNIST]) -> None:
    arrays = write_mnist(tmp_path / dataset.__name__ / "raw", train=60, test=12)
    data = dataset(str(tmp_path), verify=False)
    data.prepare_data()
    assert data.images("test").pixels[:, 0].numpy().tolist() == arrays["t10k-images-idx3-ubyte"].tolist()
    assert len(data.images("train").pixels) + len(data.images("val").pixels) == 60


def test_emnist_stands_upright(tmp_path: Path) -> None:
    """The files hold each image transposed."""
    images = RANDOM.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    folder = tmp_path / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        (folder / f"emnist-balanced-{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"emnist-balanced-{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(30, dtype=np.uint8)))
    data = EMNIST(str(tmp_path))
    data.prepare_data()
    assert torch.equal(data.images("test").pixels[:, 0], torch.from_numpy(images.transpose(0, 2, 1).copy()))
    assert len(data.images("val").pixels) == 5
    together = [data.images(split).labels for split in ("train", "val")]  # type: ignore[arg-type]
    assert sorted(torch.cat([part for part in together if part is not None]).tolist()) == list(range(30))


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The pickles of CIFAR-10, four images each; torchvision's digests are not theirs."""
    from torchvision import datasets

    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    place = folder / "cifar-10-batches-py"
    place.mkdir(parents=True)
    images = RANDOM.integers(0, 256, (4, 3072), dtype=np.uint8)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (place / name).write_bytes(pickle.dumps({"data": images, "labels": [0, 1, 2, 3]}))
    (place / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    return images.reshape(4, 3, 32, 32)


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = write_cifar(tmp_path, monkeypatch)
    data = CIFAR10(str(tmp_path))
    data.prepare_data()
    assert data.images("test").pixels.numpy().tolist() == images.tolist()
    assert [len(data.images(split).pixels) for split in ("train", "val")] == [17, 3]  # type: ignore[arg-type]


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    monkeypatch.setattr("torchvision.datasets.svhn.SVHN._check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.svhn.download_url", lambda *_: None)
    images = RANDOM.integers(0, 256, (32, 32, 3, 8), dtype=np.uint8)  # H, W, C, N
    for part in ("train", "test"):
        savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": np.array([[1], [2], [10], [3]] * 2)})
    data = SVHN(str(tmp_path))
    data.prepare_data()
    assert torch.equal(data.images("test").pixels, torch.from_numpy(images.transpose(3, 2, 0, 1).copy()))
    assert data.images("test").labels.tolist() == [1, 2, 0, 3] * 2  # type: ignore[union-attr]


def test_omniglot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.omniglot.Omniglot._check_integrity", lambda _: True)
    for part, alphabets in (("images_background", 2), ("images_evaluation", 1)):
        for alphabet in range(alphabets):
            for character in range(2):
                folder = tmp_path / "omniglot-py" / part / f"alphabet{alphabet}" / f"character{character:02d}"
                folder.mkdir(parents=True)
                for drawer in range(5):
                    image = Image.new("1", (105, 105), 1)
                    image.paste(0, (0, 0, 105, 60))  # ink above
                    image.save(folder / f"{drawer}.png")
    data = Omniglot(str(tmp_path))
    data.prepare_data()
    assert [len(data.images(split).pixels) for split in ("train", "val", "test")] == [18, 2, 10]  # type: ignore[arg-type]
    image = data.images("test").pixels[0, 0]
    assert image.shape == (28, 28)
    assert image[3].unique().tolist() == [255]  # ink is white
    assert image[25].unique().tolist() == [0]
    assert data.images("test").labels.tolist() == [0] * 5 + [1] * 5  # type: ignore[union-attr]


@pytest.mark.parametrize("dataset", [CIFAR10, EMNIST, SVHN, Omniglot])
def test_missing_files_without_a_network_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: type[Any]
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    for name in ("cifar.download_and_extract_archive", "mnist.download_and_extract_archive", "svhn.download_url"):
        monkeypatch.setattr(f"torchvision.datasets.{name}", no_network)
    monkeypatch.setattr("torchvision.datasets.omniglot.download_and_extract_archive", no_network)
    with pytest.raises(UserError, match=f"{dataset.__name__} in .*: no route to host; .*--data.data_dir") as caught:
        dataset(str(tmp_path)).prepare_data()
    assert "\n" not in str(caught.value)
