"""MNIST and BinarizedMNIST on small files that the tests write, and on the real files if they are present."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers import AMAT_NAMES, IDX_NAMES, idx_bytes, write_amat, write_binarized_mnist, write_mnist
from vae_lightning.data import MNIST, BinarizedMNIST, ImageDataModule
from vae_lightning.data.base import Split
from vae_lightning.data.mnist import parse_amat
from vae_lightning.types import UserError

SPLITS: tuple[Split, ...] = ("train", "val", "test")
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = IDX_NAMES
TRAIN, VALID, TEST = AMAT_NAMES


def md5(contents: bytes) -> str:
    return hashlib.md5(contents, usedforsecurity=False).hexdigest()


# -- MNIST ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize("place", ["MNIST/raw", "."])
def test_mnist_reads_the_pixels_and_labels_of_the_files(tmp_path: Path, gz: bool, place: str) -> None:
    files = write_mnist(tmp_path / place, train=60, test=12, gz=gz)
    data = MNIST(str(tmp_path), verify=False)
    data.prepare_data()
    train, val, test = (data.load(split) for split in SPLITS)
    assert [len(images.pixels) for images in (train, val, test)] == [50, 10, 12]
    assert torch.cat([train.pixels, val.pixels]).squeeze(1).numpy().tobytes() == files[TRAIN_IMAGES].tobytes()
    assert torch.cat([train.labels, val.labels]).tolist() == files[TRAIN_LABELS].tolist()  # type: ignore[list-item]
    assert test.pixels.shape == (12, 1, 28, 28)
    assert test.pixels.squeeze(1).numpy().tobytes() == files[TEST_IMAGES].tobytes()
    assert test.labels is not None
    assert test.labels.tolist() == files[TEST_LABELS].tolist()


def test_num_val_images_are_held_out(tmp_path: Path) -> None:
    files = write_mnist(tmp_path, train=60, test=12)
    data = MNIST(str(tmp_path), verify=False, num_val=4)
    train, val = data.load("train"), data.load("val")
    assert torch.equal(torch.cat([train.pixels, val.pixels])[:, 0], torch.from_numpy(files[TRAIN_IMAGES]))
    assert len(val.pixels) == 4
    with pytest.raises(UserError, match=r"^MNIST: num_val is 60, which leaves none of 60 images for training"):
        MNIST(str(tmp_path), verify=False, num_val=60).load("train")


@pytest.mark.parametrize("num_val", [0, -1])
def test_an_impossible_num_val_is_refused_before_anything_is_read(num_val: int) -> None:
    with pytest.raises(UserError, match=f"^MNIST: num_val is {num_val}; it must be at least 1"):
        MNIST(num_val=num_val)


def test_mnist_serves_pixels_scaled_to_one(tmp_path: Path) -> None:
    files = write_mnist(tmp_path / "MNIST" / "raw")
    batches = list(MNIST(str(tmp_path), verify=False).test_dataloader())
    x, labels = (torch.cat([batch[name] for batch in batches]) for name in ("x", "label"))
    assert x.dtype == torch.float32
    torch.testing.assert_close(x[:, 0], torch.from_numpy(files[TEST_IMAGES]).float() / 255, rtol=2e-7, atol=0)
    assert (x.min(), x.max()) == (0, 1)
    assert labels.tolist() == files[TEST_LABELS].tolist()


def test_raw_files_come_before_gz(tmp_path: Path) -> None:
    write_mnist(tmp_path / "MNIST" / "raw", gz=True)
    other = np.zeros((12, 28, 28), np.uint8)
    (tmp_path / "MNIST" / "raw" / TEST_IMAGES).write_bytes(idx_bytes(other))
    assert not MNIST(str(tmp_path), verify=False).load("test").pixels.any()


@pytest.mark.parametrize(
    ("name", "contents", "verify", "message"),
    [
        (TEST_IMAGES, b"\x00\x00\x08\x03", False, "truncated"),
        (TEST_IMAGES, b"not an idx file", False, "not an IDX file"),
        (TEST_IMAGES, b"\x00\x00\x08\x00\x07", False, "not an IDX file"),
        (TEST_LABELS, b"\x00\x00\x08\x00\x07", False, "not an IDX file"),
        (TEST_IMAGES, idx_bytes(np.zeros((12, 28, 28)))[:-100], False, "truncated .* found 9308 bytes"),
        (TEST_LABELS, idx_bytes(np.zeros(11)), False, "expected 12 labels, one for each image, found 11"),
        (TEST_IMAGES, idx_bytes(np.zeros((12, 32, 32))), False, r"expected images of \(28, 28\), found \(32, 32\)"),
        (TEST_IMAGES, idx_bytes(np.zeros(12)), False, r"expected images of \(28, 28\), found \(\)"),
        (TEST_LABELS, idx_bytes(np.zeros((12, 28, 28))), False, "expected .* labels"),
        (
            TEST_IMAGES,
            idx_bytes(np.zeros((12, 28, 28))),
            True,
            f"wrong digest: expected {MNIST.digests[TEST_IMAGES][1]}",
        ),
    ],
    ids=[
        *("header", "magic", "image-without-dims", "label-without-dims", "truncated", "count", "size"),
        *("labels-as-images", "images-as-labels", "digest"),
    ],
)
def test_mnist_names_the_broken_file(tmp_path: Path, name: str, contents: bytes, verify: bool, message: str) -> None:
    write_mnist(tmp_path / "MNIST" / "raw")
    path = tmp_path / "MNIST" / "raw" / name
    path.write_bytes(contents)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {message}"):
        MNIST(str(tmp_path), verify=verify).load("test")


def test_missing_mnist_names_file_folders_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        MNIST(str(tmp_path)).load("train")
    text = str(caught.value)
    assert f"{TRAIN_IMAGES} not found in {tmp_path / 'MNIST' / 'raw'} or {tmp_path};" in text
    assert "--data.data_dir" in text
    assert "make train DATA_DIR=" in text


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that MNIST downloads from, after a mirror that does not answer. MNIST's digests are set to its files."""
    folder = tmp_path / "mirror"
    files = write_mnist(folder, gz=True)
    digests = {n: (md5((folder / f"{n}.gz").read_bytes()), md5(idx_bytes(array))) for n, array in files.items()}
    monkeypatch.setattr(MNIST, "digests", digests)
    monkeypatch.setattr(MNIST, "mirrors", ("http://127.0.0.1:1/", folder.as_uri() + "/"))
    return folder


