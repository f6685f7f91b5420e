"""`record`: steps of real environments, by the command line; what cannot be recorded is one line, and no file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tests.helpers import REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.data import Recorded
from vae_lightning.runs import trust
from vae_lightning.storage.recordings import read_recording
from vae_lightning.synthetic import mazes
from vae_lightning.types import UserError
from vae_lightning.worlds.recording import record


class Own(gymnasium.Env[Any, Any]):
    """An environment of five lines; its spaces, and what it returns, are settings of the class."""

    observation_space: Any = spaces.Box(-9, 9, (2,), np.float64)
    action_space: Any = spaces.Discrete(3)
    observation: Any = (0.0, 1.0)
    reward = 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.array([1.0, 2.0]) if isinstance(self.observation, tuple) else self.observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.array(self.observation), self.reward, False, False, {}


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("out of\norder")


@pytest.fixture
def own() -> Iterator[None]:
    gymnasium.register("Own-v0", entry_point=Own, disable_env_checker=True)
    yield
    del gymnasium.registry["Own-v0"]


def run(folder: Path, *args: str) -> int:
    return main(["record", args[0], f"--output={folder}", *args[1:]])


def test_cartpole_is_recorded_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cartpole"
    assert run(folder, "CartPole-v1", "--steps=500", "--seed=3") == 0
    said = capsys.readouterr().out
    found = read_recording(folder)
    assert said.startswith(f"{folder}: 500 steps of CartPole-v1, {len(found.lengths)} episodes, ")
    assert "vectors [4], 2 actions, policy random" in said
    assert (found.about.max_episode_steps, found.about.seed, found.about.num_actions) == (500, 3, 2)
    assert found.about.versions["gymnasium"] == gymnasium.__version__
    environment, step, row = gymnasium.make("CartPole-v1"), 0, 0
    for episode, length in enumerate(found.lengths):
        observation, _ = environment.reset(seed=3 if episode == 0 else None)
        for t in range(length):
            assert (found.observations[row + t] == observation.astype(np.float32)).all()
            observation, reward, terminated, _, _ = environment.step(int(found.actions[step]))
            assert reward == found.rewards[step]
            assert terminated == (t == length - 1 and found.terminated[episode])
            step += 1
        row += length + 1
        assert (found.observations[row - 1] == observation.astype(np.float32)).all()
    assert 0.4 < found.actions.mean() < 0.6
    again = tmp_path / "again"
    assert run(again, "CartPole-v1", "--steps=500", "--seed=3") == 0
    assert all((again / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir())
    data = Recorded(str(folder))
    data.setup("fit")
    assert data.x_shape == (4,)


def test_an_episode_that_is_cut_has_not_ended(tmp_path: Path) -> None:
    assert run(tmp_path / "steps", "CartPole-v1", "--steps=100", "--env_args", "max_episode_steps=4") == 0
    found = read_recording(tmp_path / "steps")
    assert found.lengths.tolist() == [4] * 25
    assert not found.terminated.any()
    assert found.about.arguments == {"max_episode_steps": 4}


def test_whole_numbers_and_images(tmp_path: Path) -> None:
    assert run(tmp_path / "lake", "FrozenLake-v1", "--steps=200", "--env-args", "is_slippery=false") == 0
    lake = read_recording(tmp_path / "lake")
    assert (lake.about.kind, lake.about.num_states, lake.about.arguments) == ("discrete", 16, {"is_slippery": False})
    name = "vae_lightning/Maze-v0"
    assert run(tmp_path / "maze", name, "--steps=60", "--env_args", "size=7", "observation=image", "maze_seed=1") == 0
    maze = read_recording(tmp_path / "maze")
    assert (maze.about.kind, maze.about.shape) == ("image", (3, 28, 28))
    cells = mazes.place_players(mazes.draw_walls([1], 7))
    assert (maze.observations[0] == mazes.paint(cells, 4)[0]).all()


def test_a_policy_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lean_pkg.py").write_text(
        "def act(observation, random):\n    return int(observation[2] > 0)\n\nthree = 3\n"
        "def wrong(observation, random):\n    return 2\n"
    )
    monkeypatch.chdir(tmp_path)
    command = ("CartPole-v1", "--steps=100", "--policy=lean_pkg.act")
    try:
        assert run(tmp_path / "untrusted", *command) == 2
        assert run(tmp_path / "steps", *command, "--trust=lean_pkg") == 0
        assert run(tmp_path / "wrong", *command[:2], "--policy=lean_pkg.wrong", "--trust=lean_pkg") == 2
        assert run(tmp_path / "three", *command[:2], "--policy=lean_pkg.three", "--trust=lean_pkg") == 2
    finally:
        trust._FINDER.places.clear()
    found = read_recording(tmp_path / "steps")
    first = np.arange(len(found.lengths)) + found.lengths.cumsum() - found.lengths
    states = np.delete(found.observations, first + found.lengths, 0)  # without the last ones
    assert (found.actions == (states[:, 2] > 0)).all()
    assert json.loads((tmp_path / "steps" / "recording.json").read_text())["policy"] == "lean_pkg.act"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and path.name[0] != "_") == ["steps"]


def test_an_environment_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its package lies in the present folder; the recording names the environment alone."""
    (tmp_path / "lake_pkg.py").write_text(
        "import gymnasium\n"
        "gymnasium.register('Pond-v0', entry_point='gymnasium.envs.toy_text.frozen_lake:FrozenLakeEnv')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [folder for folder in sys.path if folder not in ("", ".", str(tmp_path))])
    try:
        assert run(tmp_path / "untrusted", "lake_pkg:Pond-v0", "--steps=30") == 2
        assert run(tmp_path / "pond", "lake_pkg:Pond-v0", "--steps=30", "--trust=lake_pkg") == 0
    finally:
        trust._FINDER.places.clear()
        sys.modules.pop("lake_pkg", None)
        gymnasium.registry.pop("Pond-v0", None)
    assert read_recording(tmp_path / "pond").about.environment == "Pond-v0"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("CartPol-v1",), r"CartPol-v1: gymnasium has no such environment \(did you mean CartPole-v1\?\)"),
        (("Pendulum-v1",), "Pendulum-v1: its actions are Box.*; record takes the whole numbers from 0"),
        (
            ("vae_lightning/Maze-v0",),
            "its observations are Box.*; record takes vectors .*, images .* and whole",
        ),
        (("CartPole-v1", "--env_args", "size"), r"--env_args 'size' is not NAME=VALUE"),
        (("CartPole-v1", "--env_args", "size=[1"), r"--env_args size: '\[1' is no number, text or list"),
        (("CartPole-v1", "--env_args", "size=1"), "CartPole-v1: cannot be made .*unexpected keyword argument 'size'"),
        (("vae_lightning/Maze-v0", "--env_args", "size=4"), "Maze-v0: cannot be made .*size is 4; it must be odd"),
        (("CartPole-v1", "--steps=0"), "--steps is 0 and --seed 0; there is at least 1 step"),
        (("CartPole-v1", "--policy=act"), "--policy act is no function of a trusted package; write my_pkg"),
        (("CartPole-v1", "--policy=os.getcwd"), "--policy os.getcwd is no function of a trusted package"),
        (("CartPole-v1", "--policy=lightning.pytorch.Trainer"), "is no function of a trusted package"),
        (("no_such_module:CartPole-v1",), "cannot be made .*no_such_module"),
        (("CartPole-v1", f"--steps={10**13}"), "10,000,000,000,000 steps take [0-9,.]+ GiB, but only"),
        (("CartPole-v1", "--step=3"), "unrecognized arguments: --step=3 .*did you mean --steps"),
    ],
)
def test_what_cannot_be_recorded_is_one_line(
    args: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "steps", *args) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert pytest.raises(UserError, match=message).matches(UserError(said.strip()))
    assert not (tmp_path / "steps").exists()


