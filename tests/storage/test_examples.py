"""Examples of any shape: windows, draws from a group, transforms, ranks, memory maps and resumed positions."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vae_lightning.data import BatchTransform, Draw, Examples, Images, Loader, Transform, join, windows
from vae_lightning.storage.loader import first_images, first_sequences
from vae_lightning.types import Batch, UserError


def with_labels(lengths: list[int], length: int) -> Examples:
    """Windows of sequences with a label for each sequence."""
    x = torch.cat([100 * s + torch.arange(steps) for s, steps in enumerate(lengths)])
    fields = {"x": x, "action": -x, "label": torch.arange(len(lengths))}
    return windows(fields, torch.tensor(lengths), length)


def test_windows_are_all_parts_of_each_sequence_and_never_cross_two() -> None:
    examples = with_labels([5, 2, 4], 3)
    batch = examples.select(torch.arange(len(examples)))
    expected = [[0, 1, 2], [1, 2, 3], [2, 3, 4], [200, 201, 202], [201, 202, 203]]  # sequence 1 is too short
    assert batch["x"].tolist() == expected
    assert torch.equal(batch["action"], -batch["x"])
    assert batch["label"].tolist() == [0, 0, 0, 2, 2]


def test_what_is_shown_are_windows_of_different_sequences_or_whole_ones() -> None:
    loader = Loader(with_labels([5, 2, 6, 4], 3), 2, train=False)  # sequence 1 is too short
    assert first_images(loader, 2)["x"].tolist() == [[0, 1, 2], [200, 201, 202]]
    assert first_images(loader, 5)["x"][:, 0].tolist() == [0, 2, 200, 203, 300]
    assert len(first_images(loader, 100)["x"]) == 9
    whole = first_sequences(loader, 2)
    assert whole["x"].tolist() == [[0, 1, 2, 3, 4], [200, 201, 202, 203, 204]]
    assert whole["label"].tolist() == [0, 2]
    assert first_sequences(loader, 100)["x"].tolist() == [[100 * s + i for i in range(4)] for s in (0, 2, 3)]
    plain = Loader(Examples({"x": torch.arange(6.0)}), 2, train=False)
    assert first_images(plain, 3)["x"].tolist() == first_sequences(plain, 3)["x"].tolist() == [0, 1, 2]


def test_windows_of_frames_copy_nothing() -> None:
    clips = torch.arange(6 * 10 * 2 * 3, dtype=torch.uint8).view(6, 10, 2, 3)
    steps, lengths = join(clips)
    examples = windows({"x": steps}, lengths, 4)
    assert len(examples) == 6 * 7
    array, rows = examples.rows("x", torch.tensor([0, 8, 41]))
    assert array.untyped_storage().data_ptr() == clips.untyped_storage().data_ptr()
    assert torch.equal(array[rows], torch.stack((clips[0, :4], clips[1, 1:5], clips[5, 6:])))


@pytest.mark.parametrize(
    ("length", "message"),
    [(6, "the longest sequence has 5 steps; a window cannot have 6"), (0, "a window cannot have 0")],
)
def test_a_window_that_no_sequence_holds_is_refused(length: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_labels([5, 2], length)


def test_every_rank_sees_each_window_once_and_a_resumed_epoch_goes_on() -> None:
    examples = with_labels([9, 8, 7, 9], 3)
    loaders = [Loader(examples, 4, train=True, seed=3, rank=rank, world_size=2) for rank in range(2)]
    seen = [tuple(row) for loader in loaders for batch in loader for row in batch["x"].tolist()]
    assert len(seen) == len(set(seen)) == len(examples) // 2 * 2
    whole = [batch["x"] for batch in loaders[0]]
    resumed = Loader(examples, 4, train=True, seed=3, rank=0, world_size=2, position=lambda: 2)
    assert all(torch.equal(a["x"], b) for a, b in zip(resumed, whole[2:], strict=True))


def test_an_evaluation_sees_whole_sequences_in_order() -> None:
    examples = Examples({"x": torch.arange(12).view(6, 2), "length": torch.tensor([2, 1, 2, 2, 1, 2])})
    batches = list(Loader(examples, 4, train=False))
    assert torch.equal(torch.cat([batch["x"] for batch in batches]), examples.fields["x"])
    assert [batch["length"].tolist() for batch in batches] == [[2, 1, 2, 2], [1, 2]]


def grouped(share: float, total: int = 203) -> Examples:
    """A tenth of the examples are in the group; x is the example's number."""
    group = torch.arange(total) % 10 == 0
    return Examples({"x": torch.arange(total), "group": group.long()}, group=group, group_share=share)


