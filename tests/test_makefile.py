"""The Makefile, called from any folder: its exit codes, and its commands to Docker."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
from vae_lightning.cli.lightning import DataCLI


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy the checkout without git. Its environment has one program, which exits with its last argument or 0."""
    folder = tmp_path / "a checkout of mine"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("vae-lightning", "docker"):
        program = folder / ".venv" / "bin" / name
        program.write_text('#!/bin/sh\nprintf "%s\\t" "$@"\nfor last; do :; done\ncase $last in 3) exit 3; esac\n')
        program.chmod(0o755)
    (folder / ".venv" / ".ready").touch()
    return folder


def make(folder: Path, *args: str, pipe: str = "") -> subprocess.CompletedProcess[str]:
    """Run `make` from another directory, without a terminal."""
    command = shlex.join(["make", "--no-print-directory", "-C", str(folder), "DOCKER=.venv/bin/docker", *args])
    env = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    shell = ["bash", "-o", "pipefail", "-c", command + pipe]
    return subprocess.run(
        shell, cwd="/", env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def test_help_names_every_target(checkout: Path) -> None:
    result = make(checkout, "help")
    assert result.returncode == 0
    named = {line.split()[0] for line in result.stdout.splitlines()[1:]}
    phony = next(line for line in (REPOSITORY / "Makefile").read_text().splitlines() if line.startswith(".PHONY"))
    assert named == set(phony.split()[1:])


@pytest.mark.parametrize("pipe", ["", " | tee /dev/null"])
def test_a_failure_is_make_s_failure_also_through_a_pipe(checkout: Path, pipe: str) -> None:
    assert make(checkout, "train", "ARGS=0", pipe=pipe).returncode == 0
    assert make(checkout, "train", "ARGS=3", pipe=pipe).returncode == 2


def test_make_train_passes_on_what_it_is_given(checkout: Path) -> None:
    result = make(checkout, "train", "CONFIG=a.yaml", "DATA_DIR=my data", "ARGS=--x=1 --y=2")
    assert result.stdout.split("\t")[:-1] == ["train", "-c", "a.yaml", "--data.data_dir=my data", "--x=1", "--y=2"]


def test_image(checkout: Path) -> None:
    assert make(checkout, "image").stdout.split("\t")[:-1] == ["build", "-t", "vae-lightning", "."]
    assert make(checkout, "image", "ARGS=3").returncode == 0  # docker's last argument is the folder


def test_image_train(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / ".env").write_text("WANDB_API_KEY=planted")
    given = ("CONFIG=configs/vae/mnist.yaml", "DATA_DIR=my-data", "RUN_ID=one", "ARGS=--trainer.max_epochs=3")
    result = make(checkout, "image-train", *given)
    assert result.returncode == 0, result.stderr
    words = result.stdout.split("\t")[:-1]
    docker, ours = words[: words.index("vae-lightning")], words[words.index("vae-lightning") + 1 :]
    assert docker[:3] == ["run", "--rm", "--init"]
    assert "--ipc=host" in docker
    for flag, value in (("--gpus", "all"), ("--stop-timeout", "60"), ("--env-file", ".env")):
        assert docker[docker.index(flag) + 1] == value
    assert docker[docker.index("--env") + 1] == "VAE_LIGHTNING_RUN_ID=one"
    assert docker[docker.index("--user") + 1] == f"{os.getuid()}:{os.getgid()}"
    assert f"{checkout}/runs:/app/runs" in docker
    assert f"{checkout}/my-data:/app/data" in docker
    assert "planted" not in result.stdout + result.stderr
    monkeypatch.chdir(REPOSITORY)
    config = DataCLI(["fit", *ours[1:]]).config.fit
    assert (ours[0], config.trainer.max_epochs, config.data.init_args.data_dir) == ("train", 3, "data")


def test_image_train_without_gpu_or_key(checkout: Path) -> None:
    words = make(checkout, "image-train", "GPUS=none").stdout.split("\t")
    assert not {"--gpus", "--env-file", "--env"} & set(words)
    assert (checkout / "runs").is_dir()
