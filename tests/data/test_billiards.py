"""Billiards as data: windows of a sequence, whole sequences for the test, the truth beside the frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vae_lightning.data import Billiards
from vae_lightning.storage.examples import Windows
from vae_lightning.types import UserError


def few(**settings: Any) -> Billiards:
    return Billiards(**{"num_sequences": (4, 2, 3), "sequence_length": 12, "num_frames": 5, **settings})


def test_training_is_on_windows_and_the_test_on_whole_sequences() -> None:
    data = few()
    train, test = data.load("train"), data.load("test")
    assert isinstance(train.windows, Windows)
    assert (len(train), len(data.load("val")), len(test)) == (4 * 8, 2 * 8, 3)
    whole = data.sequences("train")
    window = train.select(torch.tensor([8 + 3]))  # the fourth window of the second sequence
    for name, values in window.items():
        assert torch.equal(values[0], whole[name][1, 3:8]), name
    batch = test.select(torch.arange(3))
    assert batch["x"].shape == (3, 12, 1, 32, 32)
    assert batch["positions"].shape == batch["velocities"].shape == (3, 12, 3, 2)


def test_the_batch_of_a_loader_is_in_the_unit_interval() -> None:
    data = few(batch_size=6)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["x"].shape == (6, 5, 1, 32, 32)
    assert 0 <= batch["x"].min() < batch["x"].max() <= 1
    assert batch["positions"].abs().max() <= 0.76


def test_a_velocity_is_the_way_of_a_frame() -> None:
    test = few().sequences("test")
    way, free = test["positions"].diff(dim=1), (test["velocities"].diff(dim=1) == 0).all(-1)
    torch.testing.assert_close(way[free], test["velocities"][:, :-1][free], atol=1e-6, rtol=0)
    assert free.double().mean() > 0.5


def test_sequences_depend_on_their_number_alone() -> None:
    fewer, more = few().sequences("test"), few(num_sequences=(1, 1, 5), seed=3).sequences("test")
    assert all(torch.equal(values, more[name][:3]) for name, values in fewer.items())
    splits = [few().sequences(split)["positions"][0, 0] for split in ("train", "val", "test")]
    assert len({tuple(place.flatten().tolist()) for place in splits}) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0; it must be at least 1"),
        ({"num_sequences": (4, 0, 1)}, "num_sequences is 0; it must be at least 1"),
        ({"billiards_seed": -1}, "billiards_seed is -1; it must be at least 0"),
        ({"num_frames": 13}, "a window has 13 frames, and a sequence only 12"),
        ({"num_balls": 5}, "5 balls do not fit in the middle of the box; at most 4 do"),
        ({"num_sequences": (10**9, 1, 1)}, "1,000,000,000 sequences take .* GiB are free"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^Billiards: {message}"):
        few(**settings).load("train")