def test_mnist_is_downloaded_once(tmp_path: Path, mirror: Path) -> None:
    data = MNIST(str(tmp_path / "data"))
    data.prepare_data()
    raw = tmp_path / "data" / "MNIST" / "raw"
    assert sorted(p.name for p in raw.iterdir()) == sorted(f"{name}.gz" for name in IDX_NAMES)
    shutil.rmtree(mirror)
    data.prepare_data()  # would fail if it downloaded again, because the mirror is gone
    assert len(data.load("train").pixels) == 50


@pytest.mark.usefixtures("mirror")
def test_only_missing_files_are_downloaded(tmp_path: Path) -> None:
    write_mnist(tmp_path / "data")
    (tmp_path / "data" / TEST_LABELS).unlink()
    MNIST(str(tmp_path / "data")).prepare_data()
    assert [p.name for p in (tmp_path / "data" / "MNIST" / "raw").iterdir()] == [f"{TEST_LABELS}.gz"]


def test_a_tampered_download_is_refused(tmp_path: Path, mirror: Path) -> None:
    tampered = gzip.compress(idx_bytes(np.zeros((60, 28, 28))))
    (mirror / f"{TRAIN_IMAGES}.gz").write_bytes(tampered)
    with pytest.raises(
        UserError, match=f"wrong digest: expected {MNIST.digests[TRAIN_IMAGES][0]}, found {md5(tampered)}"
    ):
        MNIST(str(tmp_path / "data")).prepare_data()
    assert not [p for p in (tmp_path / "data").rglob("*") if p.is_file()]


OTHER_NAMES = {
    "with a dot": "{part}.idx{rest}",
    "with a dot, packed": "{part}.idx{rest}.gz",
    "in a folder of its name": "{name}/{name}",
    "in a folder of its name, with a dot": "{name}/{part}.idx{rest}",
    "in a folder of the name with a dot": "{part}.idx{rest}/{name}",
    "in a folder of its name, packed": "{name}/{name}.gz",
}


def rename(folder: Path, form: str) -> None:
    """Give the four packed files of a folder other names; unpack them if the name does not end in `.gz`."""
    for name in IDX_NAMES:
        part, rest = name.split("-idx")
        path = folder / form.format(name=name, part=part, rest=rest)
        packed = (folder / f"{name}.gz").read_bytes()
        (folder / f"{name}.gz").unlink()
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(packed if path.suffix == ".gz" else gzip.decompress(packed))


