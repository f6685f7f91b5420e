"""Image folders that are easily misunderstood. Each is read correctly, or refused with the flag that decides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers import REPOSITORY, only
from vae_lightning.__main__ import main
from vae_lightning.data import ImageFolder
from vae_lightning.data.folders import split_of
from vae_lightning.data.module import SPLITS
from vae_lightning.types import UserError

RANDOM = np.random.default_rng(0)


def grey() -> np.ndarray:
    return RANDOM.integers(0, 256, (8, 8), dtype=np.uint8)


def write(folder: Path, counts: dict[str, int], image: Any = grey) -> Path:
    """Write images into folders below `folder`: `counts` is the number of images by the name of the folder."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            Image.fromarray(image()).save(folder / name / f"{number}.png")
    return folder


def prepared(folder: Path, **settings: Any) -> ImageFolder:
    data = ImageFolder(str(folder), 8, 8, 1, cache_dir=str(folder.parent / "cache"), **settings)
    data.prepare_data()
    return data


def counts(data: ImageFolder) -> list[int]:
    return [len(data.images(split).pixels) for split in SPLITS]


def labels(data: ImageFolder, split: Any) -> list[int]:
    values = data.images(split).labels
    assert values is not None
    return values.tolist()


def test_the_usual_names_of_splits() -> None:
    for split, names in {
        "train": "train training trn Train TRAINING training_set train-images trainset",
        "val": "val valid validation dev Valid validation_set",
        "test": "test testing tst eval evaluation Testing test_images testset",
        None: "cat trains testament validate dataset images set training2 bullet_train",
    }.items():
        assert {split_of(name) for name in names.split()} == {split}


