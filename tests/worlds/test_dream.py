"""Dreams as environments: how they begin, end and count, against an exact model of mazes."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from tests.worlds.exact import Dreamt, ExactModel, shortest_actions, small_mazes
from vae_lightning.data.transitions import Mazes, Transitions
from vae_lightning.synthetic import mazes
from vae_lightning.types import UserError
from vae_lightning.worlds.dream import DreamEnv, Dreams, DreamVecEnv, observation_space, observe


@pytest.fixture(scope="module")
def data() -> Mazes:
    return small_mazes()


@pytest.mark.parametrize("observation", ["planes", "cells"])
def test_a_dream_passes_the_checker_of_gymnasium(data: Mazes, observation: Any) -> None:
    check_env(DreamEnv(ExactModel(), data, observation), skip_render_check=True)


def test_a_dream_needs_no_real_environment(data: Mazes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the module of the real maze broken, a dream is made and stepped."""
    monkeypatch.setitem(sys.modules, "vae_lightning.worlds.maze", None)  # an import of it raises

    monkeypatch.setattr("gymnasium.make", None)  # a call of it raises
    environment = DreamVecEnv(ExactModel(), data, 3)
    assert environment.reset().shape == (3, 4, 7, 7)
    assert environment.step(np.array([0, 1, 2]))[0].shape == (3, 4, 7, 7)


def test_the_dream_of_a_maze_begins_in_its_corner(data: Mazes) -> None:
    """All k dreams are of the maze with the given number, and show it in the form of `mazes.planes`."""
    environment = DreamVecEnv(ExactModel(), data, 3, index=2)
    expected = mazes.planes(data.start("test", 2).numpy())
    assert (environment.reset() == expected).all()
    assert (DreamEnv(ExactModel(), data, index=2).reset()[0] == expected).all()
    assert (DreamEnv(ExactModel(), data, index=3).reset()[0] != expected).any()


def test_the_goal_terminates_and_its_state_is_told(data: Mazes) -> None:
    """The shortest path: rewards, `terminal_observation` is the goal with the player, and the next dream has begun."""
    environment = DreamVecEnv(ExactModel(), data, 2)
    first = environment.reset()
    actions = shortest_actions(data.start("test", 0))
    for action in actions[:-1]:
        _, reward, ended, infos = environment.step(np.array([action, 0]))
        assert reward == pytest.approx([-0.01, -0.01])
        assert not ended.any()
        assert all("terminal_observation" not in info for info in infos)
    seen, reward, ended, infos = environment.step(np.array([actions[-1], 0]))
    assert ended.tolist() == [True, False]
    assert reward == pytest.approx([1.0, -0.01])
    goal = mazes.planes(mazes.place_players(data.walls("test")[:1], np.array([48]))[0])
    assert (infos[0]["terminal_observation"] == goal).all()
    assert infos[0]["TimeLimit.truncated"] is False
    assert "terminal_observation" not in infos[1]
    assert (seen[0] == first[0]).all()
    assert environment.dreams.num_steps == 2 * len(actions)
    assert environment.dreams.num_invalid == 0


def test_the_cap_truncates_and_does_not_terminate(data: Mazes) -> None:
    single = DreamEnv(ExactModel(), data, cap=5)
    single.reset(seed=0)
    ends = [single.step(np.int64(0))[2:4] for _ in range(5)]
    assert ends == [(False, False)] * 4 + [(False, True)]
    environment = DreamVecEnv(ExactModel(), data, 2, cap=5)
    first = environment.reset()
    for _ in range(4):
        assert not environment.step(np.array([0, 0]))[2].any()
    _, _, ended, infos = environment.step(np.array([0, 0]))
    assert ended.all()
    assert all(info["TimeLimit.truncated"] is True for info in infos)
    assert (infos[1]["terminal_observation"] == first[1]).all()
    assert not environment.step(np.array([0, 0]))[2].any()  # the age has begun anew


def test_the_goal_at_the_cap_is_terminated(data: Mazes) -> None:
    actions = shortest_actions(data.start("test", 0))
    environment = DreamEnv(ExactModel(), data, cap=len(actions))
    environment.reset()
    steps = [environment.step(np.int64(action)) for action in actions]
    assert steps[-1][2:4] == (True, False)


def test_an_invalid_state_ends_the_dream_and_is_counted(data: Mazes) -> None:
    """The model says done, with a reward of 1: the agent loses what endless steps cost and sees nothing."""
    environment = DreamVecEnv(ExactModel(two_players_after=2), data, 3)
    first = environment.reset()
    for _ in range(2):
        assert not environment.step(np.zeros(3, int))[2].any()
    seen, reward, ended, infos = environment.step(np.zeros(3, int))
    assert ended.all()
    assert reward == pytest.approx([-1.0] * 3)  # -0.01 / (1 - 0.99)
    assert all(info["invalid"] and not info["TimeLimit.truncated"] for info in infos)
    assert (infos[0]["terminal_observation"] == first[0]).all()
    assert (seen == first).all()
    assert environment.dreams.num_invalid == 3
    assert environment.dreams.num_steps == 9


def test_an_invalid_state_is_terminated_with_its_flag(data: Mazes) -> None:
    environment = DreamEnv(ExactModel(two_players_after=0), data, cap=1, discount=0.9)
    first, _ = environment.reset()
    seen, reward, terminated, truncated, info = environment.step(np.int64(0))
    assert (seen == first).all()
    assert reward == pytest.approx(-0.1)
    assert (terminated, truncated, info["invalid"]) == (True, False, True)