@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("form", list(OTHER_NAMES))
def test_mnist_is_found_under_its_other_names_and_verified(
    tmp_path: Path, mirror: Path, monkeypatch: pytest.MonkeyPatch, form: str, place: str
) -> None:
    """Nothing is downloaded. A file with such a name and other contents is refused; the message names its path."""
    shutil.copytree(mirror, tmp_path / "data" / place)
    rename(tmp_path / "data" / place, OTHER_NAMES[form])
    monkeypatch.setattr(MNIST, "mirrors", ())
    before = {path for path in (tmp_path / "data").rglob("*") if path.is_file()}
    data = MNIST(str(tmp_path / "data"))
    data.prepare_data()
    assert [len(data.load(split).pixels) for split in SPLITS] == [50, 10, 12]
    assert {path for path in (tmp_path / "data").rglob("*") if path.is_file()} == before
    (path,) = (path for path in before if path.name.startswith("t10k-images"))
    other = idx_bytes(np.zeros((12, 28, 28)))
    path.write_bytes(gzip.compress(other) if path.suffix == ".gz" else other)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: wrong digest"):
        data.load("test")


def test_a_failed_download_names_the_file_to_download_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ())
    with pytest.raises(UserError, match=f"; put {TRAIN_IMAGES}.gz there by hand, or point --data.data_dir"):
        MNIST(str(tmp_path)).prepare_data()


# -- BinarizedMNIST -------------------------------------------------------------------------------------------------


def binarized(data_dir: Path, verify: bool = False) -> BinarizedMNIST:
    return BinarizedMNIST(str(data_dir), verify=verify)


def pixels_of(data: ImageDataModule, split: Split = "test") -> np.ndarray:
    return data.load(split).pixels.flatten(1).numpy()


def test_binarized_mnist_reads_the_text_and_then_its_cache(tmp_path: Path) -> None:
    folder = tmp_path / "binarized_mnist"
    files = write_binarized_mnist(folder)
    data = binarized(tmp_path)
    for repeat in range(2):
        for split, name in zip(SPLITS, AMAT_NAMES, strict=True):
            images = data.load(split)
            assert images.pixels.shape == (12, 1, 28, 28)
            assert images.max_value == 1
            assert np.array_equal(images.pixels.flatten(1).numpy(), files[name])
            if repeat == 0:
                (folder / f"{name}.amat").unlink()  # so that the second pass reads the cache
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"{name}.npy" for name in AMAT_NAMES)
    assert (folder / f"{TRAIN}.npy").stat().st_size < 12 * 784 / 4  # bits, not bytes


def test_binarized_mnist_serves_zeros_and_ones(tmp_path: Path) -> None:
    files = write_binarized_mnist(tmp_path / "binarized_mnist")
    batches = list(binarized(tmp_path).test_dataloader())
    assert list(batches[0]) == ["x"]
    x = torch.cat([batch["x"] for batch in batches])
    assert np.array_equal(x.flatten(1).numpy(), files[TEST].astype(np.float32))


def test_a_cache_older_than_its_text_is_made_anew(tmp_path: Path) -> None:
    folder = tmp_path / "binarized_mnist"
    files = write_binarized_mnist(folder)
    text, cache = folder / f"{TEST}.amat", folder / f"{TEST}.npy"
    pixels_of(binarized(tmp_path))
    os.utime(cache, (1, 1))
    write_amat(text, 1 - files[TEST])
    assert np.array_equal(pixels_of(binarized(tmp_path)), 1 - files[TEST])
    text.unlink()
    assert np.array_equal(pixels_of(binarized(tmp_path)), 1 - files[TEST])  # the cache was replaced


def test_a_read_only_folder_needs_no_cache(tmp_path: Path) -> None:
    folder = tmp_path / "binarized_mnist"
    files = write_binarized_mnist(folder)
    folder.chmod(0o555)
    try:
        assert np.array_equal(pixels_of(binarized(tmp_path)), files[TEST])
        assert sorted(p.suffix for p in folder.iterdir()) == [".amat"] * 3
    finally:
        folder.chmod(0o755)


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, bits=np.zeros((12, 98), np.uint8))
    return file.getvalue()