def test_training_and_testing_are_splits_and_the_digits_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The archive mnist_png unpacks so. No test image is trained on, and no label is the name of a split."""
    folder = write(
        tmp_path / "mnist_png", {f"{s}/{k}": n for s, n in (("training", 10), ("testing", 4)) for k in "037"}
    )
    data = prepared(folder)
    assert counts(data) == [27, 3, 12]
    assert sorted(labels(data, "test")) == [0] * 4 + [1] * 4 + [2] * 4
    assert data.class_names == ("0", "3", "7")
    out = capsys.readouterr().out
    assert "split: train is the folder training; test is the folder testing; val is 0.1 of the folder training;" in out
    assert f"{folder}: label: 3 classes, named by the folders: 0 = 0 (14), 1 = 3 (14), 2 = 7 (14)\n" in out


VEHICLES = dict.fromkeys(("airplane", "bus", "car", "train"), 10)


def test_a_class_called_train_is_refused_until_the_user_chooses(tmp_path: Path) -> None:
    folder = write(tmp_path / "vehicles", VEHICLES)
    question = r"train may be the training set or a class, because airplane, bus, car lie .*=folders .*=fractions"
    with pytest.raises(UserError, match=question):
        prepared(folder)
    data = prepared(folder, splits="fractions")
    assert counts(data) == [32, 4, 4]
    assert data.class_names == ("airplane", "bus", "car", "train")
    assert sorted(label for split in SPLITS for label in labels(data, split)) == sorted([0, 1, 2, 3] * 10)
    data = prepared(folder, splits="folders")
    assert counts(data) == [8, 1, 1]
    assert data.class_names == ()


@pytest.mark.parametrize(
    ("folders", "splits", "message"),
    [
        (
            "test others",
            "auto",
            "a folder of images for test, none for train; rename the folder of .* to train, or pass .*fractions",
        ),
        ("dev test", "folders", "a folder of images for val and test, none for train"),
        (
            "train val validation",
            "auto",
            "val, validation are names of one split; rename all but one, or pass .*fractions",
        ),
        ("train Train", "folders", "Train, train are names of one split"),
        ("cat dog", "folders", "no folder of images there is named train"),
        (
            "mnist/training/0 mnist/testing/0",
            "auto",
            "mnist/testing, mnist/training are named like splits, but lie within",
        ),
        (
            "cat/train cat/test dog/train dog/test",
            "auto",
            "cat/test, cat/train, dog/test, dog/train are named like splits",
        ),
    ],
)
def test_what_allows_two_meanings_is_refused(tmp_path: Path, folders: str, splits: Any, message: str) -> None:
    folder = write(tmp_path / "set", dict.fromkeys(folders.split(), 10))
    with pytest.raises(UserError, match=f"^{folder}: {message}") as caught:
        prepared(folder, splits=splits)
    assert "\n" not in str(caught.value)
    assert "--data.splits=fractions" in str(caught.value)
    assert sum(counts(prepared(folder, splits="fractions"))) == 10 * len(folders.split())


@pytest.mark.parametrize(
    "folders",
    ["cat/test dog/dev", "cat/train dog/train", "2019/dev 2020/old", "a/b/train a/b/test", "x y", "train/x train/y"],
)
def test_folder_names_with_one_meaning_are_not_refused(tmp_path: Path, folders: str) -> None:
    data = prepared(write(tmp_path / "set", dict.fromkeys(folders.split(), 10)))
    assert counts(data) == [16, 2, 2]


def test_train_alone_with_a_stray_image_beside_it_is_the_training_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepared(write(tmp_path / "set", {"train": 20, ".": 1}))
    assert counts(data) == [16, 2, 2]
    assert "images outside of these folders, left out: 1\n" in capsys.readouterr().out


def test_a_folder_that_is_repeated_by_its_archive_is_no_class(tmp_path: Path) -> None:
    folders = {f"{s}_set/{s}_set/{name}": 10 for s in ("training", "test") for name in ("cat", "dog")}
    data = prepared(write(tmp_path / "set", folders))
    assert data.class_names == ("cat", "dog")
    assert sorted(labels(data, "test")) == [0] * 10 + [1] * 10


def test_a_class_within_a_split_may_have_the_name_of_a_split(tmp_path: Path) -> None:
    data = prepared(write(tmp_path / "set", {f"{s}/{name}": 5 for s in ("train", "test") for name in ("bus", "train")}))
    assert data.class_names == ("bus", "train")


def test_the_reason_for_no_labels_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "set", {"cat": 10, "dog": 10})
    write(folder, {".": 1})
    data = prepared(folder)
    assert data.images("train").labels is None
    assert data.class_names == ()
    assert "no labels, because 1 of 21 images are not in the folder of a class (0.png);" in capsys.readouterr().out
    prepared(write(tmp_path / "one", {"cat": 10}))
    assert "no labels, because all images lie in one folder, cat\n" in capsys.readouterr().out
    prepared(write(tmp_path / "none", {".": 10}))
    assert ": label" not in (out := capsys.readouterr().out)
    assert ": no labels" not in out


def test_classes_that_are_not_trained_on_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = {f"train/{number:02d}": 2 for number in range(20)}
    data = prepared(write(tmp_path / "set", {**many, "test/01": 1, "test/unknown": 1, "val/01": 1}))
    out = capsys.readouterr().out
    assert "label: 21 classes, named by the folders: 0 = 00 (2), 1 = 01 (4), " in out
    assert "11 = 11 (2) and 9 more; no training image of unknown\n" in out
    assert labels(data, "test") == [1, 20]


def test_names_come_from_the_cache_if_the_files_are_gone(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", {"cat": 10, "dög": 10})
    prepared(folder)
    folder.rename(tmp_path / "gone")
    data = ImageFolder(str(folder), 8, 8, 1, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    assert data.class_names == ("cat", "dög")
    with pytest.raises(UserError, match="there is no such folder"):  # the cache holds another split
        prepared(folder, splits="folders")


def twelve_bits() -> np.ndarray:
    image = RANDOM.integers(0, 4096, (8, 8), dtype=np.uint16)
    image[0, 0], image[0, 1], image[0, 2] = 0, 2048, 4095
    return image


def test_twelve_bits_in_sixteen_are_noticed_and_scaled_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "xray", {".": 30}, twelve_bits)
    prepared(folder)
    warning = f"{folder}: the brightest pixel of 24 checked images is 16 of 255; if the files hold 12 bits"
    assert warning in (out := capsys.readouterr().out)
    assert "--data.grey_bits=12" in out
    data = prepared(folder, grey_bits=12)
    assert "brightest" not in capsys.readouterr().out
    assert data.images("test").pixels[:, 0, 0, :3].tolist() == [[0, 128, 255]] * 3  # 255 * 2048 / 4095 = 127.53
    with pytest.raises(UserError, match=r"grey values 0 to 4095, expected 11 bits: 0 to 2047"):
        prepared(folder, grey_bits=11)


def icon(colour: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    image = np.zeros((8, 8, 4), dtype=np.uint8)
    image[2:6, 2:6] = *colour, 255
    return image


def test_a_set_of_constant_images_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "icons", {".": 30}, icon)
    prepared(folder)
    warning = "each of 24 checked images has one value everywhere (the brightest: 0)"
    assert warning in (out := capsys.readouterr().out)
    assert "unless --data.channels=4" in out
    Image.fromarray(icon((9, 9, 200))).save(folder / "0.png")
    Image.fromarray(icon((9, 9, 200))).save(folder / "1.png")
    ImageFolder(str(folder), 8, 8, 4, cache_dir=str(tmp_path / "cache")).prepare_data()
    assert "one value" not in capsys.readouterr().out


@pytest.mark.parametrize("settings", [{"splits": "some"}, {"grey_bits": 8}, {"grey_bits": 17}])
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"ImageFolder: {next(iter(settings))} is"):
        ImageFolder(**settings)


def test_a_run_keeps_the_table_of_classes_and_its_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    folder = write(tmp_path / "vehicles", VEHICLES)
    args = ["-c", "configs/vae/images.yaml", f"--data.data_dir={folder}", f"--data.cache_dir={tmp_path / 'cache'}"]
    assert main(["check-data", *args]) == 2
    assert "vehicles: train may be the training set or a class" in capsys.readouterr().err
    args += ["--data.splits=fractions", "--data.height=8", "--data.width=8", "--data.channels=1"]
    args += ["--model.encoder=vae_lightning.networks.MLP", "--model.decoder=vae_lightning.networks.MLP"]
    args += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.logger=false"]
    args += ["--trainer.log_every_n_steps=1"]
    assert main(["fit", *args, f"--runs_dir={tmp_path / 'runs'}"]) == 0
    names = json.loads(only(tmp_path / "runs", "**/classes.json").read_text())
    assert names == ["airplane", "bus", "car", "train"]
