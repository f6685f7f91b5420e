"""CelebA from a zip, a folder and Kaggle's copy; broken files are refused; a failed download names the remedy."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import REPOSITORY
from vae_lightning.data import CelebA
from vae_lightning.data.celeba import CROPS
from vae_lightning.synthetic import FACE_ATTRIBUTES, write_celeba_layout
from vae_lightning.types import UserError

N = 40


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `folder` and `zip`: the same forty drawn faces, as CelebA's folder and as CelebA's archive."""
    root = tmp_path_factory.mktemp("celeba")
    write_celeba_layout(root / "folder", N)
    write_celeba_layout(root / "zip", N, archive=True)
    return root


@pytest.fixture
def folder(layouts: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may damage."""
    return Path(shutil.copytree(layouts / "folder", tmp_path / "a b ü"))


def prepared(data_dir: Path, cache: Path, **settings: Any) -> CelebA:
    data = CelebA(str(data_dir), cache_dir=str(cache), **{"verify": False, **settings})
    data.prepare_data()
    return data


def reference(data_dir: Path, name: str, box: tuple[int, int, int, int], size: int = 64) -> torch.Tensor:
    """One image, cropped and resized by PIL."""
    with Image.open(data_dir / "celeba" / "img_align_celeba" / name) as image:
        small = image.convert("RGB").crop(box).resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def test_the_boxes_are_the_published_ones() -> None:
    """Three squares in the middle of the 178 x 218 image, and NVAE's, which is center148 moved down by 5 pixels."""
    assert CROPS["box148"] == (15, 40, 163, 188)
    for name, size in (("center148", 148), ("center140", 140), ("center108", 108)):
        left, upper, right, lower = CROPS[name]
        assert (right - left, lower - upper) == (size, size)
        assert (left + right, upper + lower) == (178, 218)
    assert CROPS["box148"][1] - CROPS["center148"][1] == 5


def assert_same_but_for_rounding(pixels: torch.Tensor, expected: torch.Tensor) -> None:
    """Torch's resize differs from PIL's by at most one grey level, in less than 1 % of the pixels."""
    difference = pixels.int() - expected.int()
    assert difference.abs().max() <= 1
    assert difference.count_nonzero() < 0.01 * difference.numel()


@pytest.mark.parametrize("crop", list(CROPS))
def test_pixels_are_those_of_the_plain_way(layouts: Path, tmp_path: Path, crop: str) -> None:
    data = prepared(layouts / "folder", tmp_path, crop=crop)
    for split, first in (("train", 0), ("val", N * 8 // 10), ("test", N * 9 // 10)):
        expected = reference(layouts / "folder", f"{first + 1:06d}.jpg", CROPS[crop])
        assert_same_but_for_rounding(data.images(split).pixels[0], expected)  # type: ignore[arg-type]


def test_zip_and_folder_give_the_same(layouts: Path, tmp_path: Path) -> None:
    assert_same(*(prepared(layouts / form, tmp_path / form) for form in ("folder", "zip")))


def assert_same(*sets: CelebA) -> None:
    for split in ("train", "val", "test"):
        first, second = (data.images(split) for data in sets)  # type: ignore[arg-type]
        assert torch.equal(first.pixels, second.pixels)
        assert first.labels is not None
        assert second.labels is not None
        assert torch.equal(first.labels, second.labels)


def as_csv(folder: Path, mark: bytes = b"") -> None:
    """Replace both lists by CSV files like those of Kaggle's copy, with `mark` at the start."""
    partition, attributes = (folder / "celeba" / name for name in ("list_eval_partition.txt", "list_attr_celeba.txt"))
    rows = [",".join(line.split()) for line in partition.read_text().splitlines()]
    partition.with_suffix(".csv").write_bytes(mark + "\n".join(["image_id,partition", *rows, ""]).encode())
    _, header, *rows = [",".join(line.split()) for line in attributes.read_text().splitlines()]
    attributes.with_suffix(".csv").write_bytes(mark + "\n".join([f"image_id,{header}", *rows, ""]).encode())
    partition.unlink()
    attributes.unlink()


def test_the_copy_in_csv_with_a_folder_in_a_folder_gives_the_same(layouts: Path, folder: Path, tmp_path: Path) -> None:
    """Kaggle's copy has the images in a second folder inside the first, and both lists as CSV with a header."""
    celeba = folder / "celeba"
    (celeba / "img_align_celeba").rename(tmp_path / "inner")
    (celeba / "img_align_celeba").mkdir()
    (tmp_path / "inner").rename(celeba / "img_align_celeba" / "img_align_celeba")
    as_csv(folder)
    assert_same(prepared(layouts / "folder", tmp_path / "1"), prepared(folder, tmp_path / "2"))


def test_blank_lines_in_the_lists_are_ignored(layouts: Path, folder: Path, tmp_path: Path) -> None:
    for path in (folder / "celeba").glob("*.txt"):
        path.write_text(path.read_text().replace("\n", "\n\n"))
    assert_same(prepared(layouts / "folder", tmp_path / "1"), prepared(folder, tmp_path / "2"))


def test_a_byte_order_mark_before_the_lists_is_not_part_of_a_name(
    layouts: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor may have put the mark there; the digests are those of the lists without the mark."""
    for name in ("list_eval_partition.txt", "list_attr_celeba.txt"):
        path = folder / "celeba" / name
        monkeypatch.setitem(CelebA.digests, name, hashlib.md5(path.read_bytes()).hexdigest())  # type: ignore[arg-type]
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    monkeypatch.setattr(CelebA, "counts", (32, 4, 4))
    assert_same(prepared(layouts / "folder", tmp_path / "1"), prepared(folder, tmp_path / "2", verify=True))


def test_a_byte_order_mark_before_the_lists_in_csv_is_not_part_of_the_header(
    layouts: Path, folder: Path, tmp_path: Path
) -> None:
    as_csv(folder, mark=b"\xef\xbb\xbf")
    assert_same(prepared(layouts / "folder", tmp_path / "1"), prepared(folder, tmp_path / "2"))


def test_splits_are_those_of_the_partition_and_do_not_overlap(layouts: Path, tmp_path: Path) -> None:
    data = prepared(layouts / "zip", tmp_path)
    images = [data.images(split).pixels for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert [len(pixels) for pixels in images] == [32, 4, 4]
    digests = {hashlib.sha256(image.numpy().tobytes()).hexdigest() for pixels in images for image in pixels}
    assert len(digests) == N


def test_attributes_are_labels_if_the_file_exists(layouts: Path, folder: Path, tmp_path: Path) -> None:
    batch = next(iter(prepared(layouts / "folder", tmp_path / "1").val_dataloader()))
    lines = (layouts / "folder" / "celeba" / "list_attr_celeba.txt").read_text().splitlines()
    assert lines[1].split() == list(FACE_ATTRIBUTES)
    first = [int(value) for value in lines[2 + 32].split()[1:]]
    assert (batch["label"][0].int() * 2 - 1).tolist() == first
    (folder / "celeba" / "list_attr_celeba.txt").unlink()
    assert "label" not in next(iter(prepared(folder, tmp_path / "2").val_dataloader()))


def test_flips_in_training_and_nowhere_else(layouts: Path, tmp_path: Path) -> None:
    """About half of the training images are mirrored, others in each epoch; images of val and test never are."""
    data = prepared(layouts / "folder", tmp_path, flip=True, batch_size=N)
    pixels = data.images("train").pixels
    flips = []
    for epoch in range(2):
        loader = data.train_dataloader()
        loader.set_epoch(epoch)
        x = _bytes(next(iter(loader))["x"])[loader._order().argsort()]
        straight = (x == pixels).flatten(1).all(1)
        mirrored = (x == pixels.flip(-1)).flatten(1).all(1)
        assert (straight ^ mirrored).all()
        flips.append(mirrored)
    assert 6 <= flips[0].sum() <= 26
    assert not torch.equal(flips[0], flips[1])
    for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        x = torch.cat([batch["x"] for batch in loader])
        assert torch.equal(_bytes(x), data.images(split).pixels)  # type: ignore[arg-type]


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """The pixels that x was made from; x is pixel / 255 up to rounding."""
    torch.testing.assert_close(x * 255, (x * 255).round(), rtol=1e-6, atol=1e-6)
    return (x * 255).round().to(torch.uint8)


def test_any_size(layouts: Path, tmp_path: Path) -> None:
    data = prepared(layouts / "folder", tmp_path, size=32)
    assert data.image_shape == (3, 32, 32)
    expected = reference(layouts / "folder", "000001.jpg", CROPS["center148"], 32)
    assert_same_but_for_rounding(data.images("train").pixels[0], expected)


def test_once_cached_the_files_are_not_needed(folder: Path, tmp_path: Path) -> None:
    prepared(folder, tmp_path / "cache")
    shutil.rmtree(folder / "celeba")
    assert len(prepared(folder, tmp_path / "cache").images("train").pixels) == 32
    with pytest.raises(UserError, match="not found"):
        prepared(folder, tmp_path / "cache", crop="center140")


def test_a_changed_file_is_noticed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(folder, tmp_path / "cache")
    image = folder / "celeba" / "img_align_celeba" / "000001.jpg"
    Image.new("RGB", (178, 218), (255, 0, 0)).save(image)
    data = prepared(folder, tmp_path / "cache")
    assert "stale: source changed" in capsys.readouterr().out
    assert data.images("train").pixels[0, :, 32, 32].tolist()[1:] == [0, 0]


def write_zip(data_dir: Path, contents: bytes) -> None:
    shutil.rmtree(data_dir / "celeba" / "img_align_celeba", ignore_errors=True)
    (data_dir / "celeba" / "img_align_celeba.zip").write_bytes(contents)


def damage_image(data_dir: Path, change: Callable[[Path], None]) -> None:
    change(data_dir / "celeba" / "img_align_celeba" / "000007.jpg")


def as_mode(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.open(path).convert(mode).save(path)


def traversal(data_dir: Path) -> None:
    shutil.rmtree(data_dir / "celeba" / "img_align_celeba")
    with zipfile.ZipFile(data_dir / "celeba" / "img_align_celeba.zip", "w") as file:
        file.writestr("../../000001.jpg", b"x")


def change_attributes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(data_dir: Path) -> None:
        path = data_dir / "celeba" / "list_attr_celeba.txt"
        path.write_bytes(change(path.read_bytes()))

    return damage


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no images": (lambda d: shutil.rmtree(d / "celeba" / "img_align_celeba"), "neither img_align_celeba.zip nor"),
    "no partition": (
        lambda d: (d / "celeba" / "list_eval_partition.txt").unlink(),
        "list_eval_partition.txt not found",
    ),
    "partition empty": (
        lambda d: (d / "celeba" / "list_eval_partition.txt").write_text(""),
        "line 1: expected the name",
    ),
    "partition is html": (
        lambda d: (d / "celeba" / "list_eval_partition.txt").write_text("<html><body>quota</body></html>"),
        "line 1: expected the name",
    ),
    "attributes empty": (change_attributes(lambda _: b""), "list_attr_celeba.txt, line 1: expected the name of an"),
    "attributes of one line": (change_attributes(lambda _: b"40\n"), "list_attr_celeba.txt, line 1: expected the name"),
    "attributes cut": (change_attributes(lambda raw: raw[:-5]), "line 42: expected the name of an image and 40 values"),
    "attributes without a row": (
        change_attributes(lambda raw: raw.replace(b"000007.jpg", b"000000.jpg")),
        "list_attr_celeba.txt: 1 of 40 images are missing: 000007.jpg",
    ),
    "attributes in words": (change_attributes(lambda raw: raw.replace(b"-1", b"no", 1)), "txt, line 3: expected"),
    "attributes binary": (change_attributes(lambda _: bytes(range(256))), "list_attr_celeba.txt, line "),
    "attributes are html": (
        change_attributes(lambda _: b"<html>\n<body>\nquota</body></html>"),
        "txt, line 2: expected",
    ),
    "partition with a name twice": (
        lambda d: (p := d / "celeba" / "list_eval_partition.txt").write_text(
            p.read_text().replace("1.jpg 0", "2.jpg 0", 1)
        ),
        "list_eval_partition.txt: the list names 000002.jpg more than once",
    ),
    "quota page for a zip": (lambda d: write_zip(d, b"<!DOCTYPE html><html>Quota exceeded</html>"), "web page"),
    "empty zip": (lambda d: write_zip(d, b""), "img_align_celeba.zip"),
    "half a zip": (lambda d: write_zip(d, b"PK\x03\x04" + bytes(100)), "img_align_celeba.zip"),
    "zip that climbs": (traversal, "img_align_celeba.zip"),
    "missing jpeg": (lambda d: damage_image(d, Path.unlink), "1 of 40 images are missing: 000007.jpg"),
    "truncated jpeg": (lambda d: damage_image(d, lambda p: p.write_bytes(p.read_bytes()[:2000])), "000007.jpg"),
    "empty jpeg": (lambda d: damage_image(d, lambda p: p.write_bytes(b"")), "000007.jpg: empty"),
    "dead link": (
        lambda d: damage_image(d, lambda p: (p.unlink(), p.symlink_to("x"))[1]),
        "000007.jpg: cannot be read",
    ),
    "html jpeg": (lambda d: damage_image(d, lambda p: p.write_bytes(b"<html>")), "000007.jpg: a web page"),
    "huge jpeg": (lambda d: damage_image(d, lambda p: Image.new("RGB", (2000, 2000)).save(p)), "expected 178 x 218"),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_is_one_line_that_names_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", no_network)
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError) as caught:
        prepared(folder, tmp_path / "cache")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "cache").rglob("header.json")) == []


def no_network(*_: object) -> None:
    raise RuntimeError("Cannot connect to drive.google.com")


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_grey_or_cmyk_jpeg_is_taken_as_rgb(folder: Path, tmp_path: Path, mode: str) -> None:
    damage_image(folder, as_mode(mode))
    pixels = prepared(folder, tmp_path / "cache").images("train").pixels[6]
    assert_same_but_for_rounding(pixels, reference(folder, "000007.jpg", CROPS["center148"]))


def test_files_that_are_not_celeba_are_refused_if_verified(layouts: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"expected \(162770, 19867, 19962\) images in train, val, test, found \(32, 4, 4\)"
    ):
        prepared(layouts / "zip", tmp_path, verify=True)


def test_a_wrong_digest_is_refused(layouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CelebA, "counts", (32, 4, 4))
    with pytest.raises(UserError, match=r"list_eval_partition.txt: wrong digest: expected d32c9cbf"):
        prepared(layouts / "zip", tmp_path, verify=True)
    partition = (layouts / "zip" / "celeba" / "list_eval_partition.txt").read_bytes()
    digests = {**CelebA.digests, "list_eval_partition.txt": hashlib.md5(partition).hexdigest()}
    monkeypatch.setattr(CelebA, "digests", digests)
    with pytest.raises(UserError, match=r"img_align_celeba.zip: wrong digest: expected 00d2c5bc"):
        prepared(layouts / "zip", tmp_path, verify=True)


def test_a_failed_download_tells_how_to_download_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", no_network)
    with pytest.raises(UserError) as caught:
        prepared(tmp_path / "nothing", tmp_path / "cache")
    assert "by hand" in str(caught.value)
    assert "the download failed: Cannot connect" in str(caught.value)
    assert not list((tmp_path / "nothing").rglob("*.zip"))


def test_a_download_without_gdown_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gdown", None)  # the import fails, like without the package
    with pytest.raises(UserError, match=r"the download needs gdown: pip install 'vae_lightning\[celeba\]'"):
        prepared(tmp_path / "nothing", tmp_path / "cache")
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(requirement.startswith("gdown") for requirement in extras["celeba"])


@pytest.fixture
def fetched(layouts: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the downloaded files. A test that appends `quota` makes the download of the attributes fail."""
    names: list[str] = []

    def fetch(_: str, root: str, name: str, __: str) -> None:
        if "quota" in names and "attr" in name:
            raise RuntimeError("Too many users")
        names.append(name)
        shutil.copy(layouts / "zip" / "celeba" / name, Path(root) / name)

    monkeypatch.setattr("torchvision.datasets.utils.download_file_from_google_drive", fetch)
    return names


def test_a_download_leaves_only_complete_files(fetched: list[str], tmp_path: Path) -> None:
    data = prepared(tmp_path / "new", tmp_path / "cache")
    assert len(data.images("train").pixels) == 32
    assert sorted(path.name for path in (tmp_path / "new" / "celeba").glob("[!.]*")) == [
        "img_align_celeba.zip",
        "list_attr_celeba.txt",
        "list_eval_partition.txt",
    ]
    assert fetched[-1] == "list_attr_celeba.txt"


def test_a_quota_on_the_attributes_stops_no_download(
    fetched: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched.append("quota")
    images = prepared(tmp_path / "new", tmp_path / "cache").images("train")
    assert len(images.pixels) == 32
    assert images.labels is None
    assert "list_attr_celeba.txt: not downloaded (Too many users)" in capsys.readouterr().out


def test_a_file_in_data_dir_itself_is_not_downloaded(fetched: list[str], layouts: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy(layouts / "zip" / "celeba" / "img_align_celeba.zip", tmp_path / "new")
    prepared(tmp_path / "new", tmp_path / "cache")
    assert fetched == ["list_eval_partition.txt", "list_attr_celeba.txt"]


@pytest.mark.parametrize("settings", [{"crop": "center100"}, {"size": 0}])
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="CelebA"):
        CelebA(str(tmp_path), **settings)