def npy_header(shape: str) -> bytes:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "contents",
    [
        *(b"", b"\x93NUMPY", b"not a cache", npz()),
        *(npy_header(f"({rows}, 98)") + bytes(98) for rows in (10**11, 10**30, -1, "'a'", "(")),
    ],
    ids=["empty", "magic", "text", "zip", "huge", "beyond-integers", "negative", "word", "unclosed"],
)
def test_a_broken_cache_is_named(tmp_path: Path, contents: bytes) -> None:
    """The message has one line, whatever exception numpy raises."""
    folder = tmp_path / "binarized_mnist"
    write_binarized_mnist(folder)
    cache = folder / f"{TEST}.npy"
    cache.write_bytes(contents)
    time = (folder / f"{TEST}.amat").stat().st_mtime_ns
    os.utime(cache, ns=(time, time))  # equal times mean that the cache belongs to the text
    with pytest.raises(UserError, match=f"^{re.escape(str(cache))}: cannot be read .*delete it[^\n]*$"):
        binarized(tmp_path).load("test")


def test_a_text_of_any_other_time_is_parsed_anew(tmp_path: Path) -> None:
    """An older text counts as changed too, because `cp -p` and `wget` keep the time of the source."""
    folder = tmp_path / "binarized_mnist"
    write_binarized_mnist(folder)
    before = binarized(tmp_path).load("test").pixels
    text = folder / f"{TEST}.amat"
    text.write_bytes(text.read_bytes().replace(b"0", b"2").replace(b"1", b"0").replace(b"2", b"1"))
    os.utime(text, (1, 1))
    assert torch.equal(binarized(tmp_path).load("test").pixels, 1 - before)


def test_a_text_that_fails_verification_is_not_cached(tmp_path: Path) -> None:
    """Otherwise the cache of a wrong text would still be used after the text is replaced."""
    folder = tmp_path / "binarized_mnist"
    write_binarized_mnist(folder)
    with pytest.raises(UserError, match=f"{TEST}.amat"):
        BinarizedMNIST(str(tmp_path)).load("test")
    assert not (folder / f"{TEST}.npy").exists()


def test_a_cache_of_another_shape_is_named(tmp_path: Path) -> None:
    cache = tmp_path / "binarized_mnist" / f"{TEST}.npy"
    cache.parent.mkdir()
    np.save(cache, np.zeros((3, 7)))
    with pytest.raises(UserError, match=re.escape(str(cache))):
        binarized(tmp_path).load("test")


def with_line(number: int, line: str) -> Callable[[list[str]], str]:
    return lambda lines: "\n".join([*lines[: number - 1], line, *lines[number:]])


GOOD = " ".join(["0", "1"] * 392)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_line(3, "0 1 0"), ", line 3: expected 784 values 0 or 1, found 3 values"),
        (with_line(2, GOOD + " 1"), ", line 2: .*found 785 values"),
        (with_line(1, GOOD[:-1] + "2"), ", line 1: expected 784 values 0 or 1"),
        (with_line(1, GOOD.replace("1", "0.5", 1)), ", line 1: expected 784 values 0 or 1"),
        (with_line(4, "<html>"), ", line 4: .*found 1 values"),
        (lambda lines: "\n".join(lines)[:-9], ", line 4: .*found 779 values"),
        (lambda _: "", ": empty"),
        (lambda _: "MATLAB 5.0 MAT-file", ": a MATLAB file, expected text"),
    ],
    ids=["short", "long", "two", "half", "html", "truncated", "empty", "matlab"],
)
def test_broken_text_is_named_with_its_line(tmp_path: Path, change: Callable[[list[str]], str], message: str) -> None:
    folder = tmp_path / "binarized_mnist"
    write_binarized_mnist(folder)
    path = folder / f"{TEST}.amat"
    path.write_text(change([GOOD] * 4))
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}{message}"):
        binarized(tmp_path).load("test")
    assert not path.with_suffix(".npy").exists()


@pytest.mark.parametrize(("blank", "end"), [(" ", "\n"), ("\t", "\n"), ("  ", "\r\n"), (" ", " \n")])
def test_spacing_does_not_change_the_images(tmp_path: Path, blank: str, end: str) -> None:
    path = tmp_path / "a.amat"
    path.write_bytes(end.join([blank.join("0110"), blank.join("1001")]).encode())
    assert parse_amat(path, path.read_bytes(), (2, 2)).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]


def test_a_byte_order_mark_before_the_text_is_not_a_pixel(tmp_path: Path) -> None:
    path = tmp_path / "a.amat"
    assert parse_amat(path, b"\xef\xbb\xbf0 1 1 0\n", (2, 2)).tolist() == [[0, 1, 1, 0]]


