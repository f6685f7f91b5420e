"""Numbers that are not finite: a weight is refused by name, a validation is never the best, messages stay short."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from tests.callbacks.test_checkpoint import fit, step_of
from tests.helpers import DIGITS, EPOCHS, REPOSITORY, TrainedRun, only, trained_run
from vae_lightning.__main__ import main
from vae_lightning.callbacks import BestAndLast
from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial, Family
from vae_lightning.metrics.formatting import number, with_error
from vae_lightning.models import VAE
from vae_lightning.runs.checkpoint_io import WholeFiles
from vae_lightning.types import UserError

WEIGHT = "encoder.layers.1.weight"


@pytest.fixture(autouse=True)
def _as_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in the repository, without torch's checks of arguments, which are off outside tests."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(Family, "validate_args", False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return trained_run(tmp_path_factory.getbasetemp() / "trained")


def spoil(path: Path, value: float, part: str = "state_dict") -> None:
    """Put `value` into one weight of a checkpoint, or of a fitted prior."""
    contents = torch.load(path, weights_only=True)
    contents[part] = {name: weight.clone() for name, weight in contents["state_dict"].items()}
    weight = contents[part].get(WEIGHT, next(iter(contents[part].values())))
    weight.flatten()[0] = value
    WholeFiles().save_checkpoint(contents, path)


VERBS = {
    "sample": ["sample", "RUN"],
    "reconstruct": ["reconstruct", "RUN"],
    "impute": ["impute", "RUN"],
    "fit-prior": ["fit-prior", "RUN"],
    **{verb: [verb, "-c", DIGITS, "--ckpt_path=RUN"] for verb in ("validate", "test", "predict")},
    "fit": ["fit", "-c", DIGITS, *EPOCHS, "--trainer.max_epochs=3", "--trainer.logger=false", "--ckpt_path=RUN"],
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_weight_that_is_not_finite_is_refused_by_name(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    folder = trained.copy_to(tmp_path)
    for name, value in (("best", math.nan), ("last", -math.inf)):
        spoil(folder / "checkpoints" / f"{name}.ckpt", value)
    before = sorted(path for path in folder.rglob("*") if path.is_file())
    assert main([argument.replace("RUN", str(folder)) for argument in VERBS[verb]]) == 2
    errors = capsys.readouterr().err
    path = folder / "checkpoints" / ("last.ckpt" if verb == "fit" else "best.ckpt")
    assert f"vae-lightning: error: {path}: {WEIGHT} is not finite (1 of its " in errors
    assert errors.count("\n") == 1
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == before


def test_a_fit_does_not_go_on_from_averages_that_are_not_finite(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained.copy_to(tmp_path)
    spoil(folder / "checkpoints" / "last.ckpt", math.nan, "current_model_state")
    assert main([argument.replace("RUN", str(folder)) for argument in VERBS["fit"]]) == 2
    assert f"last.ckpt: {WEIGHT} is not finite" in capsys.readouterr().err


def test_a_fitted_prior_that_is_not_finite_draws_nothing(
    trained: TrainedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained.copy_to(tmp_path)
    assert main(["fit-prior", str(folder), "--prior=MixtureOfNormals", "--prior.num_components=2"]) == 0
    assert main(["sample", str(folder), "--prior=fitted"]) == 0
    spoil(folder / "checkpoints" / "best.prior.pt", math.nan)
    capsys.readouterr()
    assert main(["sample", str(folder), "--prior=fitted"]) == 2
    assert "best.prior.pt: " in (errors := capsys.readouterr().err)
    assert "is not finite" in errors


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, r"VAE: encoder\.layers\.1\.weight is not finite \(1 of its \d+ values"),
        (3e38, r"latent z: a sample of its posterior DiagonalNormal is not finite, with weights that are"),
    ],
)
def test_a_test_says_which_weight_it_is(tmp_path: Path, value: float, message: str) -> None:
    likelihood = partial(Binomial, num_steps=16)
    model = VAE((1, 8, 8), 4, likelihood=likelihood)
    weight = model.get_parameter(WEIGHT).data
    if math.isnan(value):
        weight[0, 0] = value
    else:
        weight.fill_(value)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(default_root_dir=tmp_path, accelerator="cpu", **quiet)
    with pytest.raises(UserError, match=message):
        trainer.test(model, datamodule=Digits(), verbose=False)


@pytest.mark.parametrize("bad", [-math.inf, math.inf, math.nan])
def test_a_validation_that_is_not_finite_is_never_the_best(tmp_path: Path, bad: float) -> None:
    trainer = fit(tmp_path / "some", [bad, -5.0, bad, -9.0])
    kept = trainer.checkpoint_callback
    assert isinstance(kept, BestAndLast)
    assert kept.best_model_score == -5.0
    assert step_of(tmp_path / "some" / "checkpoints" / "best.ckpt") == 2
    assert step_of(tmp_path / "some" / "checkpoints" / "last.ckpt") == 4
    none = fit(tmp_path / "none", [bad, bad])
    assert none.checkpoint_callback.best_model_path == ""  # type: ignore[union-attr]
    assert [path.name for path in (tmp_path / "none" / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_run_that_diverged_says_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--trainer.max_epochs=1", "--trainer.logger=false", f"--runs_dir={tmp_path}")
    assert main(["fit", "-c", DIGITS, *EPOCHS, *quick, "--model.optimizer.lr=1e10"]) == 0
    folder, out = only(tmp_path, "vae/digits/*"), capsys.readouterr().out
    assert {path.name for path in (folder / "checkpoints").iterdir()} <= {"last.ckpt", "previous.ckpt"}
    assert "validation  val/elbo was never finite: there is no best.ckpt; last.ckpt has step 20\n" in out
    assert f"sample {folder / 'checkpoints' / 'last.ckpt'}" in out
    assert "at best" not in out


def test_a_run_of_huge_numbers_prints_them_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The value is finite but useless; the message shows four digits, not 16."""
    quick = ("--trainer.max_epochs=1", "--trainer.logger=false", f"--runs_dir={tmp_path}")
    assert main(["train", "-c", DIGITS, *EPOCHS, *quick, "--model.optimizer.lr=100"]) == 0
    out = capsys.readouterr().out
    numbers = [word.strip(",") for word in out.split() if word.strip(",-").replace(".", "").isdigit()]
    assert max(map(len, numbers)) <= 10, numbers
    shown = out[out.index("validation") :].split()[2]
    assert float(shown) < -1e6
    assert "e+" in shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (-129.924, "-129.92"),
        (999_999.994, "999999.99"),
        (1e6, "1e+06"),
        (786284295267262652428369002496.0, "7.863e+29"),
        (-1.5e6, "-1.5e+06"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_as_text(value: float, shown: str) -> None:
    assert number(torch.tensor(value, dtype=torch.float64)) == shown


def test_errors_as_text() -> None:
    assert with_error(-86.571, 0.2149) == "-86.57 +- 0.21"
    assert with_error(0.02061, 0.00049, 4) == "0.0206 +- 0.0005"
    assert with_error(233.83, None) == with_error(233.83, math.nan) == "233.83 +- ?"
    assert with_error(3e20, 4e18) == "3e+20 +- 4e+18"