def test_a_folder_with_files_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").touch()
    monkeypatch.setattr(gymnasium, "make", failing)
    assert run(tmp_path, "CartPole-v1") == 2
    assert "holds thesis.tex already; nothing is replaced" in capsys.readouterr().err


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"observation": (np.nan, 0.0)}, "not finite; its space promises finite ones of"),
        ({"observation": (0.0, 0.0, 0.0)}, r"an observation has the shape \[3\]"),
        ({"observation": "text"}, "its observation is not of its space"),
        ({"reward": np.inf}, "its step returned the reward inf; a reward is finite"),
        ({"action_space": spaces.Discrete(3, start=1)}, r"its actions are Discrete\(3, start=1\)"),
        ({"observation_space": spaces.Discrete(3, start=2)}, r"its observations are Discrete\(3, start=2\)"),
        ({"step": failing}, r"its step failed \(RuntimeError: out of order\)"),
        ({"reset": failing}, r"its reset failed \(RuntimeError"),
    ],
)
def test_an_environment_that_breaks_its_word_is_one_line(
    settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setattr(Own, name, value)
    with pytest.raises(UserError, match=f"^Own-v0: .*{message}") as refused:
        record("Own-v0", {}, 10)
    assert "\n" not in str(refused.value)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("shape", "stored"), [((4, 5), (1, 4, 5)), ((4, 5, 3), (3, 4, 5)), ((3, 4, 5), (3, 4, 5)), ((6, 5, 4), (4, 6, 5))]
)
def test_images_are_stored_channels_first(
    shape: tuple[int, ...], stored: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    monkeypatch.setattr(Own, "observation_space", spaces.Box(0, 255, shape, np.uint8))
    monkeypatch.setattr(Own, "observation", image)
    found = record("Own-v0", {}, 4)
    assert (found.about.kind, found.about.shape, found.observations.shape) == ("image", stored, (5, *stored))
    channel = image if image.ndim == 2 else image[..., 0] if stored != shape else image[0]
    assert (found.observations[0, 0] == channel).all()


def test_help_needs_no_environment(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["record", "--help"])
    assert ended.value.code == 0
    assert "--env_args" in capsys.readouterr().out
    assert (REPOSITORY / "vae_lightning" / "verbs" / "record.py").is_file()
