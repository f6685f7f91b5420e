"""`train` is killed during its test: the next start repeats the test, and writes each number once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import DIGITS, REPOSITORY, read_csv
from vae_lightning.__main__ import main
from vae_lightning.callbacks import run
from vae_lightning.runs.whole_files import write_whole

FEW = ("--trainer.check_val_every_n_epoch=1", "--trainer.limit_train_batches=4", "--trainer.limit_test_batches=1")
FLAGS = ("--trainer.accelerator=cpu", "--trainer.logger=false", "--trainer.log_every_n_steps=1", "--nll.num_samples=2")


class Killed(BaseException):
    """Stands in for SIGKILL."""


def die(path: Path, contents: bytes) -> None:
    if path.name == "results.json":
        raise Killed
    write_whole(path, contents)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("speed", [(), ("--speed.steps_per_call=2",)], ids=["plain", "several steps a call"])
def test_a_test_that_was_killed_before_its_results_is_taken_again(
    speed: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The killed test belongs to a run that was made longer, so the results of the shorter run still exist."""

    def train(epochs: int) -> Any:
        where = (f"--runs_dir={tmp_path}", "--run_id=x", f"--trainer.max_epochs={epochs}")
        assert main(["train", "-c", DIGITS, *FLAGS, *FEW, *speed, *where]) == 0
        rows = [row for row in read_csv(folder / "metrics.csv") if "test/elbo" in row]
        results = json.loads((folder / "results.json").read_text())["metrics"]
        return [int(row["step"]) for row in rows], float(rows[-1]["test/elbo"]) == results["test/elbo"]

    monkeypatch.chdir(REPOSITORY)
    folder = tmp_path / "vae" / "digits" / "x"
    assert train(1) == ([4], True)
    with monkeypatch.context() as patched:
        patched.setattr(run, "write_whole", die)
        with pytest.raises(Killed):
            train(2)
    assert train(2) == ([4, 8], True)
    capsys.readouterr()
    assert train(2) == ([4, 8], True)
    assert "already complete, after 8 steps; nothing was changed" in capsys.readouterr().out
