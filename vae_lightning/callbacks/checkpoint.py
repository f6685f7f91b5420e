"""Checkpoints of a run: the last, and the best by validation ELBO."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class BestAndLast(ModelCheckpoint):
    """`checkpoints/best.ckpt` (greatest `monitor`) and `checkpoints/last.ckpt`, in the trainer's root folder.

    The default is `val/elbo` and not `val/loss`: a loss whose beta changes cannot be compared from epoch to epoch.
    """

    def __init__(self, monitor: str = "val/elbo", mode: str = "max") -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename="best",
            save_last=True,
            save_top_k=1,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir) / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning writes `last` at validation; where the last epoch had none, it is written here."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        super().on_train_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step:
            self.last_model_path = str(Path(str(self.dirpath)) / "last.ckpt")
            trainer.save_checkpoint(self.last_model_path)
