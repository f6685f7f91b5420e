"""A fit that resumes from any checkpoint ends with the weights of the uninterrupted fit, bit for bit."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from tests.helpers import read_csv
from tests.objectives.test_frozen import Perceptual
from vae_lightning.callbacks import EMA, BestAndLast, ExactResume, FiniteSteps, Pictures, pictures
from vae_lightning.data import Digits
from vae_lightning.distributions import ContinuousBernoulli
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.objectives import ELBO, LinearWarmup
from vae_lightning.pictures import Picture, samples
from vae_lightning.runs import signals
from vae_lightning.runs.checkpoint_io import WholeFiles
from vae_lightning.runs.loggers import MetricsCSV

EPOCHS, BATCHES = 3, 3


class Variant(NamedTuple):
    """Settings of the model and of the trainer, the number of optimizer steps per epoch, and callbacks."""

    model: dict[str, Any] = {}  # noqa: RUF012
    trainer: dict[str, Any] = {}  # noqa: RUF012
    steps: int = BATCHES
    callbacks: tuple[type[pl.Callback], ...] = ()


one_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=EPOCHS * BATCHES)
# with this threshold no epoch is an improvement, so a lost scheduler step shows in the learning rate
plateau = partial(ReduceLROnPlateau, monitor="val/elbo", mode="max", patience=0, threshold=1e9, threshold_mode="abs")
WARM_UP = {"objective": partial(ELBO, beta=LinearWarmup(7))}
VARIANTS = {
    "plain": Variant(),
    "schedules": Variant({**WARM_UP, "scheduler": one_cycle, "scheduler_interval": "step"}),
    "accumulate": Variant(WARM_UP, {"accumulate_grad_batches": 2}, steps=2),
    "bf16": Variant(trainer={"precision": "bf16-mixed"}),
    "plateau": Variant({"scheduler": plateau}),
    "plateau, validated last": Variant({"scheduler": plateau}, {"val_check_interval": BATCHES}),
    "a frozen network": Variant({"objective": Perceptual}),
    "ema": Variant(callbacks=(partial(EMA, decay=0.7),)),  # type: ignore[arg-type]
}


class Recorder(pl.Callback):
    """Stores the images that each epoch has seen, as the sums of their pixels."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen.setdefault(trainer.current_epoch, []).extend(batch["x"].double().flatten(1).sum(1).tolist())


class Saver(pl.Callback):
    """Saves a checkpoint after every optimizer step and every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if not trainer.fit_loop._should_accumulate():
            trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")


class Fit(NamedTuple):
    """The results of a fit."""

    folder: Path
    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    seen: dict[int, list[float]]
    rows: list[dict[str, str]]


def fit(folder: Path, ckpt_path: Path | None = None, kind: str = "plain", *callbacks: pl.Callback) -> Fit:
    """Train, from `ckpt_path` if given; metrics.csv in `folder` is continued."""
    pl.seed_everything(0, verbose=False)
    variant = VARIANTS[kind]
    tiny = partial(MLP, hidden_sizes=(16,))
    slots: dict[str, Any] = {
        "latent_size": 3,
        "likelihood": ContinuousBernoulli,
        "encoder": tiny,
        "decoder": tiny,
        **variant.model,
    }
    model = VAE((1, 8, 8), **slots)
    recorder = Recorder()
    start = 0 if ckpt_path is None else torch.load(ckpt_path, weights_only=True)["global_step"]
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "logger": [MetricsCSV(folder / "metrics.csv", start)],
            "default_root_dir": folder,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "max_epochs": EPOCHS,
            "use_distributed_sampler": False,
            "val_check_interval": 2,
            "limit_val_batches": 2,
            "num_sanity_val_steps": 0,
            "callbacks": [recorder, *(make() for make in variant.callbacks), FiniteSteps(), ExactResume(), *callbacks],
            "plugins": [WholeFiles()],
            "log_every_n_steps": 1,
            "enable_checkpointing": any(isinstance(callback, BestAndLast) for callback in callbacks),
            **variant.trainer,
        }
    )
    trainer.fit(model, datamodule=Digits(batch_size=500, eval_batch_size=100), ckpt_path=ckpt_path)
    assert trainer.global_step == EPOCHS * variant.steps
    rows = [{k: v for k, v in row.items() if "per_second" not in k} for row in read_csv(folder / "metrics.csv")]
    return Fit(folder, model.state_dict(), trainer.optimizers[0].state_dict(), recorder.seen, rows)


def assert_equal(resumed: Fit, whole: Fit) -> None:
    assert resumed.weights.keys() == whole.weights.keys()
    assert all(torch.equal(resumed.weights[name], whole.weights[name]) for name in whole.weights)
    assert resumed.optimizer["param_groups"] == whole.optimizer["param_groups"]
    for index, state in whole.optimizer["state"].items():
        assert all(torch.equal(resumed.optimizer["state"][index][name], value) for name, value in state.items())
    for epoch, images in resumed.seen.items():
        assert images == whole.seen[epoch][-len(images) :]  # all images after the checkpoint, in order, none twice


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Fit]:
    """Fit without interruption, and save a checkpoint at every step."""
    found = {}
    for kind in VARIANTS:
        folder = tmp_path_factory.mktemp(kind)
        found[kind] = fit(folder, None, kind, Saver(folder))
    return found


def names(kind: str) -> Iterator[str]:
    steps = VARIANTS[kind].steps
    if kind == "plain":
        yield from (f"step{step}" for step in range(1, EPOCHS * steps))
        yield from (f"epoch{epoch}" for epoch in range(EPOCHS - 1))
    elif "val_check_interval" in VARIANTS[kind].trainer:  # steps before and after a validation
        yield from ("step1", f"step{steps + 1}", "epoch0", "epoch1")
    else:
        yield from ("step1", f"step{steps}", f"step{steps + 1}", "epoch0")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in VARIANTS for name in names(kind)])
def test_resume_is_exact_from_every_step_and_epoch(
    kind: str, name: str, wholes: dict[str, Fit], tmp_path: Path
) -> None:
    resumed = fit(tmp_path, wholes[kind].folder / f"{name}.ckpt", kind)
    assert resumed.seen
    assert_equal(resumed, wholes[kind])
    trained = [row for row in wholes[kind].rows if "train/loss" in row]
    assert (rows := [row for row in resumed.rows if "train/loss" in row]) == trained[-len(rows) :]


def test_without_the_position_resume_is_not_exact(
    wholes: dict[str, Fit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the test above can detect an inexact resume."""
    monkeypatch.setattr(Digits, "_position", lambda _: 0)
    resumed = fit(tmp_path, wholes["plain"].folder / f"step{BATCHES + 1}.ckpt")
    weights = wholes["plain"].weights
    assert not all(torch.equal(resumed.weights[key], weights[key]) for key in weights)


