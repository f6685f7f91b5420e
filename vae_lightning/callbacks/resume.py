"""Resume: settings that must be the same, settings whose change is reported, settings that may change."""

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
from vae_lightning.data import DataModule
from vae_lightning.types import UserError

_REFUSED = ("data", "seed")
_LEARNING = ("optimizer", "scheduler", "scheduler_interval")


class ExactResume(pl.Callback):
    """Stores in each checkpoint the facts that its numbers depend on besides the config, and compares them at resume.

    Other data or another seed are refused, because the run would be another run. Another number of devices or batch
    size is refused within an epoch, because the remaining images could not be found, and printed between epochs.
    Another precision or version is printed. A changed setting of the optimizer takes effect if there is no scheduler,
    and is refused otherwise, because the scheduler would undo it; Lightning would keep the checkpoint's setting without
    a message.
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
        changes = [change for name, (there, here) in others.items() for change in _changes(name, there, here)]
        if set(_REFUSED) & others.keys():
            raise UserError(
                f"the run cannot go on with other data or another seed: {'; '.join(changes)}; begin a new run"
            )
        seen = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        length = len(trainer.datamodule.train_dataloader())  # type: ignore[attr-defined]
        sliced = {"devices", "batch_size"} & others.keys()
        if sliced and seen > 0 and not checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]:
            raise UserError(
                f"the checkpoint is from within an epoch ({seen} batches seen, {length} now); only the same devices "
                f"and batch size find its other images: {'; '.join(changes)}; resume with these, or begin a new run"
            )
        if changes and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"NOT EXACT: the resumed run differs from an uninterrupted one: {'; '.join(changes)}", flush=True)
        self._changed = _changed_settings(checkpoint["hyper_parameters"], dict(pl_module.hparams))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Apply the changed settings after Lightning has restored the optimizer."""
        for group in trainer.optimizers[0].param_groups:
            group.update(self._changed)


def _changes(name: str, there: Any, here: Any) -> list[str]:
    """Return `name there -> here`; of two dicts, such as the facts of the data, one for each entry that differs."""
    if not isinstance(there, dict) or not isinstance(here, dict):
        return [f"{name} {there} -> {here}"]
    names = [key for key in {**there, **here} if there.get(key) != here.get(key)]
    return [f"{name}.{key} {there.get(key)} -> {here.get(key)}" for key in names]


def _reset(loop: _FitLoop) -> None:
    """Reset Lightning's loops; after a checkpoint from the last batch of an epoch, count the next epoch as begun.

    Lightning 2.6 does not count that next epoch as begun. A checkpoint of a second stop would then say that no epoch is
    under way, and its batches would be trained twice. With `max_steps` Lightning counts the past epoch a second time.
    """
    epochs: Any = loop.epoch_progress
    batches: Any = loop.epoch_loop.batch_progress
    if loop._loaded_from_state_dict and batches.is_last_batch:
        if batches.total.completed < batches.total.processed:  # written at the last batch, before the epoch's end
            batches.increment_completed()
            loop.epoch_loop._batches_that_stepped += 1
            epochs.increment_processed()
        if epochs.total.processed == epochs.total.started:
            _Loop.restarting.fset(loop, False)  # type: ignore[attr-defined]  # the loop's setter would keep True with max_steps
    _FitLoop.reset(loop)


def _changed_settings(saved: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """Return changed settings of the optimizer; raise UserError for a change that could not take effect."""
    there, here = ([_recipe(hparams.get(name)) for name in _LEARNING] for hparams in (saved, present))
    if there == here:
        return {}
    (old, before), (new, now) = there[0], here[0]
    if old != new or there[1:] != here[1:] or here[1][0]:
        raise UserError(
            f"a resumed run keeps its own optimizer and scheduler, and a scheduler its rate: {there} -> {here}; "
            "give the settings of the checkpoint, or begin a new run"
        )
    return {name: value for name, value in now.items() if before.get(name) != value}


def _recipe(value: Any) -> tuple[str, dict[str, Any]]:
    """Return the class's name without its module, and its arguments: YAML and Python may name other modules."""
    if isinstance(value, dict):
        return str(value.get("class_path", "")).rpartition(".")[2], dict(value.get("init_args") or {})
    return str(value or "").rpartition(".")[2], {}


def _describe(data: Any) -> dict[str, Any]:
    """Describe the training images, independent of their folder: a checksum of some of them, and their settings."""
    if not isinstance(data, DataModule):
        return {}
    examples = data.examples("train")
    x = examples.fields["x"]
    some = x[:: max(1, len(x) // 64)].cpu().contiguous()
    settings = ("binarisation", "flip", "dequantise")  # of images
    return {
        "class": type(data).__name__,
        "images": len(examples),
        "checksum": zlib.crc32(some.numpy().tobytes()),
        **{name: getattr(data, name) for name in settings if hasattr(data, name)},
    }
