"""Every shipped config runs for a step, and its header has a command, a result and a cost."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from tests.helpers import REPOSITORY, only, read_csv, write_binarized_mnist, write_mnist
from vae_lightning.__main__ import main
from vae_lightning.cli.lightning import CLI
from vae_lightning.models import LatentVariableModel
from vae_lightning.storage.recordings import About, Recording, write_recording
from vae_lightning.synthetic import draw_faces, write_celeba_layout

CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.y*ml") if path.name != "defaults.yaml")
NAMES = [str(path.relative_to(REPOSITORY)) for path in CONFIGS]


def write_steps(folder: Path) -> None:
    """Write a recording of 40 episodes of four steps, whose states are vectors of four numbers."""
    random, count = np.random.default_rng(0), 40
    about = About("CartPole-v1", {}, "vector", (4,), 0, 2, 500, 0, "random")
    states = random.normal(size=(5 * count, 4)).astype(np.float32)
    actions, rewards = random.integers(2, size=4 * count), np.ones(4 * count, np.float32)
    write_recording(folder, Recording(about, states, np.full(count, 4), np.ones(count, bool), actions, rewards))


def write_questions(folder: Path) -> None:
    """Write a file with the form of GeoQuery's: 40 forms with a question each, 20 of them for training."""
    entries = [
        {
            "logic": [f"answer ( size ( var0 ) , {i % 7} )"],
            "query-split": split,
            "sentences": [{"text": f"how large is var0 of {i % 5}", "question-split": split, "variables": {}}],
        }
        for i, split in enumerate(["train"] * 20 + ["dev"] * 10 + ["test"] * 10)
    ]
    (folder / "geoquery").mkdir(parents=True)
    (folder / "geoquery" / "geography-logic.txt").write_text(json.dumps(entries))


WRITERS: dict[str, Callable[[Path], Any]] = {  # writers of files for data sets that need files, by class name
    "MNIST": lambda folder: write_mnist(folder / "MNIST" / "raw"),
    "BinarizedMNIST": lambda folder: write_binarized_mnist(folder / "binarized_mnist"),
    "CelebA": lambda folder: write_celeba_layout(folder, 20),
    "ImageFolder": lambda folder: write_celeba_layout(folder, 20),
    "MultiDigits of MNIST": lambda folder: write_mnist(folder / "MNIST" / "raw"),
    "Recorded": write_steps,
    "GeoQuery": write_questions,
}
SETTINGS = {  # further flags for a data set, by class name
    "MNIST": ["--data.verify=false", "--data.num_val=10"],
    "BinarizedMNIST": ["--data.verify=false"],
    "CelebA": ["--data.verify=false"],
    "ProceduralFaces": ["--data.num_images=40"],
    "ProceduralSprites": ["--data.num_images=40"],
    "MultiDigits of Digits": ["--data.num_images=[64,16,16]"],
    "ProceduralScenes": ["--data.num_images=[64,16,16]"],
    "Billiards": ["--data.num_sequences=[4,4,4]"],
    "GeoQuery": ["--data.num_pairs=10"],
    "Mazes": ["--data.num_mazes=[20,4,4]", "--data.num_transitions=[40,10,10]"],
    "MultiDigits of MNIST": [
        "--data.num_images=[64,16,16]",
        "--data.max_digits=1",  # of random pixels, which fill 28 x 28
        "--data.source.verify=false",
        "--data.source.num_val=10",
    ],
}


def data_name(data: dict[str, Any]) -> str:
    """Return the class of a config's data, and the class of the data set that they are made of, if there is one."""
    source = data.get("init_args", {}).get("source")
    return " of ".join(path.rpartition(".")[2] for path in (data["class_path"], source) if path)


def test_the_configs_are_found() -> None:
    assert "configs/vae/digits.yaml" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_config_runs_one_step_of_each_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(REPOSITORY)
    data_class = data_name(yaml.safe_load((REPOSITORY / name).read_text())["data"])
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
    sizes = zip(images.shape, (3, *cli.datamodule.x_shape), strict=True)
    assert all(wanted in (-1, size) for size, wanted in sizes)  # -1: clips may have any number of frames
    assert images.isfinite().all()
    assert images.float().std() > 0
    assert torch.isfinite(torch.stack([p.sum() for p in model.parameters()])).all()
    assert name.removeprefix("configs/").removesuffix(".yaml") in capsys.readouterr().out  # the experiment's name


