"""Several optimizer steps in one call of `training_step`: Lightning's loop is paid for once, and not for each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from vae_lightning.types import Batch, UserError

_STEP_HOOKS = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")


class SteppedModel(Protocol):
    """What `MultiStepTraining` uses of a model: any `LatentVariableModel` will do."""

    @property
    def global_step(self) -> int: ...

    def optimizers(self) -> Any: ...

    def training_loss(self, batch: Batch, index: int, is_last: bool) -> tuple[Tensor, bool]: ...

    def manual_backward(self, loss: Tensor) -> None: ...


class MultiStepTraining:
    """The training of `model` in calls of `steps_per_call` batches, by Lightning's manual optimization.

    Weights, noise, schedules, accumulation, clipping and the log's x-axis are those of one batch a call; checkpoints,
    validation and the progress bar come between calls. `accumulate`: batches whose gradients make one step.
    """

    def __init__(self, model: SteppedModel, trainer: pl.Trainer, steps_per_call: int) -> None:
        for name in ("limit_train_batches", "val_check_interval"):
            setattr(trainer, name, _in_calls(name, getattr(trainer, name), steps_per_call))
        self.model, self.trainer, self.steps_per_call = model, trainer, steps_per_call
        self.accumulate, trainer.accumulate_grad_batches = trainer.accumulate_grad_batches, 1
        self.cut = False  # was a call left in its middle, for max_steps?

    def __call__(self, batches: Sequence[Batch], call: int) -> None:
        """Steps on `batches`, the `call`-th group of the epoch; fewer where max_steps is reached."""
        optimizer = self.model.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        last_call = call + 1 == self.trainer.num_training_batches
        logged = None
        with _only_listeners(self.trainer):
            for i, batch in enumerate(batches):
                if self.model.global_step == self.trainer.max_steps:
                    self.cut = True
                    break
                index = call * self.steps_per_call + i
                step = self.model.global_step
                loss, was_logged = self.model.training_loss(batch, index, last_call and i + 1 == len(batches))
                logged = step if was_logged else logged
                self.model.manual_backward(loss / self.accumulate if self.accumulate > 1 else loss)
                if (index + 1) % self.accumulate == 0 or (last_call and i + 1 == len(batches)):
                    optimizer.step()
                    optimizer.zero_grad()
                    self._schedule("step")
        if last_call:
            self._schedule("epoch")  # before the validation, whose checkpoint then has the next epoch's rate
        self.count(self.model.global_step - 1 if logged is None else logged)

    def batches_of_epoch(self) -> float:
        """Infinite where the loader counts nothing but its calls: the last call may have fewer batches."""
        batches = getattr(self.trainer.train_dataloader, "num_batches", None)
        return math.inf if batches is None else min(batches, self.trainer.num_training_batches * self.steps_per_call)

    def count(self, steps: int) -> None:
        """Tell Lightning how many steps there were before this one: it has counted calls. The x-axis of the log."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = steps

    def _schedule(self, interval: str) -> None:
        """As Lightning does where the optimization is its own."""
        for config in self.trainer.lr_scheduler_configs:
            count = self.trainer.current_epoch + 1 if interval == "epoch" else self.model.global_step
            if config.interval == interval and count % config.frequency == 0 and not config.reduce_on_plateau:
                config.scheduler.step()  # type: ignore[call-arg]


@contextmanager
def _only_listeners(trainer: pl.Trainer) -> Iterator[None]:
    """Within a step Lightning asks every callback at each of its hooks, a tenth of a millisecond in all for a dozen
    that have nothing to say: here it asks those that have. A checkpoint saved from such a hook lacks the others' state.
    """
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    listeners = [callback for callback in callbacks if any(_overrides(callback, hook) for hook in _STEP_HOOKS)]
    trainer.callbacks = listeners  # type: ignore[attr-defined]
    try:
        yield
    finally:
        trainer.callbacks = callbacks  # type: ignore[attr-defined]


def _overrides(callback: pl.Callback, hook: str) -> bool:
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(pl.Callback, hook)


def _in_calls(name: str, batches: int | float | None, steps_per_call: int) -> int | float | None:
    """A Trainer's setting in batches (an int) as one in calls; a fraction of the epoch's time stays what it is."""
    if not isinstance(batches, int):
        if name == "limit_train_batches" and batches not in (None, 0.0, 1.0):  # of calls, it would be more batches
            raise UserError(
                f"speed.steps_per_call: {name} is {batches}, a fraction of the epoch; give a number of batches that is "
                f"a multiple of {steps_per_call}, such as {10 * steps_per_call}"
            )
        return batches
    if batches % steps_per_call:
        raise UserError(
            f"speed.steps_per_call: {name} is {batches} batches, which is not a multiple of {steps_per_call}; "
            f"choose one, such as {steps_per_call * -(-batches // steps_per_call)}"
        )
    return batches // steps_per_call
