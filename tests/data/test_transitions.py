"""Transitions of mazes: which mazes and pairs are in which split, coverage, terminal shares, and bad settings."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.data import Examples, Mazes, Split, Transitions
from vae_lightning.data.module import SPLITS
from vae_lightning.noise import derive_seed
from vae_lightning.synthetic import mazes
from vae_lightning.types import UserError

SMALL: dict[str, Any] = {"num_mazes": (30, 8, 10), "num_transitions": (100, 20, 30)}


def fields(data: Mazes, split: Split) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in data.examples(split).fields.items()}


def walls(cells: np.ndarray) -> set[bytes]:
    return {maze.tobytes() for maze in cells == mazes.WALL}


def pairs(found: dict[str, np.ndarray]) -> set[tuple[bytes, int]]:
    return {(state.tobytes(), int(action)) for state, action in zip(found["state"], found["action"], strict=True)}


def test_no_walls_are_in_two_splits() -> None:
    data = Mazes(num_mazes=(1500, 300, 300), num_transitions=(1, 1, 1), terminal_share=0)
    sets = [{maze.tobytes() for maze in data.walls(split)} for split in SPLITS]
    assert [len(found) for found in sets] == [1500, 300, 300]  # and none twice in a split
    assert len(set.union(*sets)) == 2100
    for split, own in zip(SPLITS, sets, strict=True):
        found = fields(data, split)
        new = found["state"][~found["seen"]] if split != "train" else found["state"]
        assert walls(new) <= own
        if split != "train":
            assert walls(found["state"][found["seen"]]) <= sets[0]


@pytest.mark.parametrize("coverage", ["uniform", "random_walk"])
def test_pairs_held_out_of_training_are_in_one_split(coverage: Any) -> None:
    data = Mazes(**SMALL, coverage=coverage, terminal_share=0)
    train, val, test = (fields(data, split) for split in SPLITS)
    shown, held_out = pairs(train), [pairs({k: v[found["seen"]] for k, v in found.items()}) for found in (val, test)]
    assert not shown & held_out[0]
    assert not shown & held_out[1]
    assert not held_out[0] & held_out[1]
    assert [len(found) for found in held_out] == [160, 300]  # none twice, as many as the steps in new mazes
    assert int(data.shown_pairs().sum()) == len(shown)


@pytest.mark.parametrize("slip", [0.0, 0.4])
def test_every_transition_follows_the_rules(slip: float) -> None:
    data = Mazes(**SMALL, slip=slip)
    for split in SPLITS:
        found = fields(data, split)
        assert mazes.are_states(found["x"]).all()
        assert not (found["state"][:, -1, -1] == mazes.PLAYER).any()  # no step from the goal
        x, reward, done = mazes.step(found["state"], found["action"])
        same = (x == found["x"]).all((1, 2))
        assert same.all() if slip == 0 else 0.6 < same.mean() < 0.95
        at_goal = found["x"][:, -1, -1] == mazes.PLAYER
        assert (found["done"] == at_goal).all()
        assert found["reward"] == pytest.approx(np.where(at_goal, 1, -0.01))
        assert slip > 0 or ((reward == found["reward"]).all() and (done == at_goal).all())


def test_uniform_coverage_is_uniform() -> None:
    """With 3,000 draws of 120 pairs, a pair comes 25 times; the variance of a count is its mean."""
    data = Mazes(num_mazes=(1, 1, 1), num_transitions=(3000, 1, 1))
    found = fields(data, "train")
    places = mazes.find_players(found["state"]) * 4 + found["action"]
    counts = np.bincount(places)[np.unique(places)]
    assert len(counts) == 120
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.5)


def test_a_random_walk_is_one_chain_and_sees_less() -> None:
    walk, uniform = (Mazes(**SMALL, coverage=coverage, terminal_share=0) for coverage in ("random_walk", "uniform"))
    found = fields(walk, "train")
    x, state, done = (found[name].reshape(30, 100, *found[name].shape[1:]) for name in ("x", "state", "done"))
    follows = (state[:, 1:] == x[:, :-1]).all((2, 3))
    assert (follows | (done[:, :-1] > 0)).all()
    assert (mazes.find_players(state[:, 0]) == 0).all()
    assert walk.shown_pairs().sum() < 0.7 * uniform.shown_pairs().sum()


def test_all_pairs_once() -> None:
    data = Mazes(num_mazes=(5, 2, 3), num_transitions=(100, 20, 0))
    found = fields(data, "test")
    assert int((~found["seen"]).sum()) == 3 * 30 * 4
    assert len(pairs(found)) == len(found["x"])
    all_shown = Mazes(num_mazes=(5, 2, 3), num_transitions=(0, 20, 20))
    assert len(all_shown.examples("train")) == 5 * 120
    assert not all_shown.examples("test").fields["seen"].any()


def test_a_batch_has_its_form_and_its_share_of_ends() -> None:
    data = Mazes(**SMALL, batch_size=64, terminal_share=0.25)
    batch = next(iter(data.train_dataloader()))
    forms = {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()}
    cells, number = (torch.int64, (64, 7, 7)), (torch.float32, (64,))
    assert forms == {"x": cells, "state": cells, "action": (torch.int64, (64,)), "reward": number, "done": number}
    assert batch["done"].sum() == 16
    assert data.examples("train").fields["x"].dtype == torch.uint8
    assert "seen" in next(iter(data.test_dataloader()))
    assert (data.x_shape, data.vocabulary, data.num_actions, data.cap) == ((7, 7), 4, 4, 196)
    free = next(iter(Mazes(**SMALL, batch_size=64, terminal_share=0).train_dataloader()))
    assert free["done"].sum() < 8


def test_the_data_are_a_function_of_the_seed() -> None:
    first, again, other = Mazes(**SMALL, seed=1), Mazes(**SMALL, seed=2), Mazes(**SMALL, maze_seed=1)
    for split in SPLITS:
        found = fields(first, split)
        assert all((values == fields(again, split)[name]).all() for name, values in found.items())
        assert not walls(found["state"]) & walls(fields(other, split)["state"])


def test_the_mazes_of_test_do_not_depend_on_those_of_training() -> None:
    few, many = (Mazes(num_mazes=(count, 5, 300), num_transitions=(1, 1, 1)) for count in (5, 4000))
    assert (few.walls("test") == many.walls("test")).all()
    assert (few.walls("val") == many.walls("val")).all()
    drawn = mazes.draw_walls([derive_seed(0, 0, 0, i) for i in range(4000)], 7)
    assert not (many.walls("train") == drawn).all()  # some were left out


def test_starts_are_corners_of_different_mazes() -> None:
    data = Mazes(**SMALL)
    starts = data.starts("test", 10, seed=3)
    assert (starts.dtype, starts.shape) == (torch.int64, (10, 7, 7))
    assert (starts[:, 0, 0] == mazes.PLAYER).all()
    assert len(walls(starts.numpy())) == 10
    assert walls(starts.numpy()) == {maze.tobytes() for maze in data.walls("test")}
    assert torch.equal(starts, data.starts("test", 10, seed=3))
    assert not torch.equal(starts, data.starts("test", 10, seed=4))
    assert data.starts("test", 25).shape == (25, 7, 7)
    assert data.is_valid(starts).all()
    starts[0, 0, 0] = mazes.FLOOR
    assert data.is_valid(starts).tolist() == [False] + [True] * 9
    pictures = data.show(starts)
    assert (pictures.shape, pictures.dtype) == ((10, 3, 28, 28), torch.float32)
    assert pictures.min() >= 0
    assert pictures.max() <= 1


def test_coverage_is_said_when_training_begins(capsys: pytest.CaptureFixture[str]) -> None:
    data = Mazes(**SMALL)
    data.setup("validate")
    assert capsys.readouterr().out == ""
    data.setup("fit")
    shown, ends = int(data.shown_pairs().sum()), int(data.examples("train").fields["done"].sum())
    assert capsys.readouterr().out == (
        f"Mazes: train shows {shown:,} of 3,600 pairs of a cell and an action in 30 mazes of 7 x 7 "
        f"({shown / 3600:.0%}); {ends} of 3,000 transitions of train end an episode\n"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 5}, "size is 5; it must be odd and at least 7, because smaller mazes are so few"),
        ({"size": 8}, "size is 8; it must be odd"),
        ({"slip": -0.1}, r"slip is -0.1; a probability is in \[0, 1\]"),
        ({"num_mazes": (0, 1, 1)}, "there must be at least one maze a split"),
        ({"num_transitions": (1, -1, 1)}, "no number below 0"),
        ({"terminal_share": 1}, r"terminal_share is 1; it must be in \[0, 1\)"),
        ({"num_mazes": (10**9, 1, 1)}, "the transitions take [0-9,.]+ GiB, but only [0-9,.]+ GiB are free; lower"),
    ],
)
def test_bad_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^Mazes: .*{message}") as refused:
        Mazes(**settings)
    assert "\n" not in str(refused.value)


def test_a_batch_too_small_for_its_share_is_refused_before_a_fit() -> None:
    with pytest.raises(UserError, match=r"^Mazes: terminal_share 0.0625 of a batch of 8 is 0 examples, .*--data.batch"):
        Mazes(**SMALL, batch_size=8).check_batch_size()
    Mazes(**SMALL, batch_size=9).check_batch_size()
    Mazes(**SMALL, batch_size=1, terminal_share=0).check_batch_size()


def test_what_shows_no_end_or_no_new_maze_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^Mazes: 0 of 15 transitions of train end an episode; .*terminal_share=0$"):
        Mazes(num_mazes=(3, 1, 1), num_transitions=(5, 1, 1), coverage="random_walk").setup("fit")
    with pytest.raises(UserError, match=r"^Mazes: test has no maze 10; it has mazes 0 .. 9$"):
        Mazes(**SMALL).start("test", 10)
    monkeypatch.setattr("vae_lightning.data.transitions._SMALLEST", 5)
    with pytest.raises(UserError, match=r"mazes of 5 x 5 were drawn, and .* of them are new; train needs 200: lower"):
        Mazes(size=5).setup("fit")


def test_a_world_of_ones_own() -> None:
    """Six lines: a coin that is turned by action 1; the episode ends at heads with probability 1 / 4."""

    class Coin(Transitions):
        x_shape, vocabulary, num_actions, cap = (), 2, 2, 10

        def transitions(self, split: Split) -> dict[str, Tensor]:
            random = torch.Generator().manual_seed(len(split))
            state, action = (torch.randint(2, (400,), generator=random) for _ in range(2))
            x = (state + action) % 2
            done = ((torch.rand(400, generator=random) < 0.25) & (x == 1)).float()
            return {"x": x, "state": state, "action": action, "reward": x.float(), "done": done}

        def start(self, split: Split, index: int) -> Tensor:
            return torch.tensor(0)

        def num_starts(self, split: Split) -> int:
            return 1

        def environment(self, split: Split, index: int) -> tuple[str, dict[str, Any]]:
            return "Coin-v0", {}

    data = Coin(batch_size=32)
    data.setup("fit")
    assert isinstance(data.examples("train"), Examples)
    assert next(iter(data.train_dataloader()))["done"].sum() == 2
    assert data.is_valid(data.starts("val", 3)).tolist() == [True] * 3


# -- the extra ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def without_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import of gymnasium or stable-baselines3 raises ImportError."""
    for name in [name for name in sys.modules if name.startswith("vae_lightning.worlds")]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("gymnasium", "stable_baselines3"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("without_extra")
def test_the_data_need_no_extra(capsys: pytest.CaptureFixture[str]) -> None:
    config = str(REPOSITORY / "configs/vae/digits.yaml")
    assert main(["check-data", "-c", config, "--data=Mazes", "--data.num_mazes=[20,3,3]"]) == 0
    assert "train: 2,000 examples: x uint8 [7, 7], state uint8 [7, 7], action int64 []" in capsys.readouterr().out


def test_worlds_and_two_verbs_alone_import_the_extra() -> None:
    root = REPOSITORY / "vae_lightning"
    extra = {"gymnasium", "stable_baselines3"}

    def names(path: Path) -> set[str]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        return found | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}

    needs = {
        path.relative_to(root)
        for path in root.rglob("*.py")
        if extra & {name.split(".")[0] for name in names(path)}
        or any(name.startswith("vae_lightning.worlds") for name in names(path))
    }
    assert needs
    allowed = {Path("verbs/record.py"), Path("verbs/dream.py")}
    assert {path for path in needs if path.parts[0] != "worlds"} <= allowed


@pytest.mark.usefixtures("without_extra")
def test_record_without_the_extra_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", "CartPole-v1", f"--output={tmp_path / 'steps'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("vae-lightning: error: worlds need gymnasium, which is not installed; install the extra rl")
    assert "vae_lightning[rl]" in said
    assert not (tmp_path / "steps").exists()


def test_mazes_are_refused_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check-data", "-c", str(REPOSITORY / "configs/vae/digits.yaml"), "--data=Mazes", "--data.size=5"]) == 2
    assert "Mazes: size is 5; it must be odd and at least 7" in capsys.readouterr().err