HEADERS = {
    "result": "a likelihood's or a score's number, such as 85.9 +- 0.2 nats or MIG 0.077",
    "cost": "a time or a speed, such as 24 min or 2,000 images/s",
}
MEASURED = {
    "result": r"\d[\d.,]* (\+- [\d.,]+ )?nats|MIG \d",
    "cost": r"\d[\d.,]* (s|min|h|ms)\b|\d images/s",
}


def fault(word: str, said: str) -> str | None:
    """Return the fault of a header's result or cost; None if it has a number, or `not run:` with a reason in words."""
    if re.match(r"not run\b", said):
        reason = re.match(r"not run: (\w.*)", said, re.DOTALL)
        if reason is None or len(re.findall(r"[a-z]{2,}", reason[1])) < 4:
            return "not run, and no reason why: not run: it takes a GPU a day"
        return "not run, and a number that was measured" if re.search(MEASURED[word], said) else None
    if re.search(r"\bnot (run|measured)\b", said):
        return "half of it was not run: a result is of what was run, so say that it was cut short, and where"
    return None if re.search(MEASURED[word], said) else f"needs {HEADERS[word]}"


def header(text: str) -> str:
    """Return the comment at the head of a file without its comment signs."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)


def text_after(word: str, page: str) -> str | None:
    """Return the text after a word at the start of a line, with the indented lines below; None without the word."""
    found = re.search(rf"^{word} +(\S.*(?:\n +\S.*)*)", page, re.MULTILINE)
    return re.sub(r"\s+", " ", found[1]) if found else None


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_its_experiments_page(name: str) -> None:
    """The header has the command, and the result and cost as numbers, or `not run:` with a reason."""
    page = header((REPOSITORY / name).read_text())
    assert re.search(rf"(vae-lightning train -c |make train CONFIG=){re.escape(name)}\b", page), page
    for word in HEADERS:
        said = text_after(word, page)
        assert said is not None, f"no {word} in its header"
        assert fault(word, said) is None, f"{word}: {fault(word, said)}"


@pytest.mark.parametrize(
    ("word", "said", "wrong"),
    [
        ("result", "test -log p(x) 85.9 +- 0.2 nats (K = 200), ELBO -89.2", None),
        ("result", "after 30 steps alone: test -log p(x) 163.4 +- 4.3 nats", None),
        ("result", "MIG 0.077 +- 0.022", None),
        ("result", "not run: the files could not be fetched", None),
        ("result", "not run (K = 200 importance samples, dynamic binarisation drawn once)", "no reason"),
        ("result", "not run", "no reason"),
        ("result", "not run: K = 200", "no reason"),
        ("result", "not run to its end. After 30 steps: test -log p(x) 163.4 +- 4.3 nats", "no reason"),
        ("result", "not run: it takes a GPU a day; test -log p(x) 85.9 nats", "a number that was measured"),
        ("result", "85.9 nats with a diagonal posterior; the other was not run", "half of it"),
        ("result", "K = 200", "needs a likelihood's"),
        ("result", "good", "needs a likelihood's"),
        ("cost", "about 30 s on 2 CPU cores", None),
        ("cost", "12,000 images/s", None),
        ("cost", "not run (40 epochs of 128 images a step)", "no reason"),
        ("cost", "40 epochs", "needs a time"),
    ],
)
def test_a_header_says_numbers_or_why_there_are_none(word: str, said: str, wrong: str | None) -> None:
    found = fault(word, said)
    assert (found is None) == (wrong is None)
    assert wrong is None or wrong in str(found)


def test_few_images_of_ones_own_neither_blow_up_nor_go_unsaid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a warm-up, Adam's first steps overshot: val/elbo fell from -22,831 to -424,085 in the third epoch."""
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
