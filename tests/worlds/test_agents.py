"""Agents in dreams and in the real maze: what they learn, how they are tested, and what is written of them."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from PIL import Image
from stable_baselines3.common.vec_env import DummyVecEnv

from tests.worlds.exact import ExactModel, shortest_actions, small_mazes
from vae_lightning.data.transitions import Mazes
from vae_lightning.runs.trust import TRUSTED
from vae_lightning.types import UserError
from vae_lightning.worlds import agents
from vae_lightning.worlds.agents import Kind, Policy, Score, play, train, uniform
from vae_lightning.worlds.comparison import Comparison, Row, summaries, table, worlds_of
from vae_lightning.worlds.dream import DreamEnv, DreamVecEnv
from vae_lightning.worlds.real import make_real, to_state
from vae_lightning.worlds.report import Report, learning_curves
from vae_lightning.worlds.rollout import SideBySide, curves, moving_picture, side_by_side


@pytest.fixture(scope="module")
def data() -> Mazes:
    return small_mazes()


def follow(actions: list[int]) -> Policy:
    """Take these actions in their order, and the last one again and again."""
    left = list(actions)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


# -- tests in the real world ------------------------------------------------------------------------------------------


def test_the_shortest_path_scores_one(data: Mazes) -> None:
    actions = shortest_actions(data.start("test", 1))
    score = play(make_real(data, "test", 1), follow(actions), 1, 0)
    assert score.steps == [len(actions)]
    assert score.success == 1
    assert score.ratio == 1
    assert score.mean_return == pytest.approx(1 - 0.01 * (len(actions) - 1))


def test_a_detour_and_a_failure(data: Mazes) -> None:
    actions = shortest_actions(data.start("test", 1))
    detour = play(make_real(data, "test", 1), follow([0, 0, *actions]), 1, 0)
    assert detour.ratio == pytest.approx((len(actions) + 2) / len(actions))
    still = play(make_real(data, "test", 1), follow([0]), 2, 0)
    assert still.steps == [196, 196]
    assert still.success == 0
    assert still.ratio is None
    assert still.mean_return == pytest.approx(-1.96)


def test_a_world_without_a_goal_has_a_return_alone() -> None:
    score = play(gymnasium.make("CartPole-v1"), uniform(2, 0), 20, 0)
    assert score.success is None
    assert score.ratio is None
    assert 10 < score.mean_return < 40


def test_the_dream_of_an_exact_model_is_the_real_world(data: Mazes) -> None:
    """Random actions over several episodes: the two environments show and say the same at each step."""
    dream, real = DreamEnv(ExactModel(), data, index=3), make_real(data, "test", 3)
    assert dream.observation_space == real.observation_space
    assert dream.action_space == real.action_space
    assert (dream.reset(seed=0)[0] == real.reset(seed=0)[0]).all()
    for action in np.random.default_rng(0).integers(4, size=500):
        dreamt, told = dream.step(action), real.step(action)
        assert (dreamt[0] == told[0]).all()
        assert dreamt[1:4] == told[1:4]
        if told[2] or told[3]:
            assert (dream.reset()[0] == real.reset()[0]).all()


# -- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_an_exact_dream_teaches_what_the_real_world_does(
    data: Mazes, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one seed the weights of the two agents are equal: a dream begins, ends and is cut as a real maze is.

    The cap of 30 makes many episodes end by truncation.
    """
    monkeypatch.setitem(
        agents._SETTINGS, "dqn", {**agents._SETTINGS["dqn"], "learning_starts": 100, "gradient_steps": 1}
    )
    monkeypatch.setattr(Mazes, "cap", 30)
    whole = data.environment
    monkeypatch.setattr(data, "environment", lambda *which: (whole(*which)[0], {**whole(*which)[1], "cap": 30}))
    weights = []
    for environments in (DreamVecEnv(ExactModel(), data, 8), DummyVecEnv([lambda: make_real(data)] * 8)):
        agent, curve = train(kind, environments, 512, 1, lambda _: 0.0, points=4)
        weights.append(torch.nn.utils.parameters_to_vector(agent.policy.parameters()))
        assert curve[0][0] == 0
        assert curve[-1][0] == agent.num_timesteps == 512
    assert (weights[0] == weights[1]).all()


