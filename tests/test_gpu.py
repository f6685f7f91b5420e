"""Tests that need a GPU: `CUDA_VISIBLE_DEVICES=0 make test ARGS="tests/test_gpu.py"`; skipped without one."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from vae_lightning.callbacks import FastNetworks, FiniteSteps
from vae_lightning.data import Digits
from vae_lightning.distributions import ContinuousBernoulli
from vae_lightning.models import VAE

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="wants a GPU, which the tests see where CUDA_VISIBLE_DEVICES names one"
)


class NoWaiting(pl.Callback):
    """Makes every call that waits for the device an error, from the end of step 3 to the end of step 9."""

    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.steps += 1
        if self.steps in (3, 9):
            torch.cuda.set_sync_debug_mode("error" if self.steps == 3 else "default")


@pytest.mark.filterwarnings("ignore")  # torch warns that the mode is a prototype
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_does_not_wait_for_the_device(precision: str) -> None:
    """No part of a step waits, apart from the log.

    The parts are: the next batch, the next epoch's order and flips, the noise, the loss, the gradient's norm and its
    clipping, and the optimizer's step.
    """
    model = VAE((1, 8, 8), 2, likelihood=ContinuousBernoulli, optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True))
    watch = NoWaiting()
    trainer = pl.Trainer(
        accelerator="gpu",
        devices=1,
        precision=precision,  # type: ignore[arg-type]
        max_steps=12,
        gradient_clip_val=100.0,
        log_every_n_steps=1000,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[FiniteSteps(), FastNetworks(), watch],
    )
    try:
        trainer.fit(model, datamodule=Digits(batch_size=256, flip=True))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert watch.steps == 12
    assert trainer.num_training_batches == 5  # so that an epoch ended between steps 3 and 9