# -- stopped by a signal ----------------------------------------------------------------------------------------------


class SignalAt(pl.Callback):
    """Raises a signal at one moment: in a step, in a validation, in its last batch, or between epochs."""

    def __init__(self, hook: str, count: int) -> None:
        self.left = count
        setattr(self, hook, self._come)

    def _come(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            signals.request(signal.SIGTERM)


MOMENTS = [
    *(("plain", "on_train_batch_start", step) for step in range(1, EPOCHS * BATCHES + 1)),
    *(("plain", "on_validation_batch_start", batch) for batch in (1, 2)),  # the first batch, and the last
    ("plain", "on_train_epoch_end", 1),
    ("plateau, validated last", "on_validation_start", 2),
    ("plateau, validated last", "on_train_epoch_end", 2),
    ("ema", "on_train_batch_start", 4),
    ("ema", "on_validation_batch_start", 3),
    ("ema", "on_validation_start", 3),
]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize(("kind", "hook", "count"), MOMENTS)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    kind: str, hook: str, count: int, wholes: dict[str, Fit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal: the weights, the optimizer, and metrics.csv, with one row for each step and for each validation."""
    monkeypatch.setattr(signals, "_requested", 0)
    monkeypatch.setattr(signals, "_polled", False)
    with pytest.raises((SIGTERMException, signals.Stopped)):
        fit(tmp_path, None, kind, BestAndLast(), SignalAt(hook, count))
    signals.reset()
    resumed = fit(tmp_path, tmp_path / "checkpoints" / "last.ckpt", kind, BestAndLast())
    assert_equal(resumed, wholes[kind])
    assert resumed.rows == wholes[kind].rows


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_signal_while_pictures_are_drawn_waits_for_them(
    wholes: dict[str, Fit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both pictures are complete, then the run stops. The resumed run equals the uninterrupted one."""
    monkeypatch.setattr(signals, "_requested", 0)
    monkeypatch.setattr(signals, "_polled", False)

    def draw(*args: Any) -> Picture:
        signals._handle_signal(signal.SIGTERM, None)  # the call that Python makes when the signal arrives
        return samples(*args)

    monkeypatch.setattr(pictures, "samples", draw)
    with pytest.raises((SIGTERMException, signals.Stopped)):
        fit(tmp_path, None, "plain", Pictures(every_n_epochs=1, num_images=10), BestAndLast())
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [
        "reconstructions-0001.png",
        "samples-0001.png",
    ]
    signals.reset()
    resumed = fit(tmp_path, tmp_path / "checkpoints" / "last.ckpt", "plain", BestAndLast())
    assert_equal(resumed, wholes["plain"])
    assert resumed.rows == wholes["plain"].rows
