"""How fast a fit runs on this machine: the form of the networks, and a progress bar that costs nothing."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar

from vae_lightning.types import Network


class FastNetworks(pl.Callback):
    """`channels_last`: convolutions hold their weights, and so their images, as [N, H, W, C] in memory: the same
    numbers up to rounding, faster on a GPU's tensor cores and on a CPU. `compile`: each network is compiled in place
    (torch.compile), so that a checkpoint keeps its names; at the first batches that takes up to a minute.
    """

    def __init__(self, compile: bool = False, channels_last: bool = True) -> None:
        self.compile, self.channels_last = compile, channels_last

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        for network in pl_module.modules():
            if isinstance(network, Network):
                if self.channels_last:
                    network.to(memory_format=torch.channels_last)
                if self.compile:
                    network.compile()


class SteadyBar(RichProgressBar):
    """Lightning's bar, brought up to date some times a second and not at each step.

    Each update reads the metrics: on a GPU the host would wait for every step's end.
    """

    def __init__(self, seconds: float = 0.25) -> None:
        super().__init__()
        self.seconds = seconds
        self._last = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due() or batch_idx + 1 == trainer.num_training_batches:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._is_due():
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True
