"""A folder of the user's own images: any kind of image, a stated split, unreadable files named before training."""

from __future__ import annotations

import errno
import os
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vae_lightning.data import ImageFolder
from vae_lightning.storage.cache import BrokenImagesError
from vae_lightning.types import UserError


def save(path: Path, number: int = 0, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> None:
    """Save a picture of one colour, which `number` decides."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number, 0, 255 - number)).convert(mode).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(30):
        save(tmp_path / "photos" / f"{number:02d}.png", number, size=(40 + number, 30))
    return tmp_path / "photos"


def prepared(folder: Path, **settings: Any) -> ImageFolder:
    chosen = {"height": 16, "width": 24, "cache_dir": str(folder.parent / "cache"), **settings}
    data = ImageFolder(str(folder), **chosen)
    data.prepare_data()
    return data


def numbers(data: ImageFolder, split: str) -> list[int]:
    """The numbers of the images of a split, read from their colours."""
    return data.images(split).pixels[:, 0, 8, 12].tolist()  # type: ignore[arg-type]


def test_each_image_is_in_one_split_and_the_fractions_hold(folder: Path) -> None:
    data = prepared(folder, val_fraction=0.2, test_fraction=0.1)
    parts = [numbers(data, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [21, 6, 3]
    assert sorted(chain(*parts)) == list(range(30))
    assert data.images("train").pixels.shape[1:] == (3, 16, 24)
    assert data.images("train").labels is None


def test_the_split_is_the_same_for_every_seed_and_place(folder: Path, tmp_path: Path) -> None:
    before = numbers(prepared(folder, seed=0), "test")
    moved = folder.rename(tmp_path / "elsewhere and ü")
    assert numbers(prepared(moved, seed=5), "test") == before


def test_own_splits_and_classes(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("valid", 2), ("test", 3)):
        for number in range(count):
            for label, name in enumerate(("cat", "dog")):
                save(tmp_path / "set" / split / name / f"{number}.png", 10 * number + label)
    data = prepared(tmp_path / "set")
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        images = data.images(split)  # type: ignore[arg-type]
        assert sorted(images.pixels[:, 0, 0, 0].tolist()) == sorted(10 * n + k for n in range(count) for k in (0, 1))
        assert images.labels is not None
        assert images.labels.tolist() == (images.pixels[:, 0, 0, 0] % 10).tolist()


@pytest.mark.parametrize("folders", ["Train Test", "train VAL"])
def test_a_split_without_a_folder_is_taken_from_train_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folders: str
) -> None:
    """The images of a folder of test images are never trained on, and images of no split are counted."""
    first, second = folders.split()
    for number in range(20):
        save(tmp_path / "set" / first / f"{number}.png", number)
    for number in range(20, 25):
        save(tmp_path / "set" / second / f"{number}.png", number)
    save(tmp_path / "set" / "extra" / "1.png", 99)
    data = prepared(tmp_path / "set", val_fraction=0.2, test_fraction=0.2)
    present, missing = ("test", "val") if second == "Test" else ("val", "test")
    assert numbers(data, present) == [20, 21, 22, 23, 24]
    assert len(numbers(data, missing)) == 4
    assert sorted(numbers(data, "train") + numbers(data, missing)) == list(range(20))
    out = capsys.readouterr().out
    split = f"train is the folder {first}; {present} is the folder {second}; {missing} is 0.2 of the folder {first};"
    assert split in out
    assert "images outside of these folders, left out: 1\n" in out


def test_a_folder_for_test_and_none_for_train_is_refused(tmp_path: Path) -> None:
    for number in range(9):
        save(tmp_path / "set" / "test" / f"{number}.png")
        save(tmp_path / "set" / "others" / f"{number}.png")
    with pytest.raises(UserError, match="a folder of images for test, none for train"):
        prepared(tmp_path / "set")


def test_the_split_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(folder, val_fraction=0.2)
    split = f"{folder}: split: val is 0.2 of all images; test is 0.1 of all images; drawn by a hash"
    assert split in capsys.readouterr().out


@pytest.mark.parametrize(("channels", "colour"), [(1, [76]), (3, [255, 0, 0]), (4, [255, 0, 0, 255])])
def test_any_number_of_channels(tmp_path: Path, channels: int, colour: list[int]) -> None:
    for number in range(10):
        save(tmp_path / "set" / f"{number}.png", 255)
    data = prepared(tmp_path / "set", channels=channels)
    assert data.image_shape == (channels, 16, 24)
    assert data.images("train").pixels[0, :, 8, 12].tolist() == colour


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_each_fit_crops_pads_or_stretches(tmp_path: Path, fit: str) -> None:
    """The picture is twice as wide as high; its white left and right quarters are cut off, kept or squeezed."""
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, :10] = wide[:, 30:] = 255
    (tmp_path / "set").mkdir()
    for number in range(10):
        Image.fromarray(wide).save(tmp_path / "set" / f"{number}.png")
    row = prepared(tmp_path / "set", height=20, width=20, fit=fit).images("train").pixels[0, 0]
    assert (row[10, 1] > 200) == (fit != "crop")
    assert row[1, 1] == (255 if fit == "stretch" else 0)


def spoil(folder: Path) -> dict[str, str]:
    """Damage three files; returns the message of each by its name."""
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:60])
    (folder / "04.png").write_bytes(b"<!doctype html><p>not found</p>")
    (folder / "05.png").write_bytes(b"")
    return {"03.png": "cannot be decoded", "04.png": "a web page", "05.png": "empty"}


def test_broken_images_are_all_named(folder: Path) -> None:
    messages = spoil(folder)
    with pytest.raises(BrokenImagesError, match="3 unusable images") as caught:
        prepared(folder)
    assert len(caught.value.problems) == 3
    assert str(caught.value).endswith("; delete or replace such files, or leave them out by --data.skip_broken=true")
    for name, message in messages.items():
        assert any(name in problem and message in problem for problem in caught.value.problems)


def test_broken_images_can_be_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(folder)
    data = prepared(folder, skip_broken=True)
    assert "3 images that cannot be read are left out" in capsys.readouterr().out
    seen = chain(*(numbers(data, split) for split in ("train", "val", "test")))
    assert sorted(seen) == [number for number in range(30) if number not in (3, 4, 5)]


@pytest.mark.parametrize("target", ["nowhere.png", "dead.png"], ids=["to nothing", "to itself"])
def test_a_dead_link_is_a_broken_image(folder: Path, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "dead.png").symlink_to(target)
    with pytest.raises(BrokenImagesError, match=r"1 unusable image: .*/dead.png: cannot be read \("):
        prepared(folder)
    data = prepared(folder, skip_broken=True)
    assert "1 image that cannot be read is left out; " in capsys.readouterr().out
    assert sum(len(data.images(split).pixels) for split in ("train", "val", "test")) == 30  # type: ignore[arg-type]


def test_a_link_back_is_not_followed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "again").symlink_to(folder)
    (folder / "itself").symlink_to("itself")
    data = prepared(folder)
    assert f"{folder / 'again'}: a link to a folder that contains it; not followed" in capsys.readouterr().out
    assert sum(len(data.images(split).pixels) for split in ("train", "val", "test")) == 30  # type: ignore[arg-type]


def test_a_folder_that_cannot_be_listed_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replacement of `os.scandir` raises the error, because the system never refuses root."""
    (folder / "locked").mkdir()
    scan = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return scan(path)

    with monkeypatch.context() as patch:  # pytest removes folders by the same function
        patch.setattr("vae_lightning.storage.files.os.scandir", scandir)
        with pytest.raises(UserError, match=r"locked: cannot be listed \(Permission denied\)"):
            prepared(folder)


def test_a_note_of_broken_images_that_cannot_be_written_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"skipped.json: cannot be written \(.*--data.cache_dir"):
        prepared(folder, skip_broken=True, cache_dir=str(tmp_path / "file"))


