"""A fit that goes on from any checkpoint ends with the weights of the one that was never interrupted, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from vae_lightning.data import Digits
from vae_lightning.distributions import ContinuousBernoulli
from vae_lightning.models import VAE

EPOCHS, BATCHES = 3, 3


class Recorder(pl.Callback):
    """Notes which images each epoch has seen, by the sums of their pixels."""

    def __init__(self) -> None:
        self.seen: dict[int, list[float]] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen.setdefault(trainer.current_epoch, []).extend(batch["x"].double().flatten(1).sum(1).tolist())


class Saver(pl.Callback):
    """A checkpoint after every step and every epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")


def fit(folder: Path, ckpt_path: Path | None = None) -> tuple[dict[str, torch.Tensor], dict[int, list[float]]]:
    """The weights at the end, and what each epoch has seen."""
    pl.seed_everything(0, verbose=False)
    model = VAE((1, 8, 8), latent_size=3, likelihood=ContinuousBernoulli)
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=EPOCHS,
        use_distributed_sampler=False,
        val_check_interval=2,
        limit_val_batches=1,
        callbacks=[recorder, Saver(folder)],
        enable_checkpointing=False,
        log_every_n_steps=1,
    )
    trainer.fit(model, datamodule=Digits(batch_size=500), ckpt_path=ckpt_path)
    assert trainer.global_step == EPOCHS * BATCHES
    return model.state_dict(), recorder.seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], dict[int, list[float]]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *fit(folder)


NAMES = [*(f"step{step}" for step in range(1, EPOCHS * BATCHES)), *(f"epoch{epoch}" for epoch in range(EPOCHS - 1))]


@pytest.mark.parametrize("name", NAMES)
def test_resume_is_exact_from_every_step_and_epoch(name: str, whole: Any, tmp_path: Path) -> None:
    folder, weights, seen = whole
    resumed, rest = fit(tmp_path, folder / f"{name}.ckpt")
    assert all(torch.equal(resumed[key], weights[key]) for key in weights)
    assert rest
    for epoch, images in rest.items():
        assert images == seen[epoch][-len(images) :]  # the next image and all that follow, none twice


def test_without_the_position_resume_is_not_exact(whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: the test above has teeth."""
    folder, weights, _ = whole
    monkeypatch.setattr(Digits, "_position", lambda _: 0)
    resumed, _ = fit(tmp_path, folder / f"step{BATCHES + 1}.ckpt")
    assert not all(torch.equal(resumed[key], weights[key]) for key in weights)
