"""FashionMNIST, KMNIST, EMNIST, CIFAR-10, SVHN and Omniglot, read from small files in the published formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import multiprocessing
import pickle
import re
import shutil
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from tests.helpers import idx_bytes, write_mnist
from vae_lightning.data import CIFAR10, EMNIST, KMNIST, MNIST, SVHN, FashionMNIST, Omniglot
from vae_lightning.types import UserError

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("dataset", [FashionMNIST, KMNIST])
def test_look_alikes_of_mnist_have_their_own_folder(tmp_path: Path, dataset: type[FashionMNIST]) -> None:
    arrays = write_mnist(tmp_path / dataset.__name__ / "raw", train=60, test=12)
    data = dataset(str(tmp_path), verify=False)
    data.prepare_data()
    assert data.images("test").pixels[:, 0].numpy().tolist() == arrays["t10k-images-idx3-ubyte"].tolist()
    assert len(data.images("train").pixels) + len(data.images("val").pixels) == 60


@pytest.mark.parametrize("dataset", [FashionMNIST, KMNIST])
def test_look_alikes_do_not_read_mnists_files(tmp_path: Path, dataset: type[FashionMNIST]) -> None:
    """The file names are those of MNIST, and no digest of the contents is known that would tell the sets apart."""
    write_mnist(tmp_path, train=60, test=12)
    with pytest.raises(UserError, match="not found"):
        dataset(str(tmp_path), verify=False).load("train")


@pytest.mark.parametrize("dataset", [FashionMNIST, KMNIST])
def test_look_alikes_are_verified_by_what_is_known_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dataset: type[FashionMNIST]
) -> None:
    """The counts and the digest of a packed file are checked, and a file of MNIST is refused."""
    raw, data = tmp_path / dataset.location, dataset(str(tmp_path))
    name = "t10k-images-idx3-ubyte"
    write_mnist(raw, gz=True)
    with pytest.raises(UserError, match=f"{name}.gz: wrong digest: expected {dataset.digests[name][0]}"):
        data.load("test")
    write_mnist(raw)
    with pytest.raises(UserError, match=f"{name}: expected 10,000 images or labels, found 12"):
        data.load("test")
    digest = hashlib.md5((raw / name).read_bytes()).hexdigest()
    monkeypatch.setattr(MNIST, "digests", {**MNIST.digests, name: (None, digest)})
    with pytest.raises(UserError, match=f"{name}: a file of MNIST's, not of {dataset.__name__}"):
        data.load("test")


@pytest.mark.parametrize("verify", [True, False])
def test_a_look_alikes_file_without_dimensions_is_one_line(tmp_path: Path, verify: bool) -> None:
    write_mnist(tmp_path / "KMNIST" / "raw")
    (tmp_path / "KMNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(b"\x00\x00\x08\x00\x07")
    with pytest.raises(UserError, match="idx3-ubyte: not an IDX file of bytes: it begins with 00 00 08 00"):
        KMNIST(str(tmp_path), verify=verify).load("test")


def test_emnist_is_verified_by_its_counts(tmp_path: Path, fetches: Path) -> None:
    emnist_archive(tmp_path / "archive.zip")
    with pytest.raises(UserError, match="expected 112,800 images in balanced, found 30"):
        EMNIST(str(tmp_path / "data")).prepare_data()
    assert len(fetches.read_text().splitlines()) == 1
    EMNIST(str(tmp_path / "data"), verify=False).prepare_data()


def test_emnist_stands_upright(tmp_path: Path) -> None:
    """The files hold each image transposed."""
    images = RANDOM.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    folder = tmp_path / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        (folder / f"emnist-balanced-{part}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"emnist-balanced-{part}-labels-idx1-ubyte").write_bytes(idx_bytes(np.arange(30, dtype=np.uint8)))
    data = EMNIST(str(tmp_path), verify=False)
    data.prepare_data()
    assert torch.equal(data.images("test").pixels[:, 0], torch.from_numpy(images.transpose(0, 2, 1).copy()))
    assert len(data.images("val").pixels) == 5
    labels = [data.images(split).labels for split in ("train", "val")]  # type: ignore[arg-type]
    assert sorted(torch.cat([label for label in labels if label is not None]).tolist()) == list(range(30))


@pytest.mark.parametrize("place", ["EMNIST/raw", "EMNIST/raw/gzip", ".", "gzip"])
def test_emnist_placed_by_hand_is_read_in_place(tmp_path: Path, fetches: Path, place: str) -> None:
    """The files are packed like in NIST's archive, which is absent; nothing is downloaded, unpacked or removed."""
    arrays = emnist_archive(tmp_path / "archive.zip")
    folder = tmp_path / "data" / place
    folder.mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "archive.zip") as archive:
        for name in archive.namelist():
            (folder / Path(name).name).write_bytes(archive.read(name))
    data = EMNIST(str(tmp_path / "data"), verify=False)
    data.prepare_data()
    expected = arrays["emnist-balanced-test-images-idx3-ubyte"].transpose(0, 2, 1)
    assert data.images("test").pixels[:, 0].numpy().tolist() == expected.tolist()
    assert data.images("test").labels.tolist() == list(range(6))  # type: ignore[union-attr]
    assert not fetches.read_text()
    assert len([path for path in (tmp_path / "data").rglob("*") if path.suffix == ".gz"]) == 4


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("emnist-balanced-test-images-idx3-ubyte", (30, 32, 28), r"\[N, 28, 28\], found \[30, 32, 28\]"),
        ("emnist-balanced-test-labels-idx1-ubyte", (30, 28, 28), r"\[N\], found \[30, 28, 28\]"),
    ],
)
def test_emnist_of_another_shape_is_one_line(tmp_path: Path, name: str, shape: tuple[int, ...], message: str) -> None:
    test_emnist_stands_upright(tmp_path)
    path = tmp_path / "EMNIST" / "raw" / name
    path.write_bytes(idx_bytes(np.zeros(shape)))
    with pytest.raises(UserError, match=f"^EMNIST in {tmp_path}: {path}: expected numbers of shape {message}"):
        EMNIST(str(tmp_path), verify=False).load("test")


