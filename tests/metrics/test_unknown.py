"""Unknown numbers are reported as unknown: the error of fewer than two images, and of an information at its limit."""

from __future__ import annotations

import csv
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from tests.helpers import DIGITS, REPOSITORY, only
from tests.metrics.test_collapse import silent_trainer
from tests.metrics.test_evaluation import found, normal, trace_of
from vae_lightning.__main__ import main
from vae_lightning.callbacks.run import _with_nulls
from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial, StandardNormal
from vae_lightning.metrics import Evaluation, Information, LatentUnits, MeanAndError, RateDistortion
from vae_lightning.metrics.disentanglement import factor_vae_score, mutual_information_gap, standard_error
from vae_lightning.metrics.estimate import mean_and_error
from vae_lightning.metrics.formatting import with_error
from vae_lightning.models import VAE
from vae_lightning.verbs.fit_prior import Encoded, report

ONE_IMAGE = ("--trainer.limit_test_batches=1", "--data.eval_batch_size=1")
SHORT = ("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.check_val_every_n_epoch=1")
QUIET = ("--trainer.logger=false", "--trainer.accelerator=cpu", "--nll.num_samples=2")


def strict_json(path: Path) -> dict[str, Any]:
    """Read strict JSON, which has neither NaN nor Infinity."""
    return dict(json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{path}: {name}")))


@pytest.mark.filterwarnings("ignore")  # the command line shows no warnings either
def test_a_test_of_one_image_has_no_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The errors are `+- ?` on the screen, null in results.json, empty cells in metrics.csv; the means are numbers."""
    monkeypatch.chdir(REPOSITORY)
    assert main(["train", "-c", DIGITS, *SHORT, *QUIET, *ONE_IMAGE, f"--runs_dir={tmp_path}"]) == 0
    run = only(tmp_path, "vae/digits/*")
    results = strict_json(run / "results.json")
    metrics = results["metrics"]
    errors = {name for name in metrics if name.endswith("_stderr")}
    known = ("nll", "nll_bpd", "nll_ess", "elbo", "loss", "log_likelihood", "kl", "kl/z", "rate", "distortion", "psnr")
    assert errors >= {f"test/{name}_stderr" for name in known}
    assert {name for name, value in metrics.items() if value is None} == {*errors, "test/active_units/z"}
    assert results["details"]["kl_per_dimension_stderr/z"] == results["details"]["variance_of_means/z"] == [None] * 8
    assert all(math.isfinite(value) for value in results["details"]["kl_per_dimension/z"])
    assert results["data"]["num_images"] == 1
    assert results["collapse"] == []
    shown = capsys.readouterr().out
    assert f"nll {metrics['test/nll']:.2f} +- ? nats/image" in shown
    with (run / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("test/nll")]
    assert len(rows) == 1
    assert float(rows[0]["test/nll"]) == pytest.approx(metrics["test/nll"])
    assert not any(value for name, value in rows[0].items() if name.endswith("_stderr"))


def test_numbers_that_are_not_finite_are_null() -> None:
    """They become null at every depth; all other values are unchanged."""
    value = {"a": math.inf, "b": [math.nan, -math.inf, 1.5, 3], "c": {"d": (math.nan, "NaN", None, True)}}
    expected = {"a": None, "b": [None, None, 1.5, 3], "c": {"d": [None, "NaN", None, True]}}
    assert _with_nulls(value) == expected
    json.dumps(_with_nulls(value), allow_nan=False)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_fewer_than_two_examples_have_no_error(count: int, shape: tuple[int, ...]) -> None:
    metric = MeanAndError(shape)
    metric.update(torch.full((count, *shape), 2.5))
    mean, error = metric.compute()
    assert error.shape == shape
    assert error.isnan().all()
    assert mean.isnan().all() if count == 0 else (mean == 2.5).all()
    metric.update(torch.full((2, *shape), 2.5))
    assert (metric.compute()[1] == 0).all()  # the error of three equal values is known


def test_of_one_value_there_is_no_error() -> None:
    assert mean_and_error(torch.tensor([3.0])).mean == 3
    assert math.isnan(mean_and_error(torch.tensor([3.0])).error)
    assert mean_and_error(torch.tensor([3.0, 5.0])) == (4, pytest.approx(1))


def test_it_is_shown_as_a_question() -> None:
    assert with_error(89.731, 0.208) == "89.73 +- 0.21"
    assert with_error(89.731, math.nan, 1) == "89.7 +- ?"
    assert with_error(-1e-9, 0.0) == "0.00 +- 0.00"


def test_the_units_of_one_image_are_not_known() -> None:
    """The error of the rate is unknown too; the KL of each dimension is known."""
    trace = trace_of(normal(torch.tensor([[1.0, 0.0]])))
    numbers = {**found(LatentUnits(), trace), **found(RateDistortion(), trace)}
    assert math.isnan(numbers["active_units/z"])
    assert np.isnan(numbers["variance_of_means/z"]).all()
    assert np.isnan(numbers["kl_per_dimension_stderr/z"]).all()
    assert math.isnan(numbers["rate_stderr"])
    assert numbers["kl_per_dimension/z"] == pytest.approx([0.5, 0])


def test_a_fitted_prior_is_worth_something_of_unknown_error() -> None:
    """The report of `fit-prior` with one held-out image."""
    encoded = Encoded(torch.zeros(1, 1, 2), torch.full((1, 1), -7.0))
    said = report(VAE((1, 8, 8), latent_size=2), StandardNormal((2,)), encoded)
    assert "ELBO        -7.00 +- ? -> -7.00 +- ? nats/image with the fitted prior, a gain of 0.00 +- ?" in said


def test_scores_of_too_few_images_are_not_known() -> None:
    """If no two images share a value, no group has a variance. Of three images, one half has a single image."""
    codes, factors = np.random.default_rng(0).normal(size=(6, 2)), np.stack([np.arange(6)] * 2, 1)
    assert math.isnan(factor_vae_score(codes, factors))
    assert np.isnan(standard_error(mutual_information_gap, codes[:3], factors[:3]))
    assert np.isfinite(standard_error(mutual_information_gap, codes[:4], factors[:4] % 2))


# -- near log N -------------------------------------------------------------------------------------------------------


def apart(distance: float, num_images: int = 200) -> dict[str, Any]:
    """The information of codes of width 1 on a line, `distance` apart."""
    torch.manual_seed(0)
    return found(Information(), trace_of(normal(distance * torch.arange(num_images, dtype=torch.float64)[:, None])))


@pytest.mark.parametrize(("distance", "is_known"), [(1.0, True), (3.8, True), (5.5, False), (100.0, False)])
def test_information_within_a_twentieth_of_its_ceiling_has_no_error(distance: float, is_known: bool) -> None:
    numbers = apart(distance)
    below = math.log(200) - numbers["mutual_information/z"]
    assert (below >= 0.05) == is_known
    assert math.isfinite(numbers["mutual_information/z_stderr"]) == is_known
    assert math.isfinite(numbers["aggregate_gap/z_stderr"])
    assert "log 200 = 5.298 nats" in numbers["information_limit"]
    assert "has no standard error within 0.05 of it" in numbers["information_limit"]


class Sharp(VAE):
    """q(z|x) = N(100 x, 1) of the first pixels that vary, which identify the image."""

    def encode(self, x: Tensor) -> Independent:
        return Independent(Normal(100 * x[:, 0, 2:5].flatten(1), 1.0), 1)


@pytest.mark.filterwarnings("ignore")  # Lightning's, of loaders without workers
def test_a_test_at_the_ceiling_logs_no_error() -> None:
    """The callback's metrics hold NaN, which results.json makes null; the loggers do not get the error."""
    evaluation = Evaluation([Information()])
    trainer = silent_trainer(evaluation)
    trainer.test(Sharp((1, 8, 8), 24, likelihood=partial(Binomial, num_steps=16)), datamodule=Digits(), verbose=False)
    metrics = trainer.callback_metrics
    assert metrics["test/mutual_information/z"].item() == pytest.approx(math.log(355), abs=0.05)
    assert metrics["test/mutual_information/z_stderr"].isnan()
    assert metrics["test/aggregate_gap/z_stderr"] > 0
    assert "test/mutual_information/z_stderr" not in trainer.logged_metrics
    assert "test/aggregate_gap/z_stderr" in trainer.logged_metrics
