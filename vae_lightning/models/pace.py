"""When a step of training is logged, and how many images a second a fit takes."""

from __future__ import annotations

import math
import time

import lightning.pytorch as pl

from vae_lightning.models.multi_step import MultiStepTraining


class LogInterval:
    """A step is logged every `log_every_n_steps`, and at least once an epoch.

    For the length of a fit the trainer's own setting is lowered to the steps of an epoch, so that Lightning's loggers
    and callbacks log at the same steps as the model. Where the loader has no length, an epoch's last step is logged if
    no other was.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        # not the trainer itself: it would be copied with the model
        self.given: int = trainer.log_every_n_steps  # type: ignore[attr-defined]

    def begin_epoch(self, trainer: pl.Trainer, multi_step: MultiStepTraining | None) -> None:
        """Lower the interval to the epoch's steps."""
        batches = trainer.num_training_batches if multi_step is None else multi_step.batches_of_epoch()
        steps = self.given if batches == math.inf else math.ceil(batches / _batches_per_step(trainer, multi_step))
        _set_interval(trainer, min(self.given, max(1, steps)))

    def is_due(self, trainer: pl.Trainer, multi_step: MultiStepTraining | None, index: int, is_last: bool) -> bool:
        """Whether to log the step that batch number `index` of the epoch, perhaps its last, is a part of."""
        interval, step = trainer.log_every_n_steps, trainer.global_step + 1  # type: ignore[attr-defined]
        in_epoch = index // _batches_per_step(trainer, multi_step) + 1
        ends = is_last or step == trainer.max_steps
        if interval and ends and step // interval == (step - in_epoch) // interval:  # none was due in this epoch
            interval = 1
            _set_interval(trainer, interval)
        return bool(interval) and step % interval == 0

    def end_fit(self, trainer: pl.Trainer) -> None:
        _set_interval(trainer, self.given)


def _batches_per_step(trainer: pl.Trainer, multi_step: MultiStepTraining | None) -> int:
    return trainer.accumulate_grad_batches if multi_step is None else multi_step.accumulate


def _set_interval(trainer: pl.Trainer, steps: int) -> None:
    trainer.log_every_n_steps = steps  # type: ignore[attr-defined]


class Speedometer:
    """Images a second since the last reading; the clock stands still between `stop` and `start`."""

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
        """None where no image has been counted since the last reading."""
        self.stop()
        rate = self.images / self._seconds if self.images else None
        self.images, self._seconds = 0, 0.0
        self.start()
        return rate
