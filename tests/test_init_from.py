"""`--init_from`: a new fit starts from another run's weights where they fit, and says where they do not."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from tests.helpers import DIGITS, REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.models import VAE
from vae_lightning.models.starting import start_from
from vae_lightning.networks import MLP
from vae_lightning.objectives import GECO
from vae_lightning.types import UserError

FIT = ("fit", "-c", DIGITS, "--trainer.logger=false", "--trainer.limit_train_batches=2", "--trainer.max_epochs=1")
FIT += ("--trainer.check_val_every_n_epoch=1", "--trainer.limit_val_batches=1", "--trainer.log_every_n_steps=1")


def vae(seed: int, latent_size: int = 2, image_shape: tuple[int, int, int] = (1, 4, 4)) -> VAE:
    torch.manual_seed(seed)
    network = partial(MLP, hidden_sizes=(5,))
    return VAE(image_shape, latent_size, encoder=network, decoder=network, objective=partial(GECO, goal=1.0))


def weights(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return found


def test_what_fits_is_loaded_and_what_does_not_is_listed() -> None:
    source, model = vae(0), vae(1, latent_size=3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    started = start_from(model, {"state_dict": source.state_dict()}, "a.ckpt")
    assert started.misfits == [
        "decoder.layers.1.weight: [5, 2] there, [5, 3] here",
        "encoder.layers.3.bias: [4] there, [6] here",
        "encoder.layers.3.weight: [4, 5] there, [6, 5] here",
    ]
    misfits = {line.partition(":")[0] for line in started.misfits}
    numbers = {name: value.numel() for name, value in before.items() if not name.startswith("objective.")}
    assert numbers.keys() == {*started.loaded, *misfits}
    for name, value in model.state_dict().items():
        assert torch.equal(value, (source.state_dict() if name in started.loaded else before)[name]), name
    assert started.share == pytest.approx(1 - sum(numbers[name] for name in misfits) / sum(numbers.values()))


def test_a_tensor_that_only_the_source_has_is_listed() -> None:
    source = {**vae(0).state_dict(), "prior.means": torch.zeros(3, 2)}
    assert start_from(vae(1), {"state_dict": source}, "").misfits == ["prior.means: [3, 2] there, absent here"]


def test_the_objective_begins_anew() -> None:
    """A multiplier belongs to the fit that found it: a new fit under it would start with another loss."""
    source, model = vae(0), vae(1)
    source.objective.multiplier.fill_(7.0)
    assert start_from(model, {"state_dict": source.state_dict()}, "").misfits == []
    assert model.objective.multiplier.item() == 1.0


def test_a_model_that_nothing_fits_is_an_error() -> None:
    source = {f"other.{name}": value for name, value in vae(0).state_dict().items()}
    with pytest.raises(UserError, match=r"a.ckpt: no tensor fits the model of the config; decoder"):
        start_from(vae(1), {"state_dict": source}, "a.ckpt")


def test_a_run_starts_from_another_and_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a learning rate of 0 the weights after the fit are those of its start. The path is recorded."""
    monkeypatch.chdir(REPOSITORY)
    fit = (*FIT, f"--runs_dir={tmp_path}")
    assert main([*fit, "--run_id=a"]) == 0
    source = tmp_path / "vae/digits/a"
    changed = ("--run_id=b", "--model.optimizer.lr=0", "--model.posterior=FullNormal", "--seed_everything=1")
    assert main([*fit, *changed, f"--init_from={source}"]) == 0
    said = capsys.readouterr().out
    # 8 means and scales of a diagonal posterior; 8 means and 36 numbers of a Cholesky factor
    assert "  not loaded  encoder.layers.5.bias: [16] there, [44] here\n" in said
    first, second = (weights(tmp_path / f"vae/digits/{name}/checkpoints/best.ckpt") for name in "ab")
    same = {name for name in first if torch.equal(first[name], second[name])}
    assert first.keys() - same == {"encoder.layers.5.bias", "encoder.layers.5.weight"}
    config = tmp_path / "vae/digits/b/config.yaml"
    assert yaml.safe_load(config.read_text())["init_from"] == str(source)
    shutil.rmtree(source)
    assert main([*fit, *changed, "--trainer.max_epochs=2"]) == 0
    said = capsys.readouterr().out
    assert "init_from" not in said
    assert yaml.safe_load(config.read_text())["init_from"] == str(source)
    test = ("test", "-c", str(config), "--ckpt_path", str(config.parent), "--nll.num_samples=2")
    assert main([*test, "--trainer.limit_test_batches=1"]) == 0
    assert json.loads((config.parent / "results.json").read_text())["init_from"] == str(source)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("{}/nowhere", "no such checkpoint"),
        ("{}", "no checkpoint in"),
        ("s3://bucket/last.ckpt", "an address, expected a file on this machine"),
    ],
)
def test_a_wrong_path_is_one_line_and_leaves_nothing(
    path: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    assert main([*FIT, f"--runs_dir={tmp_path}/runs", f"--init_from={path.format(tmp_path)}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list(tmp_path.rglob("*.*"))
