"""A run that is stopped at the last step of an epoch, resumed, stopped in the next epoch, and resumed again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import DIGITS, REPOSITORY, clean_environment, read_csv
from vae_lightning.__main__ import main
from vae_lightning.models import VAE
from vae_lightning.runs import signals

FIT = (
    "fit",
    f"--config={DIGITS}",
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.max_epochs=6",
    "--trainer.check_val_every_n_epoch=2",
    "--trainer.log_every_n_steps=5",
)
STOPS = [[("train", 2, -1), ("validation", 3, 1)], [("train", 2, -1), ("train", 3, 4)]]


def planted(kind: str, epoch: int, batch: int, stop: Any) -> tuple[str, Any]:
    """A hook of the model, and a version that also calls `stop` at the start of a batch; -1 is the last batch."""
    name = f"on_{kind}_batch_start"
    former = getattr(VAE, name)

    def start(self: VAE, batch_: Any, index: int, *args: Any) -> None:
        former(self, batch_, index, *args)
        if self.current_epoch == epoch and index == batch % self.trainer.num_training_batches:
            stop()

    return name, start


def rows(folder: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in read_csv(folder / "metrics.csv")]


def assert_same(folder: Path, whole: Path, steps: int) -> None:
    stopped, expected = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (folder, whole))
    assert stopped["global_step"] == expected["global_step"] == steps
    for name, value in expected["state_dict"].items():
        assert torch.equal(stopped["state_dict"][name], value), name
    assert rows(folder) == rows(whole)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    before = Path.cwd()
    os.chdir(REPOSITORY)
    assert main([*FIT, f"--runs_dir={folder}", "--run_id=x"]) == 0
    os.chdir(before)
    return folder / "vae" / "digits" / "x"


@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_two_stops_over_the_boundary_of_an_epoch(
    stops: list[tuple[str, int, int]], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs have 20 steps. A validation runs after the 2nd, 4th and 6th epoch."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(signals, "_requested", 0)
    monkeypatch.setattr(signals, "_polled", False)
    command = [*FIT, f"--runs_dir={tmp_path}", "--run_id=x"]
    for stop in stops:
        with monkeypatch.context() as patched:
            patched.setattr(VAE, *planted(*stop, lambda: signals._handle_signal(signal.SIGINT, None)))
            assert main(command) == 130
        signals.reset()
    assert main(command) == 0
    assert_same(tmp_path / "vae" / "digits" / "x", whole, 120)


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {repository!r})
from tests.runs.test_stop_and_stop import planted
from vae_lightning.callbacks import agreement
from vae_lightning.models import VAE
agreement._MOST = 1  # the ranks compare at each step
if os.environ.get("LOCAL_RANK", "0") == "1":
    setattr(VAE, *planted(*{stop!r}, lambda: os.kill(os.getpid(), signal.{name})))
from vae_lightning.__main__ import console
console()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stops"),
    [("SIGINT", {30: ("train", 2, -1), 35: ("train", 3, 4)}), ("SIGKILL", {30: ("train", 3, 0), 35: ("train", 3, 5)})],
)
def test_two_stops_on_two_ranks(name: str, stops: dict[int, tuple[str, int, int]], tmp_path: Path) -> None:
    """The second rank alone is stopped at a step, or is killed in a run that saves each step. Epochs have 10 steps."""
    saves = ("--checkpoint.last_every_minutes=1e-9",) if name == "SIGKILL" else ()

    def run(run_id: str, stop: tuple[str, int, int]) -> int:
        script = tmp_path / "planted.py"
        script.write_text(SCRIPT.format(repository=str(REPOSITORY), stop=stop, name=name))
        where = (f"--runs_dir={tmp_path}", f"--run_id={run_id}", "--trainer.devices=2")
        command = [sys.executable, str(script), *FIT, *saves, *where]
        return subprocess.run(command, cwd=REPOSITORY, env=clean_environment(), timeout=240, check=False).returncode

    never = ("train", 99, 0)
    last = tmp_path / "vae" / "digits" / "x" / "checkpoints" / "last.ckpt"
    assert run("whole", never) == 0
    for step, stop in stops.items():
        code = run("x", stop)
        assert code == 130 if name == "SIGINT" else code != 0
        assert torch.load(last, weights_only=True)["global_step"] == step
    assert run("x", never) == 0
    assert_same(*(tmp_path / "vae" / "digits" / run_id for run_id in ("x", "whole")), 60)
