"""Every shipped config is built and run for a step, and says its command, its result and its cost."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.helpers import REPOSITORY, only, read_csv, write_binarized_mnist, write_mnist
from vae_lightning.__main__ import main
from vae_lightning.cli import CLI
from vae_lightning.drawing import draw_faces, write_celeba_layout
from vae_lightning.models import LatentVariableModel

CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.y*ml") if path.name != "defaults.yaml")
NAMES = [str(path.relative_to(REPOSITORY)) for path in CONFIGS]

WRITERS: dict[str, Callable[[Path], Any]] = {  # files for a data set that is not embedded, by the name of its class
    "MNIST": lambda folder: write_mnist(folder / "MNIST" / "raw"),
    "BinarizedMNIST": lambda folder: write_binarized_mnist(folder / "binarized_mnist"),
    "CelebA": lambda folder: write_celeba_layout(folder, 20),
    "ImageFolder": lambda folder: write_celeba_layout(folder, 20),
}
SETTINGS = {  # what else a test says of a data set
    "MNIST": ["--data.verify=false", "--data.num_val=10"],
    "BinarizedMNIST": ["--data.verify=false"],
    "CelebA": ["--data.verify=false"],
    "ProceduralFaces": ["--data.num_images=40"],
    "ProceduralSprites": ["--data.num_images=40"],
}


def test_the_configs_are_found() -> None:
    assert "configs/vae/digits.yaml" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_runs_one_step_of_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(REPOSITORY)
    data_class = yaml.safe_load((REPOSITORY / name).read_text())["data"]["class_path"].rpartition(".")[2]
    args = [
        "fit",
        "-c",
        name,
        "--trainer.logger=false",
        "--trainer.fast_dev_run=true",
        f"--runs_dir={tmp_path / 'runs'}",
    ]
    if data_class in WRITERS:
        WRITERS[data_class](tmp_path / "data")
    if data_class != "Digits":
        args += [f"--data.data_dir={tmp_path / 'data'}", *SETTINGS.get(data_class, [])]
    if data_class == "ImageFolder":
        args.append(f"--data.cache_dir={tmp_path / 'cache'}")
    cli = CLI([*args, "--trainer.accelerator=cpu"])
    model, metrics = cli.model, cli.trainer.callback_metrics
    assert cli.trainer.global_step == 1
    assert metrics["val/elbo"].isfinite()
    assert metrics["val/kl"] > 0
    assert isinstance(model, LatentVariableModel)
    images = model.eval().sample(3)
    assert images.shape == (3, *cli.datamodule.image_shape)
    assert images.isfinite().all()
    assert images.std() > 0
    assert torch.isfinite(torch.stack([p.sum() for p in model.parameters()])).all()
    assert name.removeprefix("configs/").removesuffix(".yaml") in capsys.readouterr().out  # the experiment's name


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_its_experiments_page(name: str) -> None:
    """The comment at its head gives the command, and the measured result and cost as numbers."""
    lines = (REPOSITORY / name).read_text().splitlines()
    header = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    text = "\n".join(header)
    assert re.search(rf"(vae-lightning train -c |make train CONFIG=){re.escape(name)}\b", text), text
    for word in ("result", "cost"):
        assert re.search(rf"(?i)\b{word}[\s\S]*\d", text), f"no {word}, with a number, in its header"


def test_few_images_of_ones_own_neither_blow_up_nor_go_unsaid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adam's first steps overshot: without a warm-up the third epoch's val/elbo was -424,085, after -22,831."""
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "photos").mkdir()
    for number, face in enumerate(draw_faces(torch.arange(160))[0].permute(0, 2, 3, 1).numpy()):
        Image.fromarray(face.copy()).save(tmp_path / "photos" / f"{number:03d}.png")
    places = (f"--data.data_dir={tmp_path / 'photos'}", f"--data.cache_dir={tmp_path}", f"--runs_dir={tmp_path}")
    short = ("--trainer.max_epochs=3", "--trainer.log_every_n_steps=1", "--trainer.logger=false", "--seed_everything=3")
    assert main(["fit", "-c", "configs/vae/images.yaml", "--trainer.accelerator=cpu", *short, *places]) == 0
    assert "128 training images for 5.5 M weights" in capsys.readouterr().out
    rows = read_csv(only(tmp_path, "vae/images/*/metrics.csv"))
    elbos = [float(row["val/elbo"]) for row in rows if "val/elbo" in row]
    assert elbos == sorted(elbos)
    assert len(elbos) == 3
