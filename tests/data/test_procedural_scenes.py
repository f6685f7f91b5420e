"""Scenes of coloured shapes as a data set: what a batch holds, one test set for all runs, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vae_lightning.data import ProceduralScenes, Scenes
from vae_lightning.data.base import SPLITS
from vae_lightning.synthetic import coloured_shapes, draw_coloured_shapes
from vae_lightning.types import UserError
from vae_lightning.verbs import check_data

SMALL = (130, 40, 60)


def test_a_batch_holds_the_image_and_what_is_on_it() -> None:
    data = ProceduralScenes(image_size=24, num_images=SMALL, batch_size=128)
    batch = next(iter(data.train_dataloader()))
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "x": (torch.float32, (128, 3, 24, 24)),
        "segmentation": (torch.uint8, (128, 24, 24)),
        "count": (torch.int64, (128,)),
        "boxes": (torch.float32, (128, 3, 4)),
    }
    assert (data.image_shape, data.num_objects) == ((3, 24, 24), 3)
    assert torch.equal(batch["segmentation"].flatten(1).amax(1).long(), batch["count"])
    for objects, boxes in zip(batch["segmentation"], batch["boxes"].tolist(), strict=True):
        for k, (top, left, height, width) in enumerate(boxes, 1):
            rows, columns = (objects == k).nonzero().unbind(1)
            if height < 0:
                assert not len(rows)
            else:
                assert [top, left] == [rows.min(), columns.min()]
                assert [top + height - 1, left + width - 1] == [rows.max(), columns.max()]
    assert [len(data.images(split)) for split in SPLITS] == list(SMALL)


def fields(split: Any, **settings: Any) -> dict[str, Tensor]:
    return dict(ProceduralScenes(num_images=SMALL, image_size=24, **settings).examples(split).fields)


def test_all_runs_have_one_test_set() -> None:
    """The seed of a run changes the order of training, never a scene; `scene_seed` and the split do."""
    test = fields("test")
    drawn = draw_coloured_shapes(torch.arange(60), 24, seeds=(0, 2))
    for name in ("x", "segmentation", "count"):
        assert torch.equal(test[name], drawn[name])
        assert torch.equal(test[name], fields("test", seed=7)[name])
    assert not torch.equal(test["x"], fields("test", scene_seed=1)["x"])
    assert not torch.equal(test["x"][:40], fields("val")["x"])


def test_the_options_choose_what_is_drawn() -> None:
    usual, black, hard = fields("val"), fields("val", background=0), fields("val", distinct_colours=False)
    outside = (usual["segmentation"] == 0)[:, None].expand_as(usual["x"])
    assert usual["x"][outside].max() > 100
    assert usual["x"][outside].max() <= 127
    assert not black["x"][outside].any()
    for other in (black, hard):
        assert torch.equal(other["segmentation"], usual["segmentation"])
        assert not torch.equal(other["x"], usual["x"])
    assert fields("val", min_objects=3)["count"].unique().tolist() == [3]
    assert fields("val", min_objects=0, max_objects=4)["count"].unique().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"image_size": 8}, "image_size is 8; it must be at least 16"),
        ({"max_objects": 0}, "max_objects is 0; it must be at least 1"),
        ({"min_objects": -1}, "min_objects is -1; it must be at least 0"),
        ({"min_objects": 4}, "min_objects 4 is above max_objects 3"),
        ({"max_objects": 9}, "max_objects is 9; it must be at most 8 with 8 colours; --data.distinct_colours=false"),
        ({"max_objects": 256, "distinct_colours": False}, "max_objects is 256; it must be at most 255$"),
        ({"background": 1.5}, "background is 1.5; it is a grey from 0 to 1"),
        ({"num_images": (9, 0, 9)}, "num_images is 0; it must be at least 1"),
        ({"num_images": (10**12, 1, 1)}, "1,000,000,000,000 images take 7,629,394.5 GiB, but only"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^ProceduralScenes: .*{says}"):
        ProceduralScenes(**{"num_images": (1, 1, 1), **settings}).examples("train")


def test_objects_that_find_no_room_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coloured_shapes, "_TRIES", 20)
    crowd = {"min_objects": 20, "max_objects": 20, "distinct_colours": False, "image_size": 16}
    with pytest.raises(UserError, match=r"^ProceduralScenes: 20 objects hid .*; choose fewer --data.max_objects"):
        ProceduralScenes(num_images=(1, 1, 1), **crowd).examples("train")  # type: ignore[arg-type]


def test_maps_of_another_size_than_the_images_are_refused() -> None:
    x = torch.zeros(4, 3, 24, 24, dtype=torch.uint8)
    Scenes({"x": x, "segmentation": x[:, 0]})
    Scenes({"x": x})
    with pytest.raises(UserError, match=r"^Scenes: segmentation is 12 x 24, and the images are 24 x 24; they must be"):
        Scenes({"x": x, "segmentation": x[:, 0, ::2]})


def test_check_data_names_what_stands_beside_the_images(capsys: pytest.CaptureFixture[str]) -> None:
    check_data.run({"class_path": "vae_lightning.data.ProceduralScenes", "init_args": {"num_images": [20, 10, 10]}})
    assert "test: 10 images [3, 32, 32], mean pixel 0." in (out := capsys.readouterr().out)
    assert "segmentation uint8 [32, 32], count int64 [], boxes float32 [3, 4]" in out
