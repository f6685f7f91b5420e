"""A fit logs at least once per epoch, even if the epoch is short, and reports the speed of its steps."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor
from torch.utils.data import DataLoader, IterableDataset

from tests.helpers import DIGITS, EPOCHS, REPOSITORY, read_csv
from tests.test_several_steps import Memory
from vae_lightning.__main__ import main
from vae_lightning.callbacks import FastNetworks, FiniteSteps
from vae_lightning.data import Digits
from vae_lightning.distributions import ContinuousBernoulli
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.types import Batch


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def train(folder: Path, *flags: str) -> list[dict[str, str]]:
    """Return the training rows of metrics.csv; the run has 7 batches per epoch and a logging interval of 50 steps."""
    common = ("--data.batch_size=200", "--trainer.log_every_n_steps=50", "--trainer.logger=false", *EPOCHS)
    assert main(["fit", "-c", DIGITS, *common, f"--runs_dir={folder}", "--run_id=short", *flags]) == 0
    return [row for row in read_csv(folder / "vae/digits/short/metrics.csv") if "train/elbo" in row]


def steps(rows: Sequence[dict[str, str]]) -> list[int]:
    return [int(row["step"]) for row in rows]


CASES: dict[str, tuple[Sequence[str], list[int]]] = {
    "plain": ((), [6, 13, 20]),
    "several steps a call": (("--speed.steps_per_call=3",), [6, 13, 20]),
    "several, in whole calls": (("--speed.steps_per_call=3", "--trainer.limit_train_batches=3"), [2, 5, 8]),
    "accumulated": (("--trainer.accumulate_grad_batches=3",), [2, 5, 8]),
    "several, accumulated": (("--speed.steps_per_call=2", "--trainer.accumulate_grad_batches=3"), [2, 5, 8]),
    "one step an epoch": (("--trainer.limit_train_batches=1",), [0, 1, 2]),
    "ended within an epoch": (("--trainer.max_steps=10",), [6, 9]),
    "given": (("--trainer.log_every_n_steps=4",), [3, 7, 11, 15, 19]),
    "none": (("--trainer.log_every_n_steps=0",), []),
}


@pytest.mark.parametrize("case", CASES)
def test_every_epoch_has_a_row(tmp_path: Path, case: str) -> None:
    flags, expected = CASES[case]
    rows = train(tmp_path, "--trainer.max_epochs=3", *flags)
    assert steps(rows) == expected
    assert all("train/grad_norm" in row for row in rows)
    first = "train/images_per_second" in rows[0] if rows else False
    assert first == (case not in ("one step an epoch", "none"))  # a speed needs an earlier step
    assert all(float(row["train/images_per_second"]) > 0 for row in rows[1:])


def test_a_resumed_run_logs_at_the_steps_of_the_whole(tmp_path: Path) -> None:
    """Resumed within an epoch, and between two epochs."""
    whole = steps(train(tmp_path / "whole", "--trainer.max_epochs=8"))
    assert whole == [6, 13, 20, 27, 34, 41, 48, 55]
    for flag in ("--trainer.max_steps=17", "--trainer.max_epochs=7", "--trainer.max_epochs=8"):
        rows = train(tmp_path / "parts", flag)
    assert steps(rows) == [6, 13, 16, *whole[2:]]  # the first command ended with step 16
    assert all(float(row["train/images_per_second"]) > 0 for row in rows)


def test_the_last_line_has_the_last_speed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = train(tmp_path, "--trainer.max_epochs=2")
    out = capsys.readouterr().out
    shown = re.findall(r"epoch 2/2 .* ([\d,]+) images/s", out)
    assert shown == [f"{float(rows[-1]['train/images_per_second']):,.0f}"]


class Stream(IterableDataset):
    """Batches without a length: `lengths[e]` batches in epoch e."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths, self.epoch = lengths, 0

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.lengths[self.epoch % len(self.lengths)]):
            yield {"x": torch.full((4, 1, 8, 8), 0.5)}
        self.epoch += 1


def fit(loader: Any, *callbacks: pl.Callback, **settings: Any) -> tuple[Memory, pl.Trainer]:
    log = Memory()
    tiny = partial(MLP, hidden_sizes=(4,))
    model = VAE((1, 8, 8), 2, encoder=tiny, decoder=tiny, likelihood=ContinuousBernoulli)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(
        **{"logger": log, "max_epochs": 3, "limit_val_batches": 0, "enable_checkpointing": False, **quiet, **settings},
        callbacks=[FiniteSteps(), *callbacks],
    )
    trainer.fit(model, loader)
    return log, trainer


def logged(log: Memory, name: str = "train/elbo") -> list[int]:
    return sorted(step for step, key in log.rows if key == name)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a `validation_step` but")
def test_a_loader_without_a_length() -> None:
    log, trainer = fit(DataLoader(Stream([7]), batch_size=None))
    assert logged(log) == logged(log, "train/grad_norm") == [6, 13, 20]
    assert trainer.log_every_n_steps == 50  # type: ignore[attr-defined]  # the interval that was given
    pickle.dumps(copy.deepcopy(trainer.lightning_module))  # the model does not hold the trainer
    assert logged(fit(DataLoader(Stream([7]), batch_size=None), limit_train_batches=3)[0]) == [2, 5, 8]
    assert logged(fit(DataLoader(Stream([7]), batch_size=None), accumulate_grad_batches=2)[0]) == [3, 7, 11]
    changing = logged(fit(DataLoader(Stream([7, 5, 6]), batch_size=None))[0])
    assert all(any(first <= step < last for step in changing) for first, last in ((0, 7), (7, 12), (12, 18)))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a `validation_step` but")
def test_lightnings_own_callbacks_log_at_the_same_steps() -> None:
    batches = DataLoader([{"x": torch.full((4, 1, 8, 8), 0.5)}] * 7, batch_size=None)  # type: ignore[arg-type]
    log, _ = fit(batches, LearningRateMonitor("step"))
    assert logged(log, "lr-Adam") == logged(log) == [6, 13, 20]
    accumulated, _ = fit(batches, GradientAccumulationScheduler({0: 1, 1: 4}))
    assert logged(accumulated) == [6, 7, 9]  # the epochs have steps 0 to 6; 7 and 8; 9 and 10


def test_the_last_of_several_calls_may_be_short() -> None:
    """The loader counts its calls, and not the steps in them."""

    class Groups(list[list[Batch]]):
        pass

    batches = [{"x": torch.full((4, 1, 8, 8), 0.5)}] * 3
    data = Digits(batch_size=200)
    data.train_dataloader = lambda: Groups([batches, batches, batches[:1]])  # type: ignore[assignment, method-assign]
    assert logged(fit(data, FastNetworks(steps_per_call=3))[0]) == [6, 13, 20]
