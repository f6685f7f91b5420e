"""`vae-lightning dream` from the command line, on a world model of mazes after two steps of training."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import sys
from pathlib import Path

import gymnasium
import pytest

from tests.helpers import REPOSITORY, only
from vae_lightning.__main__ import main
from vae_lightning.models import VAE
from vae_lightning.verbs import Command, dream, record
from vae_lightning.worlds import MAZE, comparison

QUICK = (
    *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1"),
    *("--trainer.logger=false", "--trainer.accelerator=cpu", "--pictures.num_images=4"),
)
SMALL = ("--data.num_mazes=[6,2,3]", "--data.num_transitions=[20,5,5]")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the Dreaming VAE on three test mazes."""
    folder = tmp_path_factory.mktemp("maze7")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        assert main(["fit", "-c", "configs/dreaming/maze7.yaml", *QUICK, *SMALL, f"--runs_dir={folder}"]) == 0
    return only(folder, "dreaming/maze7/*")


DREAM = ("--worlds=2", "--steps=32", "--agent=dqn", "--seeds", "3")


@pytest.fixture(scope="module")
def dreamt(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder and the printed lines of a comparison in two mazes."""
    folder, printed = tmp_path_factory.mktemp("dreamt"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["dream", str(run), *DREAM, f"--output={folder}"]) == 0
    return folder, printed.getvalue().splitlines()


def test_dream_prints_and_writes_a_table(dreamt: tuple[Path, list[str]]) -> None:
    """A line for each agent as it ends, the table, and four files."""
    folder, lines = dreamt
    starts = [f"world {world}, seed 3, {teacher}" for world in (0, 1) for teacher in ("dream", "real", "random")]
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=False))
    files = [folder / f"dream.{ending}" for ending in ("json", "txt", "html", "gif")]
    assert lines[-4:] == [str(file) for file in files]
    table = "\n".join(lines[len(starts) : -4])
    assert files[1].read_text() in table
    assert re.search(r"\ndream +2 .* 140 ", table)  # train: 6 mazes of 20; val: 2 of 5, and as many of known mazes
    assert re.search(r"\nreal +2 .* 32 ", table)
    plain = json.loads(files[0].read_text())
    assert [agent["training_steps"] for agent in plain["agents"]] == [32, 32, 0] * 2
    assert plain["settings"]["seeds"] == [3]
    assert "data:image/gif;base64," in files[2].read_text()
    assert files[3].read_bytes().startswith(b"GIF89a")


def test_a_stop_keeps_what_was_measured(
    run: Path, dreamt: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After Ctrl-C in the second maze, the files of the first lie in the run's folder; a seed repeats its agents."""
    whole = comparison.Comparison.rows

    def stop(self: comparison.Comparison, world: int, seed: int) -> object:
        if world == 1:
            raise KeyboardInterrupt
        return whole(self, world, seed)

    monkeypatch.setattr(comparison.Comparison, "rows", stop)
    with pytest.raises(KeyboardInterrupt):
        main(["dream", str(run), *DREAM])
    kept, complete = (json.loads((folder / "dream.json").read_text())["agents"] for folder in (run, dreamt[0]))
    assert [{**agent, "cpu_seconds": 0} for agent in kept] == [{**agent, "cpu_seconds": 0} for agent in complete[:3]]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--worlds=0"], "--worlds is 0; it must be at least 1"),
        (["--steps=-5"], "--steps is -5"),
        (["--episodes=0"], "--episodes is 0"),
        (["--agent=a2c"], "--agent: invalid choice: 'a2c'"),
        (["--seeds", "one"], "--seeds: invalid int value: 'one'"),
        (["--seeds=-1"], "--seeds is -1; it must be at least 0"),
        (["--output=/dev/null/x", "--worlds=1", "--steps=32", "--agent=dqn"], "cannot be written .*--output"),
    ],
)
def test_a_mistake_is_one_line(run: Path, args: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dream", str(run), *args]) == 2
    assert re.fullmatch(f"vae-lightning: error: .*{says}.*\n", capsys.readouterr().err)


def test_a_run_that_is_no_world_model_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vae_lightning.verbs.dream.load_model", lambda *_: VAE(image_shape=(1, 8, 8)))
    assert main(["dream", str(run)]) == 2
    assert re.fullmatch(
        "vae-lightning: error: .*: VAE of Mazes is no world model, .*dreaming/maze7\n", capsys.readouterr().err
    )


@pytest.mark.parametrize("package", ["gymnasium", "stable_baselines3"])
def test_a_missing_extra_is_one_line(
    run: Path, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package or ".worlds" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("gymnasium.register", lambda *_, **__: None)  # the maze is registered already
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["dream", str(run)]) == 2
    assert re.fullmatch(rf"vae-lightning: error: .*{package}.*vae_lightning\[rl\].*\n", capsys.readouterr().err)


def test_a_world_that_cannot_be_made_is_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is found before an agent is trained."""
    monkeypatch.delitem(gymnasium.registry, MAZE)
    assert main(["dream", str(run)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch("vae-lightning: error: .*vae_lightning/Maze-v0.*\n", captured.err)


def test_a_recorded_world_of_whole_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FrozenLake is recorded, dreamt and compared: from the first command to the last."""
    monkeypatch.chdir(REPOSITORY)
    lake, out = tmp_path / "lake", tmp_path / "out"
    assert main(["record", "FrozenLake-v1", f"--output={lake}", "--steps=300"]) == 0
    flags = (f"--data.data_dir={lake}", "--model.likelihood=null", "--pictures.num_images=0", f"--runs_dir={tmp_path}")
    assert main(["train", "-c", "configs/dreaming/cartpole.yaml", *QUICK, *flags, "--nll.num_samples=1"]) == 0
    run = only(tmp_path, "dreaming/cartpole/*")
    found = json.loads((run / "results.json").read_text())["metrics"]
    assert 0 < found["test/copy/all"] < 1
    assert main(["dream", str(run), "--steps=32", "--agent=dqn", "--episodes=1", f"--output={out}"]) == 0
    plain = json.loads((out / "dream.json").read_text())
    assert [agent["trained_in"] for agent in plain["agents"]] == ["dream", "real", "random"]


@pytest.mark.parametrize("page", ["dreaming", "agents_in_dreams"])
def test_the_commands_of_a_page_are_understood(page: str) -> None:
    """Of `dream` and `record` the arguments; of make, that the config exists."""
    text = (REPOSITORY / "docs" / f"{page}.md").read_text()
    lines = [
        line.partition(" #")[0]
        for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
    ]
    lines += [" ".join(line.split()) for line in re.findall(r"`(vae-lightning (?:dream|record)[^`]+)`", text)]
    assert lines
    for line in lines:
        program, *words = shlex.split(line)
        if program == "make":
            assert (REPOSITORY / words[1].removeprefix("CONFIG=")).is_file(), line
            continue
        command = {"dream": dream, "record": record}[words[0]].COMMAND
        assert isinstance(command, Command)
        command.make_parser("vae-lightning", "").parse_args(words[1:])
