"""Files that are not in the data set become x exactly as the data set would have made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vae_lightning.data import Digits, ImageFolder
from vae_lightning.data.own_files import OwnFiles
from vae_lightning.storage.loader import first_images
from vae_lightning.types import UserError


def write_digits(folder: Path, count: int = 4) -> list[Path]:
    """Write the first test digits as PNG files with 17 grey levels from 0 to 255."""
    pixels = Digits().images("test").pixels[:count, 0].numpy()
    paths = [folder / f"{i}.png" for i in range(count)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(np.rint(image.astype(int) * 255 / 16).astype(np.uint8)).save(path)
    return paths


@pytest.mark.parametrize("options", [{}, {"binarisation": "threshold"}, {"binarisation": "dynamic", "flip": True}])
def test_a_digit_that_was_written_is_read_as_the_loader_gives_it(tmp_path: Path, options: dict[str, Any]) -> None:
    data = Digits(**options)
    batch, notes = OwnFiles(data).batch(write_digits(tmp_path))
    expected = first_images(data.test_dataloader(), 4)["x"]
    assert notes == []
    if options.get("binarisation") == "dynamic":  # the noise depends on the number of images in the split, too
        assert batch["x"].unique().tolist() == [0, 1]
    else:
        assert torch.equal(batch["x"], expected)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_a_folders_own_files_are_fitted_alike(tmp_path: Path, fit: Any) -> None:
    random = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "in").mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (14, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    data = ImageFolder(str(tmp_path / "in"), 8, 8, fit=fit, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    paths = data.paths("test")
    assert paths
    unprepared = ImageFolder(str(tmp_path / "nowhere"), 8, 8, fit=fit, cache_dir=str(tmp_path / "empty"))
    batch, notes = OwnFiles(unprepared).batch(paths)
    assert torch.equal(batch["x"], first_images(data.test_dataloader(), len(paths))["x"])
    how = {"crop": "cropped and resized", "pad": "resized and padded", "stretch": "stretched"}[fit]
    assert notes[0] == f"{paths[0]}: 20 x 14 pixels, {how} to 8 x 8"


def test_a_photo_that_lies_on_its_side_is_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (16, 8)).save(tmp_path / "a.jpg", exif=exif)
    _, notes = OwnFiles(Digits()).batch([tmp_path / "a.jpg"])
    assert notes == [f"{tmp_path / 'a.jpg'}: 8 x 16 pixels, cropped and resized to 8 x 8"]


@pytest.mark.parametrize(
    ("contents", "says"), [(b"GIF?", "a.png: not an image"), (b"", "a.png: empty"), (None, "a.png")]
)
def test_what_is_no_image_is_named(tmp_path: Path, contents: bytes | None, says: str) -> None:
    if contents is not None:
        (tmp_path / "a.png").write_bytes(contents)
    with pytest.raises(UserError, match=says):
        OwnFiles(Digits()).batch([tmp_path / "a.png"])


def test_data_that_are_no_images_take_no_files() -> None:
    with pytest.raises(UserError, match="object is no ImageDataModule"):
        OwnFiles(object())
