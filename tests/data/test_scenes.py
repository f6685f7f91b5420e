"""A folder of the user's own scenes: maps fit like their images, objects are numbered, faults are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vae_lightning.__main__ import main
from vae_lightning.data import SceneFolder, Scenes
from vae_lightning.data.scenes import boxes_of
from vae_lightning.storage.cache import BrokenImagesError
from vae_lightning.types import UserError

SIZE = (20, 30)
PLACES = {"data_dir": "images", "maps_dir": "maps", "cache_dir": "cache"}


def draw(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A map of number % 3 objects, with numbers that are not in order."""
    values = np.zeros(size, np.uint8)
    for k in range(number % 3):
        values[2 + 8 * k : 8 + 8 * k, 3 + 9 * k : 12 + 9 * k + number % 5] = (90, 7)[k]
    return values


def save(folder: Path, name: str, values: np.ndarray) -> None:
    """Save a map, and an image that is white where there is an object."""
    for kind, pixels in (("images", 255 * (values > 0).astype(np.uint8)), ("maps", values)):
        path = folder / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(40):
        save(tmp_path, f"{number // 20}/{number:02d}.png", draw(number))
    return tmp_path


def scenes(folder: Path, **settings: Any) -> SceneFolder:
    chosen = {"height": 20, "width": 30, "channels": 1, "cache_dir": str(folder / "cache"), **settings}
    data = SceneFolder(str(folder / "images"), str(folder / "maps"), **chosen)
    data.prepare_data()
    return data


def test_a_batch_holds_the_objects_of_its_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = scenes(folder, max_objects=4)
    batch = next(iter(data.train_dataloader()))
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "x": (torch.float32, (32, 1, 20, 30)),
        "segmentation": (torch.uint8, (32, 20, 30)),
        "count": (torch.int64, (32,)),
        "boxes": (torch.float32, (32, 4, 4)),
    }
    assert (data.num_objects, data.class_names) == (4, ())
    assert "label" not in capsys.readouterr().out
    assert torch.equal(batch["x"][:, 0] > 0, batch["segmentation"] > 0)
    assert torch.equal(batch["segmentation"].flatten(1).amax(1).long(), batch["count"])
    for split in ("train", "val", "test"):
        examples, paths = data.images(split), data.paths(split)  # type: ignore[arg-type]
        assert isinstance(examples, Scenes)
        assert paths is not None
        for path, objects, count in zip(paths, examples.fields["segmentation"], examples.fields["count"], strict=True):
            drawn = draw(int(Path(path).stem))
            assert count == len(np.unique(drawn)) - 1
            renumbered = np.searchsorted(np.unique([0, *drawn.flat]), drawn)  # 7 is object 1, 90 object 2
            assert np.array_equal(objects, renumbered)


def test_boxes_are_the_extents_of_masks() -> None:
    masks = torch.zeros(2, 3, 9, 7, dtype=torch.bool)
    masks[0, 1, 2:5, 3:7] = True
    masks[1, 0, 8, 0] = True
    boxes = boxes_of(masks)
    assert boxes.shape == (2, 3, 4)
    assert boxes[0, 1].tolist() == [2, 3, 3, 4]
    assert boxes[1, 0].tolist() == [8, 0, 1, 1]
    assert (boxes < 0).all(2).sum() == 4


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("height", "width"), [(20, 20), (40, 90), (10, 15), (33, 17)])
def test_a_map_is_fitted_like_its_image(tmp_path: Path, fit: str, height: int, width: int) -> None:
    """An image is white where its map has an object; after the fit white and objects agree but for half a pixel."""
    values = np.zeros((60, 90), np.uint8)
    values[15:45, 21:60], values[48:60, 66:90] = 1, 2
    for number in range(20):
        save(tmp_path, f"{number}.png", values)
    data = scenes(tmp_path, height=height, width=width, fit=fit)
    batch = next(iter(data.test_dataloader()))
    x, objects = batch["x"][0, 0], batch["segmentation"][0]
    assert objects.any()
    assert not ((x > 0.99) & (objects == 0)).any()
    assert not ((x < 0.01) & (objects > 0)).any()


