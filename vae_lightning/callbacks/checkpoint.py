"""Checkpoints of a run: the best by validation ELBO, and the last, from which the run is resumed exactly."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from torch import Tensor

from vae_lightning.callbacks.agreement import Agreement
from vae_lightning.models.restoring import own_files
from vae_lightning.runs import signals
from vae_lightning.runs.checkpoint_io import BEST, LAST, PREVIOUS
from vae_lightning.types import UserError


class BestAndLast(ModelCheckpoint):
    """Writes `checkpoints/best.ckpt` and `checkpoints/last.ckpt` in the trainer's root folder.

    `last.ckpt` is written at each validation, at an interval, at the end, and when a signal asks the run to stop (see
    `signals`): between two optimizer steps, and on all ranks at the same step. No checkpoint is written if a weight is
    not finite.

    Args:
        monitor: The metric of best.ckpt. val/elbo, and not val/loss: a loss whose beta changes cannot be compared
            between epochs. A value that is not finite is never the best.
        mode: "max" if the greatest value of the metric is the best, "min" if the smallest is.
        last_every_minutes: The most minutes between two writes of last.ckpt.
    """

    def __init__(self, monitor: str = "val/elbo", mode: str = "max", last_every_minutes: float = 10.0) -> None:
        if not last_every_minutes > 0:
            raise UserError(f"checkpoint: last_every_minutes is {last_every_minutes}; it must be positive")
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename="best",
            save_last=True,
            save_top_k=1,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )
        self.last_every_minutes = last_every_minutes
        self.has_refused = False  # whether a value of `monitor` was not finite
        self._complete: list[int] = []
        self._mid_validation = self._at_epoch_end = self._is_cut = False
        self._last_step, self._last_time = -1, time.monotonic()
        self._connector = _Connector()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self.dirpath is None:
            self.dirpath = str(Path(trainer.default_root_dir).absolute() / "checkpoints")
        super().setup(trainer, pl_module, stage)
        # Lightning's signal handlers start a collective operation and hang, and its loop broadcasts a flag at each
        # step. The same loop reads our flag after a step and its logging.
        trainer._signal_connector = self._connector  # type: ignore[assignment]
        if stage == "fit":
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    # -- the run's state in a checkpoint ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "complete": self._complete}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take scores from the checkpoint and paths from this run: the checkpoint's paths may be old or wrong."""
        super().load_state_dict({**state_dict, **own_files(self, state_dict, Path(str(self.dirpath)))})

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        weights = {**checkpoint.get("current_model_state", {}), **checkpoint["state_dict"]}
        broken = [name for name, value in weights.items() if not torch.isfinite(value).all()]
        if broken:
            raise UserError(
                f"{broken[0]} is not finite at step {trainer.global_step}: not saved; the checkpoints in "
                f"{self.dirpath} are from earlier steps. A smaller learning rate "
                "or --trainer.gradient_clip_val may help"
            )
        if self._mid_validation:  # the state by which Lightning runs the whole validation again
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            total = {**progress["total"]}
            total["ready"] = total["started"] = total["completed"] + 1
            total["processed"] = total["completed"]
            progress.update(total=total, current=dict.fromkeys(progress["current"], 0), is_last_batch=False)

    # -- when it is written -----------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        _check_intervals(trainer, pl_module)
        self._complete, self._is_cut = [], False
        self._last_step, self._last_time = trainer.global_step, time.monotonic()
        self._agreement = Agreement(trainer.world_size)
        signals.set_polled(True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        loop = trainer.fit_loop
        is_out_of_time = trainer.should_stop and loop._can_stop_early and _is_out_of_time(trainer)
        if loop._should_accumulate() or _has_gradients(trainer, pl_module, batch_idx):
            trainer.should_stop = trainer.should_stop and not is_out_of_time  # a Timer sets it again after each batch
            return
        stop = save = False
        if -1 < trainer.max_steps <= trainer.global_step:  # Lightning ends the epoch here as complete
            self._complete, save = _limits(trainer), True
        elif is_out_of_time and not loop.epoch_loop._num_ready_batches_reached():  # Lightning ends the epoch here, too
            self._is_cut = True
            self._write_last(trainer)
        elif self._agreement.is_due():
            stop, save = self._agreement.any_rank(self._is_late(trainer))
        assert loop._data_fetcher is not None
        if (stop or save) and not loop.epoch_loop._should_check_val_fx(
            loop._data_fetcher
        ):  # validation saves by itself
            self._connector.stop_after_step = stop
            self._at_epoch_end = (
                loop.epoch_loop._num_ready_batches_reached()
            )  # then save after the hooks of the epoch's end
            if not self._at_epoch_end:
                self._write_last(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _is_training(trainer):
            self._agreement.batches = self._agreement.minimum(int(sum(trainer.num_val_batches)))

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Leave a validation at once at a signal; the resumed run repeats the whole validation."""
        if not _is_training(trainer) or batch_idx + 1 >= self._agreement.batches:
            return
        if self._agreement.is_due() and self._agreement.any_rank(False)[0]:
            self._mid_validation = True
            self._write_last(trainer)
            raise signals.Stopped(signals.requested())

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not _is_training(trainer):
            return
        if not self._should_save_on_train_epoch_end(trainer):
            self._write_last(trainer)  # Lightning writes last.ckpt only if this validation was the best
        self._connector.stop_after_step = self._agreement.any_rank(False)[0]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer) or self._at_epoch_end:
            self._write_last(trainer)
        self._at_epoch_end = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a last.ckpt that records the limits up to which the run is complete; a run out of time is not."""
        ended = -1 < (trainer.max_epochs or -1) <= trainer.current_epoch
        if self._is_cut or (trainer.should_stop and not ended and _is_out_of_time(trainer)):
            self._write_last(trainer)
        elif not self._complete:
            self._complete = _limits(trainer)
            self._write_last(trainer, again=True)
        signals.set_polled(False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save nothing, because a rank that fails alone would wait for the others."""
        signals.set_polled(False)

    def check_monitor_top_k(self, trainer: pl.Trainer, current: Tensor | None = None) -> bool:
        """Compare as Lightning does, but never accept a value that is not finite, which Lightning does at first."""
        if current is None:
            return False
        if not trainer.strategy.reduce_boolean_decision(bool(current.isfinite())):
            self.has_refused = True
            return False
        return super().check_monitor_top_k(trainer, current)

    def _is_late(self, trainer: pl.Trainer) -> bool:
        late = time.monotonic() - self._last_time > 60 * self.last_every_minutes
        return late and trainer.is_global_zero

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if Path(filepath).stem == "last":
            self._last_step, self._last_time = trainer.global_step, time.monotonic()

    def _write_last(self, trainer: pl.Trainer, again: bool = False) -> None:
        if trainer.fast_dev_run or (self._last_step == trainer.global_step and not again):  # type: ignore[attr-defined]
            return
        self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))


def own_checkpoints(trainer: pl.Trainer) -> BestAndLast | None:
    """Return the run's `BestAndLast`; `trainer.checkpoint_callback` may be a ModelCheckpoint of the user's."""
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestAndLast)), None)


def place_checkpoints(callbacks: Iterable[pl.Callback], folder: Path) -> None:
    """Let a user's ModelCheckpoint without a folder write to the run's folder, under other names than the run's files.

    Args:
        callbacks: The trainer's callbacks.
        folder: The run's folder of checkpoints.

    Raises:
        UserError: if one of them would write a file of the run.
    """
    for callback in callbacks:
        if not isinstance(callback, ModelCheckpoint):
            continue
        if callback.dirpath is None:
            callback.dirpath = str(folder)
        stems = {callback.filename, callback.CHECKPOINT_NAME_LAST if callback.save_last else None}
        taken = sorted({f"{stem}{callback.FILE_EXTENSION}" for stem in stems} & {BEST, LAST, PREVIOUS})
        if taken and Path(callback.dirpath).resolve() == folder.resolve():
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} would write {' and '.join(taken)}, which the run "
                f"writes to {folder} (see --checkpoint.monitor); give it another filename, without save_last"
            )


def _is_training(trainer: pl.Trainer) -> bool:
    """Return whether a fit is under way, past Lightning's check before the first step."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def _has_gradients(trainer: pl.Trainer, pl_module: pl.LightningModule, call: int) -> bool:
    """Return whether gradients of this call (`speed.steps_per_call`) wait for the next; no checkpoint keeps them."""
    multi_step = getattr(pl_module, "multi_step", None)
    if multi_step is None or call + 1 == trainer.num_training_batches:
        return False
    return bool((call + 1) * multi_step.steps_per_call % multi_step.accumulate)


def _check_intervals(trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
    """Refuse a validation between the batches of one step: its checkpoint would lack their gradients."""
    multi_step = getattr(pl_module, "multi_step", None)
    per_call, accumulate = (
        (multi_step.steps_per_call, multi_step.accumulate) if multi_step else (1, trainer.accumulate_grad_batches)
    )
    batches = trainer.val_check_batch
    if not isinstance(batches, int) or batches >= trainer.num_training_batches:
        return
    if batches * per_call % accumulate:
        raise UserError(
            f"trainer: validation after every {batches * per_call} batches falls within a step of {accumulate} "
            "(accumulate_grad_batches); choose a val_check_interval that is a multiple of it"
        )


def _is_out_of_time(trainer: pl.Trainer) -> bool:
    """Return whether a Timer (`trainer.max_time` makes one) has ended the fit."""
    timers = [callback for callback in trainer.callbacks if isinstance(callback, Timer)]  # type: ignore[attr-defined]
    left = [timer.time_remaining() for timer in timers]
    is_over = any(seconds is not None and seconds <= 0 for seconds in left)
    return bool(trainer.strategy.broadcast(is_over)) if timers else False  # the ranks' clocks differ


def _limits(trainer: pl.Trainer) -> list[int]:
    return [-1 if trainer.max_epochs is None else trainer.max_epochs, trainer.max_steps]


class _Connector:
    """Replaces Lightning's signal connector; Lightning's loops read `received_sigterm` and end the fit after a step."""

    stop_after_step = False

    @property
    def received_sigterm(self) -> bool:
        """Return `stop_after_step`, which any signal sets, under Lightning's name."""
        return self.stop_after_step

    def register_signal_handlers(self) -> None: ...

    def teardown(self) -> None: ...