def test_binarized_mnist_verifies_count_and_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_binarized_mnist(tmp_path / "binarized_mnist")
    digest = hashlib.sha256(np.packbits(files[TEST], axis=1).tobytes()).hexdigest()
    monkeypatch.setattr(BinarizedMNIST, "files", {"test": (TEST, 12, digest)})
    assert len(pixels_of(binarized(tmp_path, verify=True))) == 12
    for wrong, message in (((TEST, 13, digest), "expected 13 images, found 12"), ((TEST, 12, "00"), "wrong digest")):
        monkeypatch.setattr(BinarizedMNIST, "files", {"test": wrong})
        with pytest.raises(UserError, match=f"{TEST}.*{message}"):
            binarized(tmp_path, verify=True).load("test")


def test_missing_binarized_mnist_names_file_folder_and_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        binarized(tmp_path).load("val")
    text = str(caught.value)
    assert f"{VALID}.amat not found in {tmp_path / 'binarized_mnist'};" in text
    assert "make train DATA_DIR=" in text


def test_binarized_mnist_is_downloaded_if_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_binarized_mnist(tmp_path / "mirror")
    monkeypatch.setattr(BinarizedMNIST, "url", (tmp_path / "mirror").as_uri() + "/")
    data = binarized(tmp_path / "data")
    data.prepare_data()
    assert np.array_equal(pixels_of(data), files[TEST])
    shutil.rmtree(tmp_path / "mirror")
    data.prepare_data()


# -- the real files -------------------------------------------------------------------------------------------------


@pytest.fixture
def real() -> Path:
    """The folder that VAE_LIGHTNING_DATA_DIR names. The tests read the folder and never write to it."""
    folder = os.environ.get("VAE_LIGHTNING_DATA_DIR")
    if not folder:
        pytest.skip("VAE_LIGHTNING_DATA_DIR names no folder with the real data")
    return Path(folder)


def test_real_mnist(real: Path) -> None:
    if not (real / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST/raw in {real}")
    data = MNIST(str(real))  # verifies the digests of all four files
    images = {split: data.load(split) for split in SPLITS}
    assert {split: len(part.pixels) for split, part in images.items()} == {
        "train": 50_000,
        "val": 10_000,
        "test": 10_000,
    }
    for part in images.values():
        assert part.labels is not None
        assert part.labels.unique().tolist() == list(range(10))
    assert images["test"].labels is not None
    assert images["test"].labels[:5].tolist() == [7, 2, 1, 0, 4]  # the known first labels of MNIST's test set
    train = torch.cat([images["train"].pixels, images["val"].pixels]).float() / 255
    assert train.mean().item() == pytest.approx(0.1307, abs=5e-5)


def test_real_mnist_under_its_other_names(real: Path, tmp_path: Path) -> None:
    """Kaggle's copy unpacks to raw files in folders with the names of the files."""
    raw = real / "MNIST" / "raw"
    if not raw.is_dir():
        pytest.skip(f"no MNIST/raw in {real}")
    for name in IDX_NAMES:
        (tmp_path / name).mkdir()
        (path,) = (path for path in (raw / name, raw / f"{name}.gz") if path.is_file())
        (tmp_path / name / path.name.replace("-idx", ".idx")).symlink_to(path.absolute())
    data = MNIST(str(tmp_path))
    data.prepare_data()
    assert len(data.load("test").pixels) == 10_000


@pytest.mark.parametrize(
    ("split", "count", "mean"), [("train", 50_000, 0.13056), ("val", 10_000, 0.13113), ("test", 10_000, 0.13251)]
)
def test_real_binarized_mnist(real: Path, tmp_path: Path, split: Split, count: int, mean: float) -> None:
    name = f"{BinarizedMNIST.files[split][0]}.amat"
    if not (real / "binarized_mnist" / name).is_file():
        pytest.skip(f"no binarized_mnist/{name} in {real}")
    (tmp_path / "binarized_mnist").mkdir()
    (tmp_path / "binarized_mnist" / name).symlink_to((real / "binarized_mnist" / name).absolute())
    pixels = BinarizedMNIST(str(tmp_path)).load(split).pixels  # verifies the digest
    assert len(pixels) == count
    assert pixels.float().mean().item() == pytest.approx(mean, abs=5e-6)


def test_a_page_in_place_of_the_text_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may answer with a web page and status 200 after the file has moved."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / f"{TRAIN}.amat").write_text("<html>moved</html>")
    monkeypatch.setattr(BinarizedMNIST, "url", mirror.as_uri() + "/")
    with pytest.raises(UserError, match=f"{TRAIN}.amat could not be downloaded .*line 1: expected 784 values 0 or 1"):
        BinarizedMNIST(str(tmp_path / "data")).prepare_data()
    assert not list((tmp_path / "data").rglob("*.amat"))