@pytest.mark.parametrize("kind", ["ppo", "dqn"])
def test_an_agent_leaves_nothing_in_the_folder_of_temporary_files(
    data: Mazes, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train(kind, DreamVecEnv(ExactModel(), data, 8), 8, 0, lambda _: 0.0)
    assert list(tmp_path.iterdir()) == []


def test_a_table_of_values_learns_the_maze_in_a_dream(data: Mazes) -> None:
    """Q-learning without a network: the greedy path of the dreamt values is the shortest one in the real maze."""
    random, dream = np.random.default_rng(0), DreamEnv(ExactModel(), data, "cells", index=1)
    values: dict[bytes, Any] = {}

    def row(seen: Any) -> Any:
        return values.setdefault(seen.tobytes(), np.zeros(4))

    for _ in range(80):
        seen, _ = dream.reset()
        ended = False
        while not ended:
            action = random.integers(4) if random.random() < 0.2 else int(row(seen).argmax())
            after, reward, terminated, truncated, _ = dream.step(action)
            row(seen)[action] += 0.5 * (reward + 0.95 * (not terminated) * row(after).max() - row(seen)[action])
            seen, ended = after, terminated or truncated
    real = make_real(data, "test", 1, "cells")
    assert play(real, lambda seen: int(row(seen).argmax()), 1, 0).ratio == 1


@pytest.mark.slow
def test_an_agent_of_a_dream_solves_the_real_maze(data: Mazes) -> None:
    row, _ = next(iter(Comparison(ExactModel(), data, 80, steps=60_000).rows(0, 0)))
    assert row.teacher == "dream"
    assert row.score.ratio == 1
    assert row.real_transitions == 80


def test_the_worlds_of_a_comparison_are_those_of_test(data: Mazes) -> None:
    comparison = Comparison(ExactModel(), data, 80)
    for i in range(2):
        real = comparison.real(i)
        real.reset(seed=0)
        assert (real.state[0] == data.start("test", i)).all()
        assert (real.state[0] != data.start("train", i)).any()


def test_a_greedy_policy_draws_nothing(data: Mazes) -> None:
    """An agent that has not learnt is nearly uniform; its greedy policy takes one action of a state all the same."""
    environments = DreamVecEnv(ExactModel(), data, 1)
    policy, seen = agents.greedy(agents.PPO("MlpPolicy", environments, seed=0, device="cpu")), environments.reset()[0]
    assert len({policy(seen) for _ in range(30)}) == 1


def test_a_comparison_has_three_rows(data: Mazes) -> None:
    """What each agent has used: the dream the model's transitions, the real one its own, the random one none."""
    comparison = Comparison(ExactModel(two_players_after=1), data, 80, "dqn", steps=96)
    dream, real, random = (row for row, _ in comparison.rows(0, 3))
    assert [row.teacher for row in (dream, real, random)] == ["dream", "real", "random"]
    assert [row.real_transitions for row in (dream, real, random)] == [80, 96, 0]
    assert [row.steps for row in (dream, real, random)] == [96, 96, 0]
    assert dream.invalid == 32 * 2
    assert real.invalid == 0
    assert [len(row.score.returns) for row in (dream, real, random)] == [1, 1, 20]
    slippery = Comparison(ExactModel(), small_mazes(slip=0.3), 80)
    assert slippery.num_episodes(0) == 20


def test_a_step_below_one_is_refused(data: Mazes) -> None:
    with pytest.raises(UserError, match="0 steps"):
        train("ppo", DreamVecEnv(ExactModel(), data, 2), 0, 0, lambda _: 0.0)


# -- the real world ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        (("NoSuchWorld-v0", {}), "NoSuchWorld-v0: gymnasium has no such environment; if .*, add --trust my_pkg"),
        (("vae_lightning/Maze-v0", {"size": 8}), "Maze-v0: cannot be made .*MazeEnv: size is 8"),
        (("vae_lightning/Maze-v0", {"size": 9}), r"the real world shows \(9, 9\); the states of the data are \(7, 7\)"),
        (("CartPole-v1", {}), r"actions are Discrete\(2\); the data have 4 actions"),
        (("their_pkg.worlds:Some-v0", {}), "their_pkg.worlds, which is not trusted; .*add --trust their_pkg"),
    ],
)
def test_a_real_world_that_does_not_fit_is_one_line(
    environment: tuple[str, dict[str, Any]], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_mazes()
    monkeypatch.setattr(data, "environment", lambda *_: environment)
    with pytest.raises(UserError, match=says):
        make_real(data).reset()


def test_a_trusted_package_registers_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is imported if the user trusts it, and only then; a package that fails is one line."""
    (tmp_path / "own_envs.py").write_text(
        "import gymnasium\nfrom vae_lightning.worlds.maze import MazeEnv\n"
        "gymnasium.register('OwnMaze-v0', entry_point=MazeEnv, kwargs={'size': 7})\n"
    )
    (tmp_path / "broken_envs.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    data = small_mazes()
    monkeypatch.setattr(data, "environment", lambda *_: ("OwnMaze-v0", {}))
    with pytest.raises(UserError, match=r"no such environment.*--trust my_pkg"):
        make_real(data)
    assert "own_envs" not in sys.modules
    with pytest.raises(UserError, match=r"--trust broken_envs: cannot be imported \(ZeroDivisionError"):
        make_real(data, trusted=(*TRUSTED, "broken_envs."))
    try:
        assert make_real(data, trusted=(*TRUSTED, "own_envs.")).reset(seed=0)[0].shape == (4, 7, 7)
    finally:
        sys.modules.pop("own_envs", None)
        gymnasium.registry.pop("OwnMaze-v0", None)


def test_an_observation_becomes_a_state() -> None:
    """Bytes of an image with its channels last become numbers in [0, 1] with its channels first; others are kept."""
    image = np.zeros((4, 5, 3), np.uint8)
    image[1, 2] = (255, 51, 0)
    state = to_state(image, torch.zeros(2, 3, 4, 5))
    assert state.shape == (1, 3, 4, 5)
    assert state[0, :, 1, 2].tolist() == pytest.approx([1, 0.2, 0])
    grey = to_state(image[..., 0], torch.zeros(2, 1, 4, 5))
    assert grey.shape == (1, 1, 4, 5)
    assert grey[0, 0, 1, 2] == 1
    square = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)  # the channels are last, as in a recording
    assert (to_state(square, torch.zeros(2, 3, 3, 3))[0, 0] * 255).round().int().tolist() == square[..., 0].tolist()
    assert to_state(np.zeros((3, 5, 4), np.float32), torch.zeros(2, 3, 5, 4)).shape == (1, 3, 5, 4)
    assert to_state(np.float64([1, 2]), torch.zeros(3, 2)).dtype == torch.float32
    assert to_state(np.int64(4), torch.zeros(3, dtype=torch.int64)).tolist() == [4]


# -- pictures and files -----------------------------------------------------------------------------------------------


class WrongAfter(ExactModel):
    """Right for a number of steps, then without a player."""

    def step(self, *args: Any) -> Any:
        dreamt = super().step(*args)
        if self.calls >= 4:
            dreamt.state[dreamt.state == 2] = 0
        return dreamt


def test_the_first_difference_has_a_red_frame(data: Mazes) -> None:
    """The frames of steps 0 .. 3 have no red frame, that of step 4 has one."""
    actions = shortest_actions(data.start("test", 0))
    exact = side_by_side(ExactModel(), make_real(data), follow(actions), 0)
    assert len(exact.real) == len(actions) + 1
    assert (exact.real == exact.dreamt).all()
    assert not exact.differ.any()
    wrong = side_by_side(WrongAfter(), make_real(data), follow([0] * 9), 0, most=9)
    assert wrong.differ.tolist() == [False] * 4 + [True] * 5
    picture = moving_picture({"world 0": wrong}, data)
    assert picture is not None
    assert picture.frames is not None
    reds = [_is_red(frame) for frame in picture.frames]
    assert reds[0] < 0.01  # the two goals
    assert reds[3] == reds[0]
    assert reds[4] > reds[0] + 0.02


def _is_red(frame: torch.Tensor) -> float:
    red, green, blue = frame.float()
    return float(((red > 180) & (green < 60) & (blue < 60)).float().mean())


def test_a_difference_at_the_end_counts(data: Mazes) -> None:
    """Equal cells, but the dream is done where the real world is not."""

    class EndsEarly(ExactModel):
        def step(self, *args: Any) -> Any:
            dreamt = super().step(*args)
            dreamt.done[:] = self.calls == 2
            return dreamt

    scene = side_by_side(EndsEarly(), make_real(data), follow([0]), 0)
    assert scene.differ.tolist() == [False, False, True]


def test_the_curves_of_vectors() -> None:
    real = torch.arange(6.0).view(3, 2)
    scene = SideBySide(real, real + 0.5, torch.zeros(3, dtype=torch.bool))
    first, second = curves(scene)
    assert first == {"real": [(0, 0.0), (1, 2.0), (2, 4.0)], "dream": [(0, 0.5), (1, 2.5), (2, 4.5)]}
    assert second["real"] == [(0, 1.0), (1, 3.0), (2, 5.0)]


ROWS = [
    Row(0, 0, "dream", Score([0.9], [12], [1.0]), 1000, 80, 5, [(0, -1.0), (1000, 0.9)], 2.0),
    Row(0, 1, "dream", Score([-1.96], [196], []), 1000, 80, 0, [(0, -2.0), (1000, -1.96)], 4.0),
    Row(0, 0, "real", Score([0.8], [18], [1.5]), 1000, 1000, 0, [(0, 0.0), (1000, 0.8)], 1.0),
    Row(0, 0, "random", Score([0.5, -1.96, -1.96, -1.96], [60, 196, 196, 196], [5.0])),
]


def test_the_summary_of_rows() -> None:
    dream, real, random = summaries(ROWS)
    assert (dream.agents, dream.success, dream.solved, dream.ratio) == (2, 0.5, 1, 1.0)
    assert dream.invalid_share == 5 / 2000
    assert dream.seconds == 3
    assert dream.mean_return == pytest.approx(-0.53)
    assert (real.ratio, real.invalid_share, real.real_transitions) == (1.5, None, 1000)
    assert (random.success, random.solved, random.ratio) == (0.25, 0, 5.0)
    lines = table(ROWS).splitlines()
    assert lines[0].split()[:3] == ["trained", "in", "agents"]
    assert lines[1].split() == ["dream", "2", "1", "0.500", "1.000", "-0.530", "80", "0.2500%", "3.0"]
    assert len({len(line) for line in lines}) == 1


def test_learning_curves_are_means() -> None:
    (series,) = learning_curves(ROWS).values()
    assert series["trained in the dream"] == [(0, -1.5), (1000, pytest.approx(-0.53))]
    assert series["trained in the real world"] == [(0, 0.0), (1000, 0.8)]
    assert series["random"] == [(0, pytest.approx(-1.345)), (1000, pytest.approx(-1.345))]
    two = [*ROWS, Row(1, 0, "dream", Score([0.5], [50], [2.0]), 1000, 80, 0, [(0, 0.0), (1000, 0.5)])]
    charts = learning_curves(two)
    assert list(charts) == ["mean of all worlds", "world 0", "world 1"]
    assert charts["world 1"]["trained in the dream"][-1] == (1000, 0.5)


def test_the_files_of_a_report(data: Mazes, tmp_path: Path) -> None:
    """JSON, text, a page without a link to anything outside, and a GIF that is part of the page too."""
    scene = side_by_side(ExactModel(), make_real(data), follow([1, 3, 1, 3]), 0, most=5)
    report = Report(tmp_path / "new", "Dreams of <a run>", {"steps": 1000}, ROWS, {"world 0": scene})
    report.picture = moving_picture(report.scenes, data)
    paths = report.save()
    assert [path.name for path in paths] == ["dream.json", "dream.txt", "dream.html", "dream.gif"]
    plain = json.loads(paths[0].read_text())
    assert [agent["trained_in"] for agent in plain["agents"]] == ["dream", "dream", "real", "random"]
    assert plain["agents"][0]["curve"] == [[0, -1.0], [1000, 0.9]]
    assert plain["summary"][0]["invalid_share"] == 5 / 2000
    assert "5 of 2,000 dreamt states were invalid" in paths[1].read_text()
    page = paths[2].read_text()
    assert page.count("<svg") == 1
    assert "Dreams of &lt;a run&gt;" in page
    assert "data:image/gif;base64," in page
    with Image.open(paths[3]) as gif:
        assert gif.n_frames == 5  # type: ignore[attr-defined]


def test_vectors_are_drawn_as_curves(tmp_path: Path) -> None:
    scene = SideBySide(torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(3, dtype=torch.bool))
    paths = Report(tmp_path, "vectors", {}, ROWS, {"world 0": scene}).save()
    assert [path.name for path in paths] == ["dream.json", "dream.txt", "dream.html"]
    assert paths[2].read_text().count("<svg") == 1 + 4


def test_mazes_are_many_worlds_and_recorded_data_one(data: Mazes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worlds_of(data, "test", 3) == [0, 1, 2]
    assert worlds_of(data, "test", 99) == [0, 1, 2, 3]
    monkeypatch.setattr(data, "environment", lambda *_: ("CartPole-v1", {}))
    assert worlds_of(data, "test", 3) == [0]


def test_large_images_are_seen_by_convolutions() -> None:
    assert agents._policy(spaces.Box(0, 1, (3, 64, 64), np.float32))[0] == "CnnPolicy"
    assert agents._policy(spaces.Box(0, 1, (4, 41, 41), np.float32))[0] == "MlpPolicy"