def test_images_of_every_kind_are_taken(folder: Path) -> None:
    save(folder / "grey.jpg", mode="L")
    save(folder / "cmyk.jpg", mode="CMYK")
    save(folder / "palette.gif", mode="P")
    Image.fromarray(np.full((20, 20), 40000, np.uint16)).save(folder / "sixteen.PNG")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes(b"no image")
    data = prepared(folder)
    assert sum(len(data.images(split).pixels) for split in ("train", "val", "test")) == 34  # type: ignore[arg-type]


def test_files_with_other_endings_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files that may be images are counted; files that are certainly no images and hidden files are not."""
    for name in ("a.heic", "b.HEIC", "c.avif", "bare", "labels.csv", "Thumbs.db", ".hidden.heic"):
        (folder / name).touch()
    prepared(folder)
    out = capsys.readouterr().out
    assert f"{folder}: 4 files not read because of their endings (.heic 2, .avif 1, none 1)\n" in out


def test_notes_beside_images_are_not_mentioned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "notes.txt").touch()
    prepared(folder)
    assert "not read" not in capsys.readouterr().out


def test_a_folder_with_only_other_endings_lists_the_endings(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"a.kind{number}").touch()
    with pytest.raises(UserError, match="no images there") as refusal:
        prepared(tmp_path)
    endings = "7 files not read because of their endings (.kind0 1, .kind1 1, .kind2 1, .kind3 1, .kind4 1, ...)"
    assert endings in str(refusal.value)


def test_notes_that_the_user_knows_are_printed_again_only_if_the_files_change(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepared(folder)
    assert capsys.readouterr().out.count("split: ") == 1
    data.prepare_data()  # as a test after the training does
    assert capsys.readouterr().out == ""
    save(folder / "new.png", 200)
    data.prepare_data()
    assert capsys.readouterr().out.count("split: ") == 1


def test_a_folder_that_does_not_exist_is_said_with_the_nearest_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos_of_cats").mkdir()
    (tmp_path / "a_file.png").touch()
    monkeypatch.chdir(tmp_path)
    for given, said in (
        (Path("photos_of_cat"), r"photos_of_cat: there is no such folder \(did you mean photos_of_cats\?\)"),
        (tmp_path / "photo_of_cats" / "new", rf"\(did you mean {tmp_path / 'photos_of_cats'}\?\)"),
        (Path("zzz/yyy"), rf"zzz/yyy: there is no such folder \(the nearest folder that exists is {tmp_path}\)"),
        (Path("a_file.png"), "a_file.png is a file, not a folder"),
    ):
        with pytest.raises(UserError, match=said):
            prepared(given)


def test_a_new_image_makes_the_cache_stale(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(folder)
    save(folder / "new.png", 200)
    data = prepared(folder)
    assert "stale" in capsys.readouterr().out
    assert 200 in chain(*(numbers(data, split) for split in ("train", "val", "test")))


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no images there \(files that end in .*DATA_DIR"):
        prepared(tmp_path)
    save(tmp_path / "two" / "1.png")
    save(tmp_path / "two" / "2.png")
    with pytest.raises(UserError, match="number of images is 2, which leaves none for train"):
        prepared(tmp_path / "two")


@pytest.mark.parametrize(
    "settings",
    [
        {"channels": 2},
        {"height": 0},
        {"fit": "zoom"},
        {"val_fraction": 0.0},
        {"val_fraction": 0.6, "test_fraction": 0.6},
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="ImageFolder"):
        ImageFolder(str(tmp_path), **settings)
