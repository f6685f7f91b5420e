"""The README's Python runs, and its commands do what the README states, with a small budget."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from vae_lightning.__main__ import main
from vae_lightning.cli import seeds

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SMALL = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.check_val_every_n_epoch=1"]
SMALL += ["--trainer.logger=false", "--nll.num_samples=2", "--trainer.enable_progress_bar=false"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(program: str) -> list[str]:
    lines = [line.partition(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.split()[:1] == [program]]


def test_the_python_example_runs(tmp_path: Path) -> None:
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("torch.Size([4, 1, 16, 16])")


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = [shlex.split(command)[1] for command in commands("make")]
    assert {"train", "test"} <= set(named) <= targets


def test_every_file_that_is_linked_exists() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


def test_under_200_lines() -> None:
    assert len(README.splitlines()) < 200


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for the commands that need one."""
    runs = tmp_path_factory.mktemp("runs")
    config = str(ROOT / "configs/vae/digits.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("VAE_LIGHTNING_RUN_ID", raising=False)
        assert main(["train", "-c", config, f"--runs_dir={runs}", *SMALL]) == 0
    return next((runs / "vae/digits").iterdir())


@pytest.mark.parametrize("command", commands("vae-lightning"))
@pytest.mark.filterwarnings("ignore")  # the command line shows no warnings either
def test_command(command: str, trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = shlex.split(command.replace("RUN", str(trained_run)))[1:]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(seeds, "_run", main)  # --seeds would start a process for each run
    if args[0] in ("fit", "train"):
        args += [f"--runs_dir={tmp_path}", *(SMALL if "--ckpt_path" not in args else SMALL[3:])]
        args = [arg for arg in args if not arg.startswith("--trainer.max_epochs=")] + ["--trainer.max_epochs=2"]
    elif args[0] == "runs":
        args += [str(trained_run.parents[2])]  # a fresh checkout has no runs/
    elif args[0] == "test":
        args += [f"--runs_dir={tmp_path}", *SMALL[4:]]
    assert main(args) == 0