def test_an_object_that_is_cut_away_does_not_count(tmp_path: Path) -> None:
    values = np.zeros((20, 60), np.uint8)
    values[:, :10], values[:, 25:35] = 1, 2
    for number in range(20):
        save(tmp_path, f"{number}.png", values)
    batch = next(iter(scenes(tmp_path, width=20).test_dataloader()))
    assert batch["count"].tolist() == [1]
    assert batch["boxes"][0].tolist() == [[0, 5, 20, 10], [-1] * 4, [-1] * 4]


def test_palettes_and_sixteen_bits_and_turned_photographs(folder: Path) -> None:
    path = folder / "maps" / "0" / "02.png"
    picture = Image.fromarray(draw(2), "P")
    picture.putpalette(list(range(256)) * 3)
    picture.save(path)
    Image.fromarray(draw(5).astype(np.uint16) * 700).save(folder / "maps" / "0" / "05.png")
    turned = Image.fromarray(255 * (draw(8) > 0).astype(np.uint8)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "images" / "0" / "08.png", exif=exif)
    data = scenes(folder)
    for split in ("train", "val", "test"):
        names = [Path(path).stem for path in data.paths(split) or ()]  # type: ignore[arg-type]
        counts = data.examples(split).fields["count"].tolist()  # type: ignore[arg-type]
        assert counts == [int(name) % 3 for name in names]


def test_images_without_maps_are_for_training_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "maps").rename(folder / "elsewhere")
    data = scenes(folder)
    assert next(iter(data.train_dataloader())).keys() == {"x"}
    assert capsys.readouterr().out.count("maps: no such folder: the images have no maps") == 1
    (folder / "elsewhere").rename(folder / "maps")
    assert "segmentation" in next(iter(scenes(folder).train_dataloader()))
    assert "source changed since the cache was made" in capsys.readouterr().out


def test_new_maps_are_read(folder: Path) -> None:
    assert int(scenes(folder).examples("train").fields["count"].max()) == 2
    for path in (folder / "maps").glob("*/*.png"):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)
    assert int(scenes(folder).examples("train").fields["count"].max()) == 0


def test_more_objects_than_said_are_counted(folder: Path) -> None:
    with pytest.raises(UserError, match=r"maps: \d+ of 32 images of train have more than 1 obj.* \(the most: 2; .*png"):
        scenes(folder, max_objects=1)
    with pytest.raises(UserError, match="max_objects is 0; it must be at least 1"):
        SceneFolder(max_objects=0)


def test_missing_maps_are_counted(folder: Path) -> None:
    for name in ("0/03.png", "1/21.png"):
        (folder / "maps" / name).unlink()
    with pytest.raises(UserError, match=r"maps: 2 of 40 images have no map \(the first: .*0/03.png\)"):
        scenes(folder)


@pytest.mark.parametrize(
    ("pixels", "says"),
    [
        (np.zeros((*SIZE, 3), np.uint8), "RGB pixels; a map has one number a pixel"),
        (np.zeros((30, 20), np.uint8), r"30 x 20 pixels, but .*03.png has 20 x 30"),
        (np.arange(600, dtype=np.uint16).reshape(SIZE), "599 objects; a map has at most 255"),
        (None, "not a whole PNG"),
    ],
)
def test_a_bad_map_is_named(folder: Path, pixels: np.ndarray | None, says: str) -> None:
    path = folder / "maps" / "0" / "03.png"
    if pixels is None:
        path.write_bytes(path.read_bytes()[:45])
    else:
        Image.fromarray(pixels).save(path)
    with pytest.raises(BrokenImagesError, match=f"^1 unusable image: .*maps/0/03.png: {says}"):
        scenes(folder)


def test_the_command_line_checks_a_folder_of_scenes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = [f"--data.{name}={folder / place}" for name, place in PLACES.items()]
    command = ["check-data", "--model=VAE", "--data=SceneFolder", *places, "--data.channels=1", "--data.height=20"]
    assert main([*command, "--data.width=30"]) == 0
    assert "train: 32 images [1, 20, 30]" in capsys.readouterr().out
    assert main([*command, "--data.width=30", "--data.max_objects=1"]) == 2
    assert "have more than 1 objects" in capsys.readouterr().err