@pytest.mark.parametrize("world_size", [1, 3])
def test_each_batch_has_its_share_of_the_group(world_size: int) -> None:
    examples = grouped(0.25)
    seen: list[int] = []
    for rank in range(world_size):
        loader = Loader(examples, 16, train=True, seed=1, rank=rank, world_size=world_size)
        batches = list(loader)
        assert [len(batch["x"]) for batch in batches[:-1]] == [16] * (len(batches) - 1)
        assert all(int(batch["group"].sum()) == 4 for batch in batches[:-1])
        seen += torch.cat([batch["x"] for batch in batches]).tolist()
    counts = torch.bincount(torch.tensor(seen), minlength=len(examples))
    group = examples.fields["group"].bool()
    for members in (group, ~group):  # rounds: each is seen about equally often
        assert int(counts[members].max() - counts[members].min()) <= 1


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_short_last_batch_has_its_share_too(world_size: int) -> None:
    for rank in range(world_size):
        *_, last = Loader(grouped(0.25, 212), 16, train=True, rank=rank, world_size=world_size)
        assert len(last["x"]) in (4, 6)
        assert int(last["group"].sum()) == round(0.25 * len(last["x"]))


@pytest.mark.parametrize(("share", "size"), [(0.25, 1), (0.25, 2), (0.9, 2)])
def test_a_share_that_rounds_to_nothing_or_to_all_is_refused(share: float, size: int) -> None:
    with pytest.raises(UserError, match=f"group_share {share} of a batch of {size} is .* a larger --data.batch_size"):
        Loader(grouped(share), size, train=True)
    assert len(Loader(grouped(share), size, train=False)) > 0


def test_draws_from_a_group_are_a_function_of_seed_epoch_and_step() -> None:
    def batches(epoch: int, seed: int, position: int = 0) -> list[Tensor]:
        loader = Loader(grouped(0.5), 16, train=True, seed=seed, position=lambda: position)
        loader.set_epoch(epoch)
        return [batch["x"] for batch in loader]

    whole = batches(2, 5)
    assert all(torch.equal(a, b) for a, b in zip(batches(2, 5, 4), whole[4:], strict=True))
    assert not torch.equal(whole[0], batches(3, 5)[0])
    assert not torch.equal(whole[0], batches(2, 6)[0])


def test_without_a_group_the_order_is_the_plain_one() -> None:
    numbers = torch.arange(50).view(50, 1, 1, 1)
    plain, images = Examples({"x": numbers.float()}), Images(numbers.byte())
    a = torch.cat([batch["x"] for batch in Loader(plain, 8, train=True, seed=7)])
    b = torch.cat([batch["x"] for batch in Loader(images, 8, train=True, seed=7)])
    torch.testing.assert_close(a, b * 255)


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"y": 3}, {}, "no field x; the fields are y"),
        ({"x": 3, "y": 4}, {}, "the fields differ in length: x 3, y 4"),
        ({"x": 3}, {"group": torch.ones(3)}, "group is torch.float32 [3]; it must be bool [3]"),
        ({"x": 3}, {"group": torch.zeros(3).bool()}, "0 of 3 examples are in the group"),
        ({"x": 2}, {"group": torch.tensor([True, False]), "group_share": 1.0}, "group_share is 1.0"),
    ],
)
def test_examples_that_cannot_be_are_refused(fields: dict[str, int], options: dict[str, Tensor], message: str) -> None:
    with pytest.raises(UserError) as refused:
        Examples({name: torch.zeros(size) for name, size in fields.items()}, **options)  # type: ignore[arg-type]
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("y", "found"), [(np.zeros(3), "a ndarray"), ([0, 1, 2], "a list"), (torch.tensor(3), "a single number")]
)
def test_a_field_that_is_no_tensor_is_refused(y: Any, found: str) -> None:
    with pytest.raises(UserError, match=rf"examples: y is {found}; it must be a tensor \[N, ...\]"):
        Examples({"x": torch.zeros(3), "y": y})


