"""A run that goes on: what must be as it was, what is said where it is not, settings that are changed on purpose."""

from __future__ import annotations

import os
import zlib
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vae_lightning import __version__
from vae_lightning.data import ImageDataModule
from vae_lightning.types import UserError

_REFUSED = ("data", "seed")
_LEARNING = ("optimizer", "scheduler", "scheduler_interval")


class ExactResume(pl.Callback):
    """Each checkpoint says what its numbers depend on besides its config; a run that goes on is held to it.

    Other data or another seed: refused, since the run would be another one. Another number of devices or batch size:
    refused within an epoch, whose remaining images it would not find; said aloud between two. Another precision or
    version: said aloud. A changed setting of the optimizer takes effect where there is no scheduler, which would undo
    it; else it is refused. Lightning alone would keep the checkpoint's, in silence.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Any] = {}
        self._changed: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            trainer.fit_loop.reset = partial(_reset, trainer.fit_loop)  # type: ignore[method-assign]
            self._facts = {
                "devices": trainer.world_size,
                "batch_size": getattr(trainer.datamodule, "batch_size", None),  # type: ignore[attr-defined]
                "accumulate_grad_batches": trainer.accumulate_grad_batches,
                "precision": str(trainer.precision),
                "seed": int(os.environ.get("PL_GLOBAL_SEED", "0")),
                "data": _describe(trainer.datamodule),  # type: ignore[attr-defined]
                "versions": {
                    "vae_lightning": __version__,
                    "torch": str(torch.__version__),
                    "lightning": pl.__version__,
                },
            }

    def state_dict(self) -> dict[str, Any]:
        return dict(self._facts)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        saved = checkpoint["callbacks"].get(self.state_key, {})
        others = {name: (saved[name], here) for name, here in self._facts.items() if saved.get(name, here) != here}
        said = [f"{name} {there} -> {here}" for name, (there, here) in others.items()]
        if set(_REFUSED) & others.keys():
            raise UserError(f"the run cannot go on with other data or another seed: {'; '.join(said)}; begin a new run")
        seen = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        length = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        sliced = {"devices", "batch_size"} & others.keys()
        if sliced and seen > 0 and not checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]:
            raise UserError(
                f"the checkpoint is from within an epoch ({seen} batches seen, {length} now), whose other images only "
                f"the same devices and batch size find: {'; '.join(said)}; go on with those, or begin a new run"
            )
        if said and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"NOT EXACT: not the run that it would have been without a stop: {'; '.join(said)}", flush=True)
        self._changed = _changed_settings(checkpoint["hyper_parameters"], dict(pl_module.hparams))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After Lightning has put the optimizer back as it was."""
        for group in trainer.optimizers[0].param_groups:
            group.update(self._changed)


def _reset(loop: _FitLoop) -> None:
    """Lightning's reset of its loops; after a checkpoint from the end of an epoch it begins the next one.

    Lightning 2.6 trains that next epoch without counting it as begun, if the checkpoint was written at the epoch's last
    batch: the checkpoints of a second stop then say that no epoch is under way, and its batches are trained twice. With
    `max_steps` it counts the epoch that has ended a second time.
    """
    epochs: Any = loop.epoch_progress
    batches: Any = loop.epoch_loop.batch_progress
    if loop._loaded_from_state_dict and batches.is_last_batch:
        if batches.total.completed < batches.total.processed:  # written at the last batch, and not at the epoch's end
            batches.increment_completed()
            loop.epoch_loop._batches_that_stepped += 1
            epochs.increment_processed()
        if epochs.total.processed == epochs.total.started:
            _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]  # its own setter keeps True with max_steps
    _FitLoop.reset(loop)


def _changed_settings(saved: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Settings of the optimizer that are to take effect; raises where a change could not."""
    there, here = ([_recipe(hparams.get(name)) for name in _LEARNING] for hparams in (saved, own))
    if there == here:
        return {}
    (old, before), (new, now) = there[0], here[0]
    if old != new or there[1:] != here[1:] or here[1][0]:
        raise UserError(
            f"a run goes on with its own optimizer and scheduler, and a schedule with its own rate: {there} -> {here}; "
            "leave them as they were, or begin a new run"
        )
    return {name: value for name, value in now.items() if before.get(name) != value}


def _recipe(value: Any) -> tuple[str, dict[str, Any]]:
    """The class's last name and its arguments: Python and YAML write the same class by different paths."""
    if isinstance(value, dict):
        return str(value.get("class_path", "")).rpartition(".")[2], dict(value.get("init_args") or {})
    return str(value or "").rpartition(".")[2], {}


def _describe(data: Any) -> dict[str, Any]:
    """What the training images are, whatever folder they lie in: a checksum of some of them, and how they are used."""
    if not isinstance(data, ImageDataModule):
        return {}
    pixels = data.images("train").pixels
    some = pixels[:: max(1, len(pixels) // 64)].cpu().contiguous()
    return {
        "class": type(data).__name__,
        "images": len(pixels),
        "checksum": zlib.crc32(some.numpy().tobytes()),
        **{name: getattr(data, name) for name in ("binarisation", "flip", "dequantise")},
    }
