"""Runs of an earlier version load, draw and resume; old module names still resolve.

Each folder of `tests/checkpoints` has the `config.yaml` and `last.ckpt` of a `vae-lightning fit` of one epoch, with
networks of a few weights: the four models on digits, and a VAE on drawn sprites and on drawn faces. The folders are
never written anew, because their age is their purpose. `numbers.json` holds numbers of the models of that time;
`python -m tests.test_old_checkpoints` writes it anew.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.fingerprint import fingerprint, hex_of, one_thread, same
from tests.helpers import only, read_csv, read_picture
from vae_lightning.__main__ import main
from vae_lightning.models import CVAE, DLGM, HVAE, VAE, LatentVariableModel

RUNS = Path(__file__).parent / "checkpoints"
NUMBERS = RUNS / "numbers.json"
MODELS = {"vae": VAE, "cvae": CVAE, "dlgm": DLGM, "hvae": HVAE, "sprites": VAE, "faces": VAE}
NAMES = pytest.mark.parametrize("name", MODELS)
OLD_NAMES = {  # modules of the earlier version and their public names
    "vae_lightning.drawing": (
        *("DRAWING_VERSION", "FACE_ATTRIBUTES", "NUM_SPRITES", "SPRITE_FACTORS", "draw_faces", "draw_sprites"),
        *("face_attributes", "sprite_factors", "write_celeba_layout"),
    ),
    "vae_lightning.data.loader": ("ImageLoader", "Images", "ahead", "evaluation_batch_size", "first_images"),
    "vae_lightning.data.cache": (
        *("BrokenImagesError", "Contents", "Header", "broken_chunks", "fill_from", "open_cache", "prepare_cache"),
        "read_header",
    ),
    "vae_lightning.data.transforms": ("Binarisation", "Transform"),
    "vae_lightning.data.base": ("SPLITS", "CachedImages", "ImageDataModule", "Source", "Split"),
    "vae_lightning.callbacks": (
        *("EMA", "BestAndLast", "ExactResume", "FastNetworks", "FiniteSteps", "Pictures", "ProgressLines", "RunFolder"),
        *("StartNotes", "SteadyBar"),
    ),
    "vae_lightning.callbacks.pictures": (*("Pictures", "reconstruction_grid", "sample_grid", "save_png"),),
    "vae_lightning.metrics": ("CollapseReport", "Evaluation", "MarginalLikelihood", "log_marginal_likelihood"),
    "vae_lightning.trace": ("Latent", "Trace"),
    "vae_lightning.types": ("Batch", "Shape", "UserError"),
    "vae_lightning.noise": ("derive_seed", "reseed"),
}


def load(name: str) -> LatentVariableModel:
    return LatentVariableModel.load_from_checkpoint(RUNS / name / "checkpoints" / "last.ckpt").eval()


@torch.no_grad()
def numbers(name: str) -> dict[str, str]:
    """Return means over a batch of log p(x|z), of the log weight and of E[x|z]; and of E[x|z] at prior samples."""
    model, hparams = load(name), yaml.safe_load((RUNS / name / "config.yaml").read_text())
    channels, height, width = model.hparams["image_shape"]
    levels = 16 if hparams["data"]["class_path"].endswith("Digits") else 1
    count = 4 * channels * height * width
    x = (torch.arange(count).mul(7919).remainder(levels + 1) / levels).view(4, channels, height, width)
    with one_thread(), torch.random.fork_rng():
        torch.manual_seed(0)
        trace = model.trace({"x": x, "label": torch.arange(4)}, 3)
        found = {
            "log_likelihood": trace.log_likelihood(),
            "log_weight": trace.log_weight(),
            "mean": trace.p_x.mean,
            "sample": model.sample(4),
        }
    return {key: hex_of(value.double().mean().item()) for key, value in found.items()}


@pytest.fixture
def run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy a run into a folder of its own, and make this the present folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(RUNS / name, tmp_path / "runs" / "old" / name))


@NAMES
def test_a_checkpoint_loads_as_its_class_and_computes_the_same_numbers(name: str) -> None:
    recorded = json.loads(NUMBERS.read_text())
    assert type(load(name)) is MODELS[name]
    same(numbers(name), recorded[name], recorded["fingerprint"])


@NAMES
@pytest.mark.parametrize(("verb", "picture"), [("sample", "samples"), ("reconstruct", "reconstructions")])
def test_a_run_draws_pictures(run: Path, verb: str, picture: str) -> None:
    count = 2 if verb == "reconstruct" else 10
    assert main([verb, str(run), f"--num_images={count}"]) == 0
    assert read_picture(run / "images" / f"{picture}.png").float().std() > 0


@NAMES
def test_a_fit_goes_on_for_one_more_epoch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = run / "checkpoints" / "last.ckpt"
    before = torch.load(last, weights_only=True)
    config = ["-c", str(run / "config.yaml"), "--trainer.max_epochs=2"]
    assert main(["fit", *config, "--ckpt_path", str(run)]) == 0, capsys.readouterr().err
    after = torch.load(last, weights_only=True)
    assert (before["epoch"], after["epoch"]) == (1, 2)
    assert after["global_step"] == 2 * before["global_step"]
    said = capsys.readouterr().out
    assert f"goes on from last.ckpt, step {before['global_step']}" in said
    assert "not as the checkpoint's own run (there -> here): trainer.max_epochs: 1 -> 2\n" in said
    assert any("val/elbo" in row for row in read_csv(only(run, "metrics.csv")))


def class_paths(tree: Any) -> Iterator[str]:
    """Return the names at every `class_path` of a config."""
    if isinstance(tree, dict):
        yield from (value for key, value in tree.items() if key == "class_path")
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from class_paths(value)


def test_the_class_paths_of_before_resolve() -> None:
    configs = [yaml.safe_load(path.read_text()) for path in sorted(RUNS.glob("*/config.yaml"))]
    found = {name for name in class_paths(configs) if name.startswith("vae_lightning.")}
    assert {"vae_lightning.data.ProceduralFaces", "vae_lightning.callbacks.EMA"} <= found
    for module, _, name in (path.rpartition(".") for path in found):
        assert isinstance(getattr(importlib.import_module(module), name), type)


@pytest.mark.parametrize("module", OLD_NAMES)
def test_a_module_of_before_has_its_names(module: str) -> None:
    found = importlib.import_module(module)
    assert [name for name in OLD_NAMES[module] if not hasattr(found, name)] == []


def record() -> None:
    """Write `numbers.json` anew."""
    found: dict[str, Any] = {"fingerprint": fingerprint(), **{name: numbers(name) for name in MODELS}}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    NUMBERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    record()