class Ring(Transitions):
    """Five numbers in a ring; each step costs 1, and no episode ends."""

    x_shape, vocabulary, num_actions, cap = (), 5, 2, 3

    def transitions(self, split: Any) -> dict[str, Tensor]:
        state, ones = torch.arange(5), torch.ones(5)
        return {"x": (state + 1) % 5, "state": state, "action": ones.long(), "reward": -ones, "done": 0 * ones}

    def start(self, split: Any, index: int) -> Tensor:
        return torch.tensor(0)

    def num_starts(self, split: Any) -> int:
        return 1

    def environment(self, split: Any, index: int) -> tuple[str, dict[str, Any]]:
        return "Ring-v0", {}

    def is_valid(self, state: Tensor) -> Tensor:
        return state < 5


class RingModel:
    """Action 1 goes around the ring; action 0 leads to the number 9, which is none."""

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Dreamt:
        after = torch.where(action == 1, (state + 1) % 5, 9)
        return Dreamt(after, -torch.ones(len(state)), torch.zeros(len(state), dtype=torch.bool))


@pytest.mark.parametrize("cap", [1, 3, 1000])
def test_an_error_of_the_model_is_the_worst_action(cap: int) -> None:
    """Values of all pairs of a state and an action, as agents learn them: what is cut goes on, what ends does not."""
    dreams = Dreams(RingModel(), Ring(terminal_share=0), 10, cap=cap)
    values = torch.zeros(5, 2)
    for _ in range(400):
        dreams.state, dreams.age = torch.arange(5).repeat_interleave(2), torch.zeros(10, dtype=torch.int64)
        moment = dreams.step(np.array([0, 1] * 5))
        following = values.max(1).values[moment.state]
        values = (moment.reward + 0.98 * ~moment.terminated * following).view(5, 2)
    assert values[:, 1].tolist() == pytest.approx([-50] * 5, abs=0.1)
    assert values[:, 0].tolist() == pytest.approx([-100] * 5)


def test_equal_seeds_dream_equally() -> None:
    """The noise of a dream depends on its seed alone: two resets with one seed are equal, those of others are not."""
    data = small_mazes()

    class Noisy(ExactModel):
        def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Dreamt:
            return super().step(state, torch.randint(4, action.shape, generator=generator), generator)

    environment = DreamEnv(Noisy(), data)

    def walk(seed: int | None) -> list[list[float]]:
        first = environment.reset(seed=seed)[0]
        return [seen.ravel().tolist() for seen in [first, *(environment.step(np.int64(1))[0] for _ in range(30))]]

    assert walk(3) == walk(3)
    assert walk(3) != walk(4)
    assert walk(None) != walk(None)
    vector = DreamVecEnv(Noisy(), data, 4)
    vector.seed(5)
    runs = []
    for _ in range(2):
        vector.seed(5)
        vector.reset()
        runs.append(np.stack([vector.step(np.ones(4, int))[0] for _ in range(20)]))
    assert (runs[0] == runs[1]).all()
    assert (runs[0][:, 0] != runs[0][:, 1]).any()  # each of the four has noise of its own


class Vectors(Mazes):
    """Data whose states are vectors [2] of recorded episodes of a single world."""

    x_shape = (2,)

    def start(self, split: Any, index: int) -> Tensor:
        return torch.tensor([float(index), 0.0])

    def environment(self, split: Any, index: int) -> tuple[str, dict[str, Any]]:
        return "Some-v0", {}

    def is_valid(self, state: Tensor) -> Tensor:
        return state.isfinite().all(1)


class Diverging:
    """s + 1 at each step; not finite above 6."""

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Dreamt:
        after = torch.where(state + 1 > 6, torch.nan, state + 1)
        return Dreamt(after, after.sum(1), torch.zeros(len(state), dtype=torch.bool))


def test_dreams_of_recorded_vectors() -> None:
    """Each dream begins at a first state of its own, of train; numbers that are not finite never reach an agent."""
    data = Vectors(num_mazes=(4, 2, 2), num_transitions=(20, 5, 5))
    environment = DreamVecEnv(Diverging(), data, 4)
    assert sorted(environment.reset()[:, 0].tolist()) == [0, 1, 2, 3]
    for _ in range(20):
        seen, reward, ended, infos = environment.step(np.zeros(4, int))
        told = [info["terminal_observation"] for info in infos if "terminal_observation" in info]
        assert np.isfinite(seen).all()
        assert np.isfinite(reward).all()
        assert np.isfinite(told).all()
        assert len(told) == ended.sum()
    assert environment.dreams.num_invalid >= 8


def test_what_is_seen_of_each_kind_of_state(data: Mazes) -> None:
    cells = data.starts("test", 2, 0)
    planes = observe(cells, observation_space(data))
    assert (planes == mazes.planes(cells.numpy())).all()
    assert planes.dtype == np.float32
    as_cells = observe(cells, observation_space(data, "cells"))
    assert (as_cells == cells.numpy()).all()
    assert as_cells.dtype == np.uint8


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_dreams": 0}, "num_dreams is 0"),
        ({"index": -1}, "index is -1"),
        ({"index": 4}, "test has no maze 4"),
        ({"cap": 0}, "cap is 0"),
        ({"discount": 1.0}, "discount is 1.0; it must be in"),
    ],
)
def test_a_mistake_is_one_line(data: Mazes, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Dreams(ExactModel(), data, **settings)


def test_an_action_out_of_range_is_one_line(data: Mazes) -> None:
    dreams = Dreams(ExactModel(), data, 2)
    with pytest.raises(UserError, match=r"action .*1, 4.*; actions are 0 to 3"):
        dreams.step(np.array([1, 4]))
