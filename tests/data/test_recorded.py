"""Recorded steps as data: splits by episodes, the chain of states, kinds of observations, and damaged folders."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vae_lightning.data import Recorded
from vae_lightning.data.module import SPLITS
from vae_lightning.models import Dreaming
from vae_lightning.storage.recordings import About, Recording, read_recording, write_recording
from vae_lightning.types import UserError
from vae_lightning.worlds.dream import DreamVecEnv

LENGTHS = np.array([3, 1, 4, 2, 5, 3, 2, 4, 1, 3])
ABOUT: dict[str, dict[str, Any]] = {
    "vector": {"shape": (2,), "num_states": 0},
    "image": {"shape": (3, 4, 5), "num_states": 0},
    "discrete": {"shape": (), "num_states": 100},
}


def write(folder: Path, kind: Any = "vector", cap: int = 0) -> Path:
    """A recording whose observation number i holds i, and whose step i has the reward i; every second episode ends."""
    steps, episodes = int(LENGTHS.sum()), len(LENGTHS)
    about = About("Some-v1", {"size": 3}, kind, num_actions=3, max_episode_steps=cap, seed=0, policy="-", **ABOUT[kind])
    number = np.arange(steps + episodes).reshape(-1, *(1,) * len(about.shape))
    observations = np.broadcast_to(number, (steps + episodes, *about.shape))
    dtype = {"vector": np.float32, "image": np.uint8, "discrete": np.int64}[kind]
    write_recording(
        folder,
        Recording(
            about,
            observations.astype(dtype),
            LENGTHS,
            np.arange(episodes) % 2 == 0,
            np.arange(steps) % 3,
            np.arange(steps, dtype=np.float32),
        ),
    )
    return folder


@pytest.mark.parametrize("kind", ABOUT)
def test_steps_are_the_chain_of_each_episode(kind: str, tmp_path: Path) -> None:
    data = Recorded(str(write(tmp_path / "steps", kind)), val_share=0.2, test_share=0.3)
    split_of = np.empty(len(LENGTHS), int)
    for i, split in enumerate(SPLITS):
        split_of[data.episodes(split)] = i
    assert np.bincount(split_of).tolist() == [5, 2, 3]
    wanted: list[list[tuple[int, int, int, int, int]]] = [[], [], []]  # the recording once more, by a loop
    step = observation = 0
    for episode, length in enumerate(LENGTHS):
        for t in range(length):
            ends = t == length - 1 and episode % 2 == 0
            wanted[split_of[episode]].append((observation, observation + 1, step % 3, step, int(ends)))
            step, observation = step + 1, observation + 1
        observation += 1
    for i, split in enumerate(SPLITS):
        fields = data.examples(split).fields
        first = [fields[name].reshape(len(fields[name]), -1)[:, 0] for name in ("state", "x")]
        rows = torch.stack([value.long() for value in (*first, fields["action"], fields["reward"], fields["done"])], 1)
        assert rows.tolist() == [list(row) for row in wanted[i]]


@pytest.mark.parametrize(
    ("kind", "dtype", "shape"),
    [("vector", torch.float32, (2,)), ("image", torch.float32, (3, 4, 5)), ("discrete", torch.int64, ())],
)
def test_the_form_of_a_batch(kind: str, dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    data = Recorded(str(write(tmp_path / "steps", kind)), batch_size=4, terminal_share=0.25)
    assert (data.x_shape, data.num_actions) == (shape, 3)
    assert getattr(data, "vocabulary", None) == (100 if kind == "discrete" else None)
    batch = next(iter(data.train_dataloader()))
    for name in ("x", "state"):
        assert (batch[name].dtype, batch[name].shape) == (dtype, (4, *shape))
    assert batch["done"].sum() == 1
    assert (batch["x"] > batch["state"]).all()
    if kind == "image":
        assert torch.allclose(batch["x"] - batch["state"], torch.tensor(1 / 255))
    starts = data.starts("train", 6)
    assert (starts.dtype, starts.shape) == (dtype, (6, *shape))
    first = np.arange(len(LENGTHS)) + LENGTHS.cumsum() - LENGTHS  # of each episode, by the observation's number
    scale = 255 if kind == "image" else 1
    found = (starts.reshape(6, -1)[:, 0] * scale).round().long().tolist()
    assert set(found) <= set(first[data.episodes("train")].tolist())
    assert len(set(found)) == 6
    assert data.is_valid(batch["x"]).all()
    assert data.is_valid(batch["x"][:0]).shape == (0,)
    assert data.environment("test", 0) == ("Some-v1", {"size": 3})
    shown = data.show(batch["x"])
    assert torch.equal(shown, batch["x"]) if isinstance(shown, torch.Tensor) else len(shown) == 4


def test_the_longest_episode(tmp_path: Path) -> None:
    assert Recorded(str(write(tmp_path / "a"))).cap == 5
    assert Recorded(str(write(tmp_path / "b", cap=50))).cap == 50


def test_a_vector_is_valid_in_its_range_widened_by_its_width(tmp_path: Path) -> None:
    """Its range is that of train: what only val and test show makes nothing valid."""
    data = Recorded(str(write(tmp_path / "steps")), test_share=0.5)
    fields = data.examples("train").fields
    low, high = fields["state"].min().item(), fields["x"].max().item()
    assert (low, high) != (0, 37)  # those of the recording
    far, near = 2 * high - low, 2 * low - high
    valid, invalid = [[low, low], [high, far], [near, low]], [[far + 1, low], [low, near - 1]]
    rows = [*valid, *invalid, [float("nan"), low], [float("inf"), low]]
    assert data.is_valid(torch.tensor(rows).float()).tolist() == [True] * 3 + [False] * 4
    discrete = Recorded(str(write(tmp_path / "discrete", "discrete")))
    assert discrete.is_valid(torch.tensor([-1, 0, 99, 100])).tolist() == [False, True, True, False]


def test_a_model_rests_on_all_recorded_steps_and_dreams_begin_in_train(tmp_path: Path) -> None:
    data = Recorded(str(write(tmp_path / "steps")))
    assert data.num_real_transitions() == LENGTHS.sum()
    assert data.least_reward == data.examples("train").fields["reward"].min()
    first = np.arange(len(LENGTHS)) + LENGTHS.cumsum() - LENGTHS
    environment = DreamVecEnv(Dreaming((2,), 3), data, 20)
    assert set(environment.reset()[:, 0].astype(int)) == set(first[data.episodes("train")])


def test_coverage_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Recorded(str(write(tmp_path / "steps", "discrete")))
    data.setup("fit")
    fields = data.examples("train").fields
    counts = [int((fields["action"] == action).sum()) for action in range(3)]
    assert capsys.readouterr().out == (
        f"Recorded: train shows 8 episodes, its actions {counts} times, {len(fields['x'])} of 300 pairs of a state and "
        f"an action; {int(fields['done'].sum())} of {len(fields['x'])} transitions of train end an episode\n"
    )


def change(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        np.save(folder / name, function(np.load(folder / name)))

    return spoil


def about(**values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "recording.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return spoil


def put(index: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def function(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return function


def header(shape: Any, text: bool = False) -> Callable[[Path], None]:
    """Give rewards.npy another shape in its header, or a header that is no Python literal."""

    def spoil(folder: Path) -> None:
        file, values = io.BytesIO(), np.load(folder / "rewards.npy").tobytes()
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        contents = file.getvalue()
        (folder / "rewards.npy").write_bytes((contents.replace(b"}", b"(") if text else contents) + values)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change("actions.npy", put(4, 3)), "actions.npy: step 4 has the action 3, outside 0 .. 2; record again"),
        (change("actions.npy", put(5, -1)), "actions.npy: step 5 has the action -1, outside 0 .. 2"),
        (change("actions.npy", lambda a: a[:-1]), r"actions.npy: has the shape \[27\]; 10 episodes of 28 steps need"),
        (change("actions.npy", lambda a: a.astype(float)), "actions.npy: holds float64; it must hold int64"),
        (change("observations.npy", put((7, 1), np.nan)), "observations.npy: row 7 is not finite"),
        (change("observations.npy", lambda a: a[:, :1]), r"observations.npy: has the shape \[38, 1\]; .* \[38, 2\]"),
        (change("rewards.npy", put(2, np.inf)), "rewards.npy: step 2 has no finite reward"),
        (change("lengths.npy", put(0, 0)), "lengths.npy: an episode has at least one step"),
        (change("lengths.npy", put(0, 2**62)), r"lengths.npy: an episode has [\d,]+ steps, but there are 28 actions"),
        (change("lengths.npy", lambda a: np.full_like(a, 2**63 - 1)), "lengths.npy: an episode has"),
        (change("lengths.npy", lambda a: a[:0]), "lengths.npy: an episode has at least one step"),
        (lambda folder: (folder / "rewards.npy").unlink(), "rewards.npy: cannot be read as an array"),
        (lambda folder: (folder / "rewards.npy").write_bytes(b"1"), "rewards.npy: cannot be read as an array"),
        (lambda folder: (folder / "recording.json").unlink(), "recording.json: no such file; write a recording by "),
        (lambda folder: (folder / "recording.json").write_text("{"), "is not the description of a recording"),
        (about(format=2), r"is not the description of a recording \(ValueError: this release reads format 1\)"),
        (about(kind="sound"), "ValueError: kind 'sound' with shape"),
        (about(shape=[2, 2]), "ValueError: kind 'vector' with shape"),
        (about(num_actions=0), "ValueError: num_actions 0"),
        (about(num_actions=True), "a size or a number is not a whole number"),
        (about(num_actions=10**9), "num_actions above 65,536"),
        (about(shape=[10**12]), "a size is above"),
        (about(policy=["random"]), "policy is no text"),
        (about(versions={"numpy": 2}), "a version is no text"),
        (header(shape=(2**40,)), r"rewards.npy: cannot be read as an array \(ValueError: 112 bytes of values; float32"),
        (header(shape=(-4, -7)), "rewards.npy: cannot be read as an array"),
        (header(shape="28", text=True), "rewards.npy: cannot be read as an array"),
        (lambda folder: (folder / "rewards.npy").write_bytes(b"PK\x03\x04"), "rewards.npy: cannot be read as an array"),
        (about(num_actions="many"), "a size or a number is not a whole number"),
        (about(environment="os:system"), "environment 'os:system' is not a plain name"),
        (about(environment="GymV26Environment-v0"), "environment 'GymV26Environment-v0' is not a plain name"),
        (about(more=1), "is not the description of a recording"),
    ],
)
def test_a_damaged_recording_is_one_line(spoil: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "steps")
    spoil(folder)
    with pytest.raises(UserError, match=message) as refused:
        Recorded(str(folder)).setup("fit")
    assert "\n" not in str(refused.value)
    assert str(refused.value).startswith(str(folder))


def test_whole_numbers_out_of_range_are_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "steps", "discrete")
    change("observations.npy", put(6, 100))(folder)
    with pytest.raises(UserError, match=r"observations.npy: row 6 is 100, outside 0 .. 99"):
        Recorded(str(folder)).setup("fit")


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    folder = write(tmp_path / "steps")
    np.save(folder / "rewards.npy", np.array([{}] * 28, object), allow_pickle=True)
    with pytest.raises(UserError, match=r"rewards.npy: cannot be read as an array \(.*allow_pickle"):
        read_recording(folder)


def test_what_cannot_be_split_is_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "steps")
    with pytest.raises(UserError, match=r"val_share is 0.6 and test_share 0.5; both must be above 0, and their sum"):
        Recorded(str(folder), val_share=0.6, test_share=0.5)
    with pytest.raises(UserError, match=r"10 episodes; train, val and test need one each: record more steps"):
        Recorded(str(folder), val_share=0.49, test_share=0.5).setup("fit")
    with pytest.raises(UserError, match=r"test has no episode 1; it has 0 .. 0$"):
        Recorded(str(folder)).start("test", 1)


def test_a_recording_without_an_end_needs_a_share_of_none(tmp_path: Path) -> None:
    folder = write(tmp_path / "steps")
    change("terminated.npy", np.zeros_like)(folder)
    with pytest.raises(UserError, match=r"^Recorded: 0 of \d+ transitions of train end an episode; "):
        Recorded(str(folder)).setup("fit")
    Recorded(str(folder), terminal_share=0).setup("fit")


def test_nothing_is_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path / "steps")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"holds recording.json already; nothing is replaced"):
        write(folder, "image")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / "recording.json").unlink()  # as after a kill in the midst
    write(folder, "image")
    assert Recorded(str(folder)).x_shape == (3, 4, 5)
