"""Checkpoints of a run: the last, and the best by validation ELBO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
            self.dirpath = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A run's folder may have moved: without this, Lightning forgets the best score and overwrites best.ckpt."""
        old, new = str(state_dict.get("dirpath")), str(self.dirpath)
        if old != new and (Path(new) / "best.ckpt").is_file():
            moved = {name: _move(value, old, new) for name, value in state_dict.items()}
            state_dict = {**moved, "dirpath": new}
        super().load_state_dict(state_dict)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lightning writes `last` at validation; where the last epoch had none, it is written here."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        super().on_train_end(trainer, pl_module)
        if self._last_global_step_saved != trainer.global_step:
            self.last_model_path = str(Path(str(self.dirpath)) / "last.ckpt")
            trainer.save_checkpoint(self.last_model_path)


def _move(value: Any, old: str, new: str) -> Any:
    """Paths below `old`, in a string or as the keys of a dict, as paths below `new`."""
    if isinstance(value, dict):
        return {_move(key, old, new): entry for key, entry in value.items()}
    return new + value.removeprefix(old) if isinstance(value, str) and value.startswith(old) else value