def write_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Write the pickles of CIFAR-10 with four images each, and switch off torchvision's check of the digests."""
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
    monkeypatch.setattr(Omniglot, "counts", {True: 20, False: 10})
    data = Omniglot(str(tmp_path))
    data.prepare_data()
    assert [len(data.images(split).pixels) for split in ("train", "val", "test")] == [18, 2, 10]  # type: ignore[arg-type]
    image = data.images("test").pixels[0, 0]
    assert image.shape == (28, 28)
    assert image[3].unique().tolist() == [255]  # ink is white
    assert image[25].unique().tolist() == [0]
    assert data.images("test").labels.tolist() == [0] * 5 + [1] * 5  # type: ignore[union-attr]


def test_a_replaced_image_of_omniglot_makes_the_cache_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_omniglot(tmp_path, monkeypatch)
    Image.new("1", (105, 105), 1).save(
        tmp_path / "omniglot-py" / "images_evaluation" / "alphabet0" / "character00" / "0.png"
    )
    data = Omniglot(str(tmp_path))
    data.prepare_data()
    empty = (data.images("test").pixels == 0).flatten(1).all(1)
    assert empty.sum() == 1


def test_half_an_image_of_omniglot_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_omniglot(tmp_path, monkeypatch)
    path = tmp_path / "omniglot-py" / "images_background" / "alphabet1" / "character01" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match=f"1 unusable image: {path}: cannot be decoded"):
        Omniglot(str(tmp_path)).prepare_data()


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
    with pytest.raises(UserError, match=f"{dataset.__name__} in .*: .*not found") as not_downloaded:
        dataset(str(tmp_path)).images("train") if dataset is not Omniglot else dataset(str(tmp_path)).source()
    for message in (str(caught.value), str(not_downloaded.value)):
        assert "\n" not in message
        assert EXPECTED_FILES[dataset] in message
        assert "download=True" not in message
        assert not re.search(r"the files?\b", message)


EXPECTED_FILES: dict[type[Any], str] = {
    CIFAR10: "cifar-10-python.tar.gz",
    EMNIST: "emnist-balanced-train-images-idx3-ubyte",
    SVHN: "train_32x32.mat",
    Omniglot: "images_background.zip",
}


# -- fetching and extracting ------------------------------------------------------------------------------------------


def emnist_archive(path: Path) -> dict[str, np.ndarray]:
    """Write a zip of four .gz files, like NIST's archive. Returns the array of each file by its name."""
    images = RANDOM.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    files = {}
    with zipfile.ZipFile(path, "w") as archive:
        for part, count in (("train", 30), ("test", 6)):
            for kind, array in (("images-idx3", images[:count]), ("labels-idx1", np.arange(count, dtype=np.uint8))):
                name = f"emnist-balanced-{part}-{kind}-ubyte"
                files[name] = array
                archive.writestr(f"gzip/{name}.gz", gzip.compress(idx_bytes(array)))
    return files


