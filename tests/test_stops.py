"""A fit that is stopped or killed again and again ends with the weights of the one that never was, bit for bit."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from tests.helpers import read_csv
from vae_lightning import signals
from vae_lightning.callbacks import EMA, BestAndLast, ExactResume, FastNetworks, FiniteSteps
from vae_lightning.checkpoint_io import WholeFiles
from vae_lightning.data import Digits
from vae_lightning.distributions import ContinuousBernoulli
from vae_lightning.loggers import MetricsCSV
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.objectives import ELBO, LinearWarmup

EPOCHS, BATCHES = 4, 4

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*could not find the monitored key"),  # where nothing is validated
]
VARIANTS: dict[str, dict[str, Any]] = {
    "validated in each epoch": {},
    "in every second": {"check_val_every_n_epoch": 2},
    "never": {"limit_val_batches": 0},
    "twice in an epoch": {"val_check_interval": 2},
    "twice in every second": {"val_check_interval": 0.5, "check_val_every_n_epoch": 2},
    "thrice in two": {"val_check_interval": 3, "check_val_every_n_epoch": 2},
    "accumulating": {"accumulate_grad_batches": 2, "check_val_every_n_epoch": 2},
    "accumulating unevenly": {"accumulate_grad_batches": 3, "check_val_every_n_epoch": 2},
    "several steps a call": {"steps_per_call": 2, "check_val_every_n_epoch": 2},
    "several, accumulating": {"steps_per_call": 2, "accumulate_grad_batches": 4, "check_val_every_n_epoch": 2},
    "up to a step": {"max_steps": EPOCHS * BATCHES, "check_val_every_n_epoch": 2},
    "up to a step, validated in each": {"max_steps": EPOCHS * BATCHES},
    "by the number of batches": {"check_val_every_n_epoch": None, "val_check_interval": 6},
    "averaged": {"ema": True, "check_val_every_n_epoch": 2},
}


class Killed(Exception):  # noqa: N818
    """In the place of SIGKILL."""


class StopAfter(pl.Callback):
    """After so many batches a signal comes, or (`kill`) the process dies."""

    def __init__(self, batches: int, kill: bool) -> None:
        self.left, self.kill = batches, kill

    def on_train_batch_start(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0 and not self.kill:
            signals.request(signal.SIGTERM)
        elif self.left < 0 and self.kill:
            raise Killed


class Fit(NamedTuple):
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Tensor]
    rows: list[dict[str, str]]
    global_step: int


def fit(folder: Path, variant: dict[str, Any], last_every_minutes: float = 10.0, *callbacks: pl.Callback) -> Fit:
    """Begin, or go on from `last.ckpt` in the folder."""
    pl.seed_everything(0, verbose=False)
    tiny = partial(MLP, hidden_sizes=(16,))
    warm_up = partial(ELBO, beta=LinearWarmup(7))
    model = VAE((1, 8, 8), 3, likelihood=ContinuousBernoulli, encoder=tiny, decoder=tiny, objective=warm_up)
    last = folder / "checkpoints" / "last.ckpt"
    start = torch.load(last, weights_only=True)["global_step"] if last.is_file() else 0
    flags = dict(variant)
    ema = EMA(decay=0.7) if flags.pop("ema", False) else None
    speed = FastNetworks(steps_per_call=flags.pop("steps_per_call", 1))
    own = [ExactResume(), FiniteSteps(), BestAndLast(last_every_minutes=last_every_minutes), speed]
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "default_root_dir": folder,
            "logger": [MetricsCSV(folder / "metrics.csv", start)],
            "callbacks": [*own, *([ema] if ema else []), *callbacks],
            "plugins": [WholeFiles()],
            "max_epochs": EPOCHS,
            "limit_train_batches": BATCHES,
            "limit_val_batches": 1,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **flags,
        }
    )
    trainer.fit(model, datamodule=Digits(batch_size=32), ckpt_path=last if start else None)
    rows = [{k: v for k, v in row.items() if "per_second" not in k} for row in read_csv(folder / "metrics.csv")]
    average = {} if ema is None or ema._average_model is None else ema._average_model.state_dict()
    return Fit(model.state_dict(), trainer.optimizers[0].state_dict(), average, rows, trainer.global_step)


def assert_equal(found: Fit, whole: Fit) -> None:
    assert found.global_step == whole.global_step
    for name, value in (whole.weights | whole.average).items():
        assert torch.equal((found.weights | found.average)[name], value), name
    for index, state in whole.optimizer["state"].items():
        assert all(torch.equal(found.optimizer["state"][index][name], value) for name, value in state.items())
    assert found.rows == whole.rows


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fit]:
    """The runs that were never stopped."""
    return {name: fit(tmp_path_factory.mktemp("whole"), variant) for name, variant in VARIANTS.items()}


@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("every", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_is_stopped_again_and_again_is_the_one_that_never_was(
    name: str, every: int, kill: bool, wholes: dict[str, Fit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "_requested", 0)
    monkeypatch.setattr(signals, "_polled", False)
    starts = 0
    calls = VARIANTS[name].get("steps_per_call", 1)
    while starts < 2 * EPOCHS * BATCHES:
        starts += 1
        signals.reset()
        stop = StopAfter(every, kill)
        try:
            found = fit(tmp_path, VARIANTS[name], 1e-9 if kill else 10.0, stop)
        except (SIGTERMException, signals.Stopped, Killed):
            continue
        break
    assert_equal(found, wholes[name])
