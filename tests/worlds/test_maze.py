"""The maze as an environment: gymnasium's own checks, seeds, ends, what is observed, and bad arguments."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from vae_lightning.data import Mazes
from vae_lightning.synthetic import mazes
from vae_lightning.types import UserError
from vae_lightning.worlds import MAZE
from vae_lightning.worlds.maze import MazeEnv

KINDS: list[dict[str, Any]] = [
    {"observation": "cells"},
    {"observation": "planes", "maze_seed": 3, "start": "random"},
    {"observation": "image", "slip": 0.3, "render_mode": "rgb_array"},
]


def way_to_goal(env: MazeEnv) -> list[int]:
    """The actions of the shortest path."""
    actions, cells = [], env.cells
    while len(actions) < env.optimal:
        left = mazes.shortest_path(cells)[0]
        moved = [mazes.step(cells, np.array([action]))[0] for action in range(4)]
        actions.append(next(a for a in range(4) if mazes.shortest_path(moved[a])[0] < left))
        cells = moved[actions[-1]]
    return actions


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["observation"])
def test_it_passes_the_checker(kind: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(gymnasium.make(MAZE, size=7, **kind).unwrapped)


@pytest.mark.parametrize("maze_seed", [None, 4])
def test_two_resets_with_one_seed_are_equal(maze_seed: int | None) -> None:
    env = MazeEnv(7, maze_seed, slip=0.5, start="random")
    runs = []
    for seed in (1, 1, 2):
        observations = [env.reset(seed=seed)[0]]
        observations += [env.step(action)[0] for action in (1, 3, 3, 1, 1, 3)]
        runs.append(np.stack(observations))
    assert (runs[0] == runs[1]).all()
    assert not (runs[0] == runs[2]).all()


def test_without_a_number_each_reset_brings_a_new_maze() -> None:
    env, fixed = MazeEnv(7), MazeEnv(7, maze_seed=4)
    walls = {(env.reset(seed=0 if i == 0 else None)[0] == mazes.WALL).tobytes() for i in range(8)}
    assert len(walls) == 8
    assert len({fixed.reset()[0].tobytes() for _ in range(8)}) == 1


@pytest.mark.parametrize(("size", "paths"), [(7, {12, 16, 20}), (11, {20, 24, 28, 32, 36})])
def test_the_shortest_path_solves_it(size: int, paths: set[int]) -> None:
    env = MazeEnv(size)
    for seed in range(5):
        _, info = env.reset(seed=seed)
        assert info == {"optimal": env.optimal, "steps": 0}
        assert env.optimal in paths
        rewards = []
        for action in way_to_goal(env):
            assert not rewards or not terminated  # noqa: F821 - of the last turn
            observation, reward, terminated, truncated, info = env.step(np.int64(action))
            rewards.append(reward)
        assert (terminated, truncated, info["steps"]) == (True, False, env.optimal)
        assert rewards == pytest.approx([-0.01] * (env.optimal - 1) + [1])
        assert observation[-1, -1] == mazes.PLAYER  # over the goal
        assert not (observation == mazes.GOAL).any()


def test_an_episode_that_is_cut_did_not_end() -> None:
    env = MazeEnv(11, maze_seed=0, cap=5)
    env.reset(seed=0)
    ends = [env.step(0)[2:4] for _ in range(5)]  # against the border; a step all the same
    assert ends == [(False, False)] * 4 + [(False, True)]
    assert MazeEnv(7).cap == 196
    at_goal = MazeEnv(7, maze_seed=0, cap=12 if MazeEnv(7, maze_seed=0).optimal == 12 else 16)
    at_goal.reset()
    assert [at_goal.step(action)[2:4] for action in way_to_goal(at_goal)][-1] == (True, False)  # at the cap, too


def test_a_vectorised_maze_keeps_the_last_observation() -> None:
    cut = DummyVecEnv([lambda: MazeEnv(7, maze_seed=0, cap=3), lambda: MazeEnv(7, maze_seed=0)])
    start = cut.reset()
    path = way_to_goal(cut.envs[1].unwrapped)
    for i, action in enumerate(path):
        observations, _, dones, infos = cut.step(np.array([0, action]))
        assert dones.tolist() == [i % 3 == 2, i == len(path) - 1]
        if i % 3 == 2:
            assert infos[0]["TimeLimit.truncated"]
    assert not infos[1]["TimeLimit.truncated"]
    assert infos[1]["terminal_observation"][-1, -1] == mazes.PLAYER
    assert (observations[1] == start[1]).all()


def test_random_starts_are_everywhere_but_at_the_goal() -> None:
    env = MazeEnv(7, maze_seed=1, start="random")
    env.reset(seed=0)
    places = {int(mazes.find_players(env.reset()[0][None])[0]) for _ in range(300)}
    walls = mazes.draw_walls([1], 7)[0]
    assert places == set(np.flatnonzero(~walls)[:-1].tolist())


def test_the_views_show_one_state() -> None:
    views = {name: MazeEnv(7, 2, observation=name).reset()[0] for name in ("cells", "planes", "image")}
    assert (views["planes"].argmax(0) == views["cells"]).all()
    assert (views["image"] == mazes.paint(views["cells"], 4).transpose(1, 2, 0)).all()
    assert (MazeEnv(7, 2, render_mode="rgb_array").render() == views["image"]).all()
    assert MazeEnv(7, 2).render() is None


def test_slips_come_as_often_as_they_should() -> None:
    """A step up from the upper left corner leaves it with probability slip / 4 for each open neighbour."""
    env, left = MazeEnv(7, maze_seed=0, slip=0.6, cap=1), 0
    env.reset(seed=0)
    open_neighbours = int(mazes.open_neighbours(env.cells).sum())
    for _ in range(1000):
        start, _ = env.reset()
        left += not (env.step(0)[0] == start).all()
    assert left / 1000 == pytest.approx(0.15 * open_neighbours, abs=0.05)


def test_the_data_name_their_real_world() -> None:
    data = Mazes(num_mazes=(3, 2, 3), num_transitions=(40, 4, 4), terminal_share=0)
    for split in ("train", "test"):
        for index in range(3):
            name, arguments = data.environment(split, index)
            cells, _ = gymnasium.make(name, **arguments).reset()
            assert (cells == data.start(split, index).numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 8}, "size is 8; it must be odd and at least 3"),
        ({"slip": 1.5}, r"slip is 1.5; a probability is in \[0, 1\]"),
        ({"cap": 0}, "cap is 0; it must be at least 1"),
        ({"start": "centre"}, "start is 'centre'; it must be corner or random"),
        ({"observation": "pixels"}, "observation is 'pixels'; it must be cells, planes or image"),
        ({"maze_seed": -1}, "maze_seed is -1; it must be at least 0"),
        ({"render_mode": "human"}, "render_mode is 'human'; it must be rgb_array or None"),
    ],
)
def test_bad_arguments_are_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^MazeEnv: {message}$"):
        MazeEnv(**arguments)


@pytest.mark.parametrize("action", [4, -1])
def test_an_action_that_is_none_is_one_line(action: int) -> None:
    env = MazeEnv(7)
    env.reset()
    with pytest.raises(UserError, match=f"action {action} is none of 0 up, 1 down, 2 left, 3 right"):
        env.step(action)
