"""A user's own ModelCheckpoint beside the run's: it writes to the run's folder and changes no result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers import DIGITS, REPOSITORY, only
from vae_lightning.__main__ import main

FLAGS = (
    "--trainer.accelerator=cpu",
    "--trainer.logger=false",
    "--trainer.check_val_every_n_epoch=1",
    "--nll.num_samples=2",
)
FEW = (
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_train_batches=4",
    "--trainer.limit_test_batches=1",
)
WORST = (
    "--trainer.callbacks+=ModelCheckpoint",
    "--trainer.callbacks.monitor=val/loss",
    "--trainer.callbacks.mode=max",
    "--trainer.callbacks.filename=worst",
)


def test_the_runs_own_best_is_tested_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's checkpoint is written beside the run's, in `checkpoints`."""
    monkeypatch.chdir(REPOSITORY)
    assert main(["train", "-c", DIGITS, *FLAGS, *FEW, *WORST, f"--runs_dir={tmp_path}"]) == 0
    folder = only(tmp_path, "vae/digits/*")
    names = {path.name for path in (folder / "checkpoints").iterdir()}
    assert names == {"best.ckpt", "last.ckpt", "previous.ckpt", "worst.ckpt"}
    assert {path.parent for path in folder.rglob("*.ckpt")} == {folder / "checkpoints"}
    steps = {name: torch.load(folder / "checkpoints" / name, weights_only=True)["global_step"] for name in names}
    assert (steps["worst.ckpt"], steps["best.ckpt"]) == (4, 8)  # the second epoch's validation is better
    assert json.loads((folder / "results.json").read_text())["checkpoint"] == str(folder / "checkpoints" / "best.ckpt")
    (said,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("validation"))
    assert "val/elbo" in said


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        (["filename=best", "monitor=val/loss"], "best.ckpt"),
        (["save_last=true", "monitor=val/loss"], "last.ckpt"),
        (["filename=last", "save_last=link"], "last.ckpt"),
        (["filename=previous", "dirpath=RUNS/vae/digits/x/../x/checkpoints"], "previous.ckpt"),
    ],
    ids=str,
)
def test_one_that_would_write_the_runs_own_files_is_refused(
    options: list[str], taken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    flags = [f"--trainer.callbacks.{option}".replace("RUNS", str(tmp_path)) for option in options]
    command = ["fit", "-c", DIGITS, *FLAGS, "--trainer.max_steps=1", f"--runs_dir={tmp_path}", "--run_id=x"]
    assert main([*command, "--trainer.callbacks+=ModelCheckpoint", *flags]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"ModelCheckpoint would write {taken}, which the run writes to {tmp_path}" in said
    assert not list(tmp_path.rglob("*.*"))


def test_the_same_names_in_another_folder_are_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    other = ("--trainer.callbacks.filename=best", "--trainer.callbacks.save_last=true")
    elsewhere = f"--trainer.callbacks.dirpath={tmp_path / 'mine'}"
    command = ("fit", "-c", DIGITS, *FLAGS, *FEW, f"--runs_dir={tmp_path / 'runs'}")
    assert main([*command, "--trainer.callbacks+=ModelCheckpoint", *other, elsewhere]) == 0
    assert {path.name for path in (tmp_path / "mine").iterdir()} >= {"best.ckpt", "last.ckpt"}
