"""The recorded numbers: 20 seeded steps and a test of each config and each objective.

Each case is a `vae-lightning train` that runs in this process. A change that should alter no number leaves
`recorded/steps.json` unchanged. A change that alters numbers on purpose writes the file anew (`python -m
tests.test_recorded`), and its commit message gives the reason. The images are random bytes, so the record depends on no
data set and on no drawing. Flags make large networks small.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.fingerprint import fingerprint, hex_of, one_thread, same
from tests.helpers import REPOSITORY, only, read_csv, write_binarized_mnist, write_mnist
from vae_lightning import objectives
from vae_lightning.__main__ import main

RECORD = Path(__file__).parent / "recorded" / "steps.json"
STEPS, TESTED = 20, 20

SETTINGS = [
    *("--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true"),
    *(f"--trainer.max_steps={STEPS}", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"),
    *("--trainer.num_sanity_val_steps=0", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=2"),
    *("--data.batch_size=10", f"--data.eval_batch_size={TESTED // 2}", "--nll.num_samples=8", "--nll.chunk_size=4"),
    *("--evaluation.metrics=[]", "--pictures.every_n_epochs=1000", "--seed_everything=0"),
    "--speed.steps_per_call=1",  # several steps per call give the same weights, and log one of their losses
]
DIGITS = ["--model.latent_size=4", "--model.encoder.hidden_sizes=[16]", "--model.decoder.hidden_sizes=[16]"]
CONV = [
    *("--model.encoder.channels=[4,4,8,8]", "--model.encoder.hidden_size=32", "--model.latent_size=16"),
    *("--model.decoder.channels=[4,4,8,8]", "--model.decoder.hidden_size=32"),
]
SMALL = {  # flags that make a config's network small
    "vae/celeba": CONV,
    "vae/faces": CONV,
    "vae/images": CONV,
    "vae/sprites": CONV,
    "vae/mnist_resnet": [
        *("--model.encoder.channels=[4,8]", "--model.encoder.num_blocks=1", "--model.encoder.hidden_size=32"),
        *("--model.decoder.channels=[4,8]", "--model.decoder.num_blocks=1", "--model.decoder.hidden_size=32"),
    ],
    "monet/scenes64": [
        *("--model.attention.channels=[4,4,8,8,8]", "--model.attention.hidden_size=32", "--model.latent_size=4"),
        *("--model.encoder.channels=[4,4,8,8]", "--model.encoder.hidden_size=32", "--model.decoder.channels=[8,4]"),
    ],
    "vae/mnist_vamp": ["--model.prior.num_components=20"],
    "hvae/mnist": [
        *("--model.inference.encoder.channels=[4,8]", "--model.inference.encoder.num_blocks=1"),
        *("--model.inference.encoder.hidden_size=32", "--model.inference.feature_size=32"),
        *("--model.inference.upward.hidden_size=32", "--model.transition.hidden_size=32"),
        *("--model.decoder.channels=[4,8]", "--model.decoder.num_blocks=1", "--model.decoder.hidden_size=32"),
    ],
}
FEW: dict[str, dict[str, Any]] = {  # arguments that make a drawn data set small
    "Billiards": {"num_sequences": [80, 4, 160], "sequence_length": 10},
    "GeneratedTranslation": {"num_unlabelled": 300, "num_test": 160},
    "Mazes": {"num_mazes": [20, 4, 4], "num_transitions": [40, 10, 10]},
    "ProceduralScenes": {"num_images": [100, 20, 160]},
    "ToyQueries": {"num_unlabelled": 300, "num_test": 160},
}
CONFIGS = {
    str(path.relative_to(REPOSITORY / "configs").with_suffix("")): path
    for path in sorted((REPOSITORY / "configs").rglob("*.yaml"))
    if path.name not in ("defaults.yaml", "cartpole.yaml", "geoquery.yaml")  # the last two need files of the user's
}
OBJECTIVES: dict[str, list[str]] = {  # the arguments of each objective and of some variants
    "ELBO": [],
    "ELBO num_samples": ["beta=0.5", "num_samples=3"],
    "ELBO LinearWarmup": ["beta=LinearWarmup", "beta.num_steps=10"],
    "ELBO Cyclic": ["beta=Cyclic", "beta.period=8"],
    "STL": ["num_samples=2"],
    "IWAE": [],
    "DReG": [],
    "MIWAE": ["num_bounds=2", "samples_per_bound=3"],
    "PIWAE": ["num_bounds=2", "samples_per_bound=3"],
    "CIWAE": [],
    "FreeBits": ["floor=2.0"],  # above the KL
    "FreeBits per_dimension": ["per_dimension=true", "floor=0.3"],
    "Capacity": [],
    "GECO": ["goal=100"],
    "BetaTC": ["dataset_size=1000"],
    "InfoVAE": [],
    "InfoVAE RBF": ["kernel=RBF", "kl_weight=0.5"],
}
CASES = [*CONFIGS, *(f"objective {name}" for name in OBJECTIVES)]


def write_images(folder: Path) -> None:
    """Write random bytes in the layouts of the data sets: MNIST, static MNIST, and folders of 64 x 64 images."""
    write_mnist(folder / "MNIST" / "raw", train=110, test=160)
    write_binarized_mnist(folder / "binarized_mnist", count=160)
    random = np.random.default_rng(2)
    for split, count in (("train", 100), ("val", 20), ("test", 160)):
        for channels in (1, 3):
            place = folder / f"images-{channels}" / split
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (64, 64, channels), dtype=np.uint8).squeeze()
                Image.fromarray(pixels).save(place / f"{number:03d}.png")


def _with_random_images(config: dict[str, Any], images: Path) -> dict[str, Any]:
    """Return the config with its data set read from `images`; an image folder replaces the sets of 64 x 64 pixels.

    The sets of `FEW` stay, with few examples.
    """
    data = config["data"]
    name, given = data["class_path"].rpartition(".")[2], dict(data["init_args"])
    if name in ("MNIST", "BinarizedMNIST"):
        given |= {"data_dir": str(images), "verify": False} | ({"num_val": 10} if name == "MNIST" else {})
    elif name in FEW:
        given |= FEW[name]
    elif name != "Digits":
        kept = {key: given[key] for key in ("binarisation", "flip", "batch_size", "eval_batch_size") if key in given}
        channels = 1 if name in ("ProceduralSprites", "MultiDigits") else 3
        size = given.get("canvas_size", 24) if name == "MultiDigits" else 64
        place = {"data_dir": str(images / f"images-{channels}"), "cache_dir": str(images / "cache")}
        given = {**kept, **place, "height": size, "width": size, "channels": channels}
        data = {**data, "class_path": "vae_lightning.data.ImageFolder"}
    return {**config, "data": {**data, "init_args": given}}


def _arguments(case: str) -> tuple[Path, list[str]]:
    """Return the config of a case, and its flags."""
    if case in CONFIGS:
        return CONFIGS[case], SMALL.get(case, [])
    name = case.removeprefix("objective ")
    flags = [f"--model.objective.{argument}" for argument in OBJECTIVES[name]]
    return CONFIGS["vae/digits"], [*DIGITS, f"--model.objective={name.partition(' ')[0]}", *flags]


def run_case(case: str, images: Path, runs: Path) -> dict[str, Any]:
    """Train and test like a user; return loss and ELBO of each step, and ELBO and NLL of the test."""
    path, flags = _arguments(case)
    config = runs / "config.yaml"
    config.write_text(yaml.safe_dump(_with_random_images(yaml.safe_load(path.read_text()), images)))
    said = io.StringIO()
    with one_thread(), contextlib.redirect_stdout(said):
        code = main(["train", "-c", str(config), *SETTINGS, *flags, f"--runs_dir={runs}", "--run_id=one"])
    assert code == 0, said.getvalue()
    folder = only(runs, "config/one")
    rows = [row for row in read_csv(folder / "metrics.csv") if "train/loss" in row]
    results = json.loads((folder / "results.json").read_text())
    assert [int(row["step"]) for row in rows] == list(range(STEPS))
    assert results["data"]["num_images"] == TESTED
    steps = {name: [hex_of(row[f"train/{name}"]) for row in rows] for name in ("loss", "elbo")}
    return steps | {"test": {name: hex_of(results["metrics"][f"test/{name}"]) for name in ("elbo", "nll")}}


def record(path: Path = RECORD) -> None:
    """Write the file anew, one line per case."""
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder) / "images")
        lines = [f'"fingerprint": {json.dumps(fingerprint())}']
        for number, case in enumerate(CASES):
            runs = Path(folder) / str(number)
            runs.mkdir()
            lines.append(f"{json.dumps(case)}: {json.dumps(run_case(case, Path(folder) / 'images', runs))}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text())
    return found


def test_the_record_has_every_config_and_every_objective(recorded: dict[str, Any]) -> None:
    assert set(recorded) == {"fingerprint", *CASES}
    classes = [value for value in vars(objectives).values() if isinstance(value, type)]
    concrete = {cls.__name__ for cls in classes if issubclass(cls, objectives.Objective)} - {"Objective"}
    assert {name.partition(" ")[0] for name in OBJECTIVES} == concrete


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_the_recorded_ones(tmp_path: Path, images: Path, recorded: dict[str, Any], case: str) -> None:
    """Equal to the last bit with the record's torch on the record's processor, elsewhere to 1e-4."""
    same(run_case(case, images, tmp_path), recorded[case], recorded["fingerprint"])


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    record(*map(Path, sys.argv[1:]))
