"""The training steps to log, and the number of images per second of a fit."""

from __future__ import annotations

import math
import time

import lightning.pytorch as pl

from vae_lightning.models.multi_step import MultiStepTraining


class LogInterval:
    """Logs a step every `log_every_n_steps`, and at least once an epoch.

    During a fit the trainer's own setting is at most the number of steps in an epoch, so that Lightning's loggers and
    callbacks log at the same steps as the model. If the loader has no length, the last step of an epoch is logged when
    no other step of that epoch was.

    Args:
        trainer: The trainer at the start of the fit.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        # do not store the trainer: a copy of the model would copy it
        self.configured: int = trainer.log_every_n_steps  # type: ignore[attr-defined]

    def begin_epoch(self, trainer: pl.Trainer, multi_step: MultiStepTraining | None) -> None:
        """Limit the trainer's interval to the number of steps in the epoch."""
        batches = trainer.num_training_batches if multi_step is None else multi_step.batches_of_epoch()
        steps = self.configured if batches == math.inf else math.ceil(batches / _batches_per_step(trainer, multi_step))
        _set_interval(trainer, min(self.configured, max(1, steps)))

    def is_due(self, trainer: pl.Trainer, multi_step: MultiStepTraining | None, index: int, is_last: bool) -> bool:
        """Return whether to log the step of a batch.

        Args:
            trainer: The trainer.
            multi_step: The model's multi-step training, or None.
            index: The number of the batch in its epoch, from 0.
            is_last: Whether the batch is the last one of its epoch.
        """
        interval, step = trainer.log_every_n_steps, trainer.global_step + 1  # type: ignore[attr-defined]
        in_epoch = index // _batches_per_step(trainer, multi_step) + 1
        ends = is_last or step == trainer.max_steps
        if interval and ends and step // interval == (step - in_epoch) // interval:  # no step of this epoch was logged
            interval = 1
            _set_interval(trainer, interval)
        return bool(interval) and step % interval == 0

    def end_fit(self, trainer: pl.Trainer) -> None:
        """Restore the trainer's interval."""
        _set_interval(trainer, self.configured)


def _batches_per_step(trainer: pl.Trainer, multi_step: MultiStepTraining | None) -> int:
    return trainer.accumulate_grad_batches if multi_step is None else multi_step.accumulate


def _set_interval(trainer: pl.Trainer, steps: int) -> None:
    trainer.log_every_n_steps = steps  # type: ignore[attr-defined]


class Speedometer:
    """Images per second since the last reading, without the time between `stop` and `start`."""

    def __init__(self) -> None:
        self.images, self._seconds = 0, 0.0
        self._since: float | None = None

    def start(self) -> None:
        self._since = time.perf_counter()

    def stop(self) -> None:
        if self._since is not None:
            self._seconds += time.perf_counter() - self._since
            self._since = None

    def read(self) -> float | None:
        """Return images per second since the last reading; None if no image was counted."""
        self.stop()
        rate = self.images / self._seconds if self.images else None
        self.images, self._seconds = 0, 0.0
        self.start()
        return rate