@pytest.fixture
def fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A log with one line for each download. A download is replaced by a slow copy of `archive.zip`."""
    log = tmp_path / "fetches"
    log.touch()

    def fetch(url: str, root: str, filename: str | None = None, md5: str | None = None) -> None:  # noqa: ARG001
        target = Path(root) / (filename or Path(url).name)
        if target.exists():  # torchvision compares the digest here
            return
        with log.open("a") as file:
            file.write(f"{url}\n")
        time.sleep(0.2)
        shutil.copy(tmp_path / "archive.zip", target)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", fetch)
    return log


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_two_processes_fetch_one_set_and_both_succeed(tmp_path: Path, fetches: Path) -> None:
    files = emnist_archive(tmp_path / "archive.zip")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=EMNIST(str(tmp_path / "data"), verify=False).prepare_data) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(fetches.read_text().splitlines()) == 1
    pixels = EMNIST(str(tmp_path / "data"), verify=False).images("test").pixels[:, 0].transpose(1, 2)
    assert pixels.numpy().tolist() == files["emnist-balanced-test-images-idx3-ubyte"].tolist()


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_half_of_an_extraction_is_found_and_made_anew(tmp_path: Path, fetches: Path, cut: int) -> None:
    """NIST publishes no digests of EMNIST's single files, so torchvision accepts any file with the right name."""
    files = emnist_archive(tmp_path / "archive.zip")
    data = EMNIST(str(tmp_path / "data"), verify=False)
    data.prepare_data()
    path = tmp_path / "data" / "EMNIST" / "raw" / "emnist-balanced-train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:cut])
    data.prepare_data()
    assert path.read_bytes() == idx_bytes(files[path.name])
    assert len(fetches.read_text().splitlines()) == 1  # the archive was still there


def test_half_of_omniglot_is_found_and_made_whole(
    tmp_path: Path, fetches: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torchvision checks neither the digests nor the number of Omniglot's images."""
    place = tmp_path / "data" / "omniglot-py"
    place.mkdir(parents=True)
    image = io.BytesIO()
    Image.new("1", (105, 105), 1).save(image, "PNG")
    monkeypatch.setattr(Omniglot, "counts", {True: 40, False: 20})
    for name, count in (("images_background", 40), ("images_evaluation", 20)):
        with zipfile.ZipFile(place / f"{name}.zip", "w") as archive:
            for number in range(count):
                archive.writestr(f"{name}/a/character{number % 2}/{number}.png", image.getvalue())
        digest = hashlib.md5((place / f"{name}.zip").read_bytes()).hexdigest()
        monkeypatch.setitem(datasets.Omniglot.zips_md5, name, digest)
        with zipfile.ZipFile(place / f"{name}.zip") as archive:
            archive.extractall(place, archive.namelist()[: count // 2])
    data = Omniglot(str(tmp_path / "data"))
    with pytest.raises(UserError, match=r"expected \[40, 20\] images, found \[20, 10\]"):
        data.source()
    data.prepare_data()
    assert sum(len(data.images(split).pixels) for split in ("train", "val", "test")) == 60  # type: ignore[arg-type]
    assert not fetches.read_text()


class Pickled:
    """Creates the folder `path` when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_a_pickle_of_cifar_that_is_not_the_published_one_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """CIFAR-10 is published as pickles, so nothing is extracted or unpickled unless its digest is right."""

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", no_network)
    place, marker = tmp_path / "data", tmp_path / "marker"
    batches = place / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]:
        (batches / name).write_bytes(pickle.dumps(Pickled(marker)))
    if form == "archive":
        with tarfile.open(place / "cifar-10-python.tar.gz", "w:gz") as archive:
            archive.add(batches / "batches.meta", "../outside")
            archive.add(batches, batches.name)
        shutil.rmtree(batches)
    with pytest.raises(UserError, match=r"CIFAR10 in .*no route to host"):
        CIFAR10(str(place)).prepare_data()
    with pytest.raises(UserError, match=r"CIFAR10 in .*"):
        CIFAR10(str(place)).images("train")
    assert not marker.exists()
    assert not (tmp_path / "outside").exists()
    assert batches.exists() == (form == "folder")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/data: cannot be written \(.*--data\.data_dir"):
        EMNIST(str(tmp_path / "file" / "data")).prepare_data()
