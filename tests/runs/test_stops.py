"""A fit that is stopped or killed several times ends with the weights of an uninterrupted fit, bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from tests.helpers import read_csv
from vae_lightning.callbacks import EMA, BestAndLast, ExactResume, FastNetworks, FiniteSteps
from vae_lightning.data import Digits
from vae_lightning.distributions import ContinuousBernoulli
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.objectives import ELBO, LinearWarmup
from vae_lightning.runs import signals
from vae_lightning.runs.checkpoint_io import WholeFiles
from vae_lightning.runs.loggers import MetricsCSV

EPOCHS, BATCHES = 3, 4

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*could not find the monitored key"),  # variants without a validation
]
VARIANTS: dict[str, dict[str, Any]] = {
    "validated in every second": {"check_val_every_n_epoch": 2},
    "twice in every second": {"check_val_every_n_epoch": 2, "val_check_interval": 0.5},
    "accumulating": {"check_val_every_n_epoch": 2, "accumulate_grad_batches": 3},
    "several steps a call": {"check_val_every_n_epoch": 2, "steps_per_call": 2},
    "up to a step": {"max_steps": EPOCHS * BATCHES},
}
OTHERS: dict[str, dict[str, Any]] = {
    "validated in each epoch": {},
    "never": {"limit_val_batches": 0},
    "twice in each epoch": {"val_check_interval": 2},
    "unevenly in every second": {"check_val_every_n_epoch": 2, "val_check_interval": 3},
    "by the number of batches": {"check_val_every_n_epoch": None, "val_check_interval": 6},
    "accumulating evenly": {"accumulate_grad_batches": 2},
    "several, accumulating": {"check_val_every_n_epoch": 2, "steps_per_call": 2, "accumulate_grad_batches": 4},
    "up to a step, validated in every second": {"max_steps": EPOCHS * BATCHES, "check_val_every_n_epoch": 2},
    "never, best by training": {"limit_val_batches": 0, "monitor": "train/elbo"},
    "up to a step, never": {"max_steps": EPOCHS * BATCHES, "limit_val_batches": 0},
    "averaged": {"check_val_every_n_epoch": 2, "ema": True},
}


class Killed(Exception):  # noqa: N818
    """Stands for SIGKILL."""


class EndAfter(pl.Callback):
    """After `steps` steps, send a signal, or raise Killed once the last of the steps is saved."""

    def __init__(self, steps: int, way: str, call: int) -> None:
        self.steps, self.way, self.call = steps, way, call

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end = trainer.global_step + self.steps

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self.way == "killed" and trainer.global_step >= self.end:
            raise Killed
        if self.way == "stopped" and trainer.global_step + self.call >= self.end:
            signals.request(signal.SIGTERM)


class Hooks(pl.Callback):
    """Counts the epochs that have begun and ended, and saves the counts in the checkpoint."""

    def __init__(self) -> None:
        self.begun = self.ended = 0

    def on_train_epoch_start(self, *args: Any) -> None:
        self.begun += 1

    def on_train_epoch_end(self, *args: Any) -> None:
        self.ended += 1

    def state_dict(self) -> dict[str, Any]:
        return {"begun": self.begun, "ended": self.ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.begun, self.ended = state_dict["begun"], state_dict["ended"]


class Fit(NamedTuple):
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    average: dict[str, Tensor]
    rows: list[dict[str, str]]
    global_step: int
    epochs: dict[str, int]


def step_of(folder: Path) -> int:
    last = folder / "checkpoints" / "last.ckpt"
    return int(torch.load(last, weights_only=True)["global_step"]) if last.is_file() else 0


def fit(folder: Path, variant: dict[str, Any], last_every_minutes: float = 10.0, *callbacks: pl.Callback) -> Fit:
    """Begin a fit, or resume it from `last.ckpt` in the folder."""
    pl.seed_everything(0, verbose=False)
    tiny = partial(MLP, hidden_sizes=(16,))
    warm_up = partial(ELBO, beta=LinearWarmup(7))
    model = VAE((1, 8, 8), 3, likelihood=ContinuousBernoulli, encoder=tiny, decoder=tiny, objective=warm_up)
    last, start = folder / "checkpoints" / "last.ckpt", step_of(folder)
    flags = dict(variant)
    ema = EMA(decay=0.7) if flags.pop("ema", False) else None
    speed = FastNetworks(steps_per_call=flags.pop("steps_per_call", 1))
    checkpoints = BestAndLast(flags.pop("monitor", "val/elbo"), last_every_minutes=last_every_minutes)
    standard = [ExactResume(), FiniteSteps(), checkpoints, speed, hooks := Hooks()]
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "default_root_dir": folder,
            "logger": [MetricsCSV(folder / "metrics.csv", start)],
            "callbacks": [*standard, *([ema] if ema else []), *callbacks],
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
    return Fit(
        model.state_dict(), trainer.optimizers[0].state_dict(), average, rows, trainer.global_step, hooks.state_dict()
    )


def assert_equal(stopped: Fit, whole: Fit) -> None:
    assert stopped.global_step == whole.global_step
    for name, value in (whole.weights | whole.average).items():
        assert torch.equal((stopped.weights | stopped.average)[name], value), name
    for index, state in whole.optimizer["state"].items():
        assert all(torch.equal(stopped.optimizer["state"][index][name], value) for name, value in state.items())
    assert stopped.rows == whole.rows
    assert stopped.epochs == whole.epochs == {"begun": EPOCHS, "ended": EPOCHS}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Fit]:
    """The uninterrupted run of each variant, by name."""
    return cache(lambda name: fit(tmp_path_factory.mktemp("whole"), (VARIANTS | OTHERS)[name]))


def chains(variants: Iterable[str], every: Iterable[int]) -> Iterator[tuple[str, str, int]]:
    for name, steps, way in product(variants, every, ("stopped", "killed", "lengthened")):
        if (
            way != "lengthened" or "several" not in name
        ):  # the run would end within a call of several steps, which is refused
            yield name, way, steps


@pytest.mark.parametrize(
    ("name", "way", "every"),
    [
        *chains(VARIANTS, [1]),
        *(pytest.param(*chain, marks=pytest.mark.slow) for chain in chains(VARIANTS, [2, 4, 5])),
        *(pytest.param(*chain, marks=pytest.mark.slow) for chain in chains(OTHERS, [1, 2, 4, 5])),
    ],
)
def test_a_run_that_ends_again_and_again_is_the_one_that_never_did(
    name: str, way: str, every: int, whole: Callable[[str], Fit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fit is stopped by a signal, killed in a run that saves each step, or ended by max_steps and lengthened."""
    monkeypatch.setattr(signals, "_requested", 0)
    monkeypatch.setattr(signals, "_polled", False)
    variant, minutes = (VARIANTS | OTHERS)[name], 1e-9 if way == "killed" else 10.0
    call = variant.get("steps_per_call", 1)
    for _ in range(EPOCHS * BATCHES):
        if (end := step_of(tmp_path) + every) + max(every, call) > whole(name).global_step:
            break
        limit = {"max_steps": end, "max_epochs": -1} if way == "lengthened" else {}
        with suppress(SIGTERMException, signals.Stopped, Killed):
            fit(tmp_path, {**variant, **limit}, minutes, EndAfter(every, way, call))
        signals.reset()
    assert_equal(fit(tmp_path, variant), whole(name))
