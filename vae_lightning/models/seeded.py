"""The noise of a step: a function of the seed and of the step's numbers. Earlier draws do not change it.

In training the noise is a function of (seed, epoch, batch, rank): ranks draw different numbers, and a resumed run draws
the same numbers again. In evaluation it is a function of (seed, batch), on any rank (see `Loader`).
"""

from __future__ import annotations

import os

import lightning.pytorch as pl

from vae_lightning.noise import reseed
from vae_lightning.types import Batch

_TRAIN, _EVALUATE = 0, 1  # two streams of noise: training and evaluation never draw the same numbers


class Seeded(pl.LightningModule):
    """A module that sets torch's generators before each batch. A training step calls `seed_training_step`."""

    def seed_training_step(self, index: int) -> None:
        """Set the noise of a training batch.

        Args:
            index: The number of the batch in its epoch, from 0.
        """
        self._reseed(self.global_rank, _TRAIN, self.current_epoch, index)

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._reseed_evaluation(0, batch_idx)

    def on_test_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._reseed_evaluation(1, batch_idx)

    def on_predict_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._reseed_evaluation(2, batch_idx)

    def _reseed_evaluation(self, stage: int, batch_idx: int) -> None:
        batch = batch_idx * self.trainer.world_size + self.global_rank  # the number of the batch in a run on one rank
        self._reseed(0, _EVALUATE, stage, batch)

    def _reseed(self, rank: int, *counters: int) -> None:
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # where Lightning's seed_everything keeps it
        reseed(self.device, seed, rank, *counters)