def test_sequences_that_do_not_fit_their_lengths_are_refused() -> None:
    lengths = torch.tensor([5, 2, 7])
    with pytest.raises(UserError, match=r"windows: x has 13 rows; it must have one for each of the 14 steps\Z"):
        windows({"x": torch.zeros(13)}, lengths, 3)
    with pytest.raises(UserError, match="y has 4 rows; it must have one for each of the 14 steps, or of the 3 sequ"):
        windows({"x": torch.zeros(14), "y": torch.zeros(4)}, lengths, 3)


@pytest.fixture
def mapped(tmp_path: Path) -> Examples:
    """Twelve clips of five frames in a memory map."""
    path = tmp_path / "frames"
    path.write_bytes(bytes(range(240)))
    with path.open("rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    clips = torch.frombuffer(mapping, dtype=torch.uint8).view(12, 5, 4)
    steps, lengths = join(clips)
    return windows({"x": steps}, lengths, 3, mapping=mapping)


def test_windows_of_a_map_are_gathered_by_a_thread_and_equal_those_in_memory(mapped: Examples) -> None:
    in_memory = mapped.in_memory()
    assert in_memory.mapping is None
    a, b = (list(Loader(one, 5, train=True, seed=1)) for one in (mapped, in_memory))
    assert len(a) == len(b) == 8
    assert all(torch.equal(one["x"], other["x"]) for one, other in zip(a, b, strict=True))
    on_meta = mapped.to(torch.device("meta"))
    assert on_meta.windows is not None
    assert on_meta.fields["x"].shape == (60, 4)  # the frames, not the windows


def test_a_damaged_example_is_found_when_its_window_is_read() -> None:
    checked: list[list[int]] = []
    examples = Examples({"x": torch.arange(10)}, check=lambda index: checked.append(index.tolist()))
    list(Loader(examples, 4, train=False))
    assert checked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


class Scaled(BatchTransform):
    """Scales the reward by an example's number, and says so."""

    changes = frozenset({"reward"})

    def apply(self, batch: Batch, draw: Draw) -> Batch:
        return {"reward": batch["reward"] * draw.index}


class Secretive(Scaled):
    changes = frozenset({"x"})


def test_a_transform_sees_the_batch_and_names_what_it_changes() -> None:
    examples = Examples({"x": torch.zeros(6, 2), "reward": torch.ones(6)})
    found = torch.cat([batch["reward"] for batch in Loader(examples, 4, train=False, transform=Scaled())])
    assert found.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(UserError, match="Secretive: it changes reward, and names x in `changes`"):
        next(iter(Loader(examples, 4, train=False, transform=Secretive())))


def test_a_flip_takes_the_segmentation_with_it() -> None:
    maps = torch.arange(40 * 12, dtype=torch.uint8).view(40, 3, 4) % 7
    examples = Examples({"x": maps[:, None].clone() * 30, "segmentation": maps.clone()})
    batch = next(iter(Loader(examples, 40, train=True, transform=Transform(flip=True))))
    torch.testing.assert_close(batch["x"][:, 0] * 255, batch["segmentation"] * 30.0)
    assert not torch.equal(batch["segmentation"].sort(0).values, maps.sort(0).values)
