"""Several optimizer steps in one call of `training_step`: the cost of Lightning's loop is paid once for all of them."""

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
    """Trains a model with several batches in one call of `training_step`, by Lightning's manual optimization.

    Use this for networks so small that Lightning's loop takes as long as their steps. Weights, noise, schedules,
    accumulation, clipping and logged steps equal those of one batch in each call. Checkpoints, validation and the
    progress bar come between calls. `accumulate` is the number of batches whose gradients make one step.

    Args:
        model: The model.
        trainer: Its trainer, whose settings in batches become settings in calls.
        steps_per_call: The number of batches in a call.

    Raises:
        UserError: if a setting of the trainer is not a multiple of steps_per_call.
    """

    def __init__(self, model: SteppedModel, trainer: pl.Trainer, steps_per_call: int) -> None:
        for name in ("limit_train_batches", "val_check_interval"):
            setattr(trainer, name, _in_calls(name, getattr(trainer, name), steps_per_call))
        self.model, self.trainer, self.steps_per_call = model, trainer, steps_per_call
        self.accumulate, trainer.accumulate_grad_batches = trainer.accumulate_grad_batches, 1
        self.ended_in_call = False  # whether max_steps ended the fit before the last batch of a call

    def __call__(self, batches: Sequence[Batch], call: int) -> None:
        """Train on the batches of one call; stop when max_steps is reached.

        Args:
            batches: The batches.
            call: The number of the call in its epoch, from 0.
        """
        optimizer = self.model.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        last_call = call + 1 == self.trainer.num_training_batches
        logged = None
        with _only_listeners(self.trainer):
            for i, batch in enumerate(batches):
                if self.model.global_step == self.trainer.max_steps:
                    self.ended_in_call = True
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
            self._schedule("epoch")  # before validation, so that its checkpoint has the next epoch's learning rate
        self.count(self.model.global_step - 1 if logged is None else logged)

    def batches_of_epoch(self) -> float:
        """Return the number of batches in an epoch; infinite if the loader does not know it."""
        batches = getattr(self.trainer.train_dataloader, "num_batches", None)
        return math.inf if batches is None else min(batches, self.trainer.num_training_batches * self.steps_per_call)

    def count(self, steps: int) -> None:
        """Set the number of past steps in Lightning's loop, which counts calls; loggers use it as the x-axis."""
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = steps

    def _schedule(self, interval: str) -> None:
        """Step the schedulers as Lightning does under automatic optimization."""
        for config in self.trainer.lr_scheduler_configs:
            count = self.trainer.current_epoch + 1 if interval == "epoch" else self.model.global_step
            if config.interval == interval and count % config.frequency == 0 and not config.reduce_on_plateau:
                config.scheduler.step()  # type: ignore[call-arg]


@contextmanager
def _only_listeners(trainer: pl.Trainer) -> Iterator[None]:
    """Call only callbacks that override a hook within a step: calling all of them takes about 0.1 ms per step.

    A checkpoint saved by such a hook lacks the state of the other callbacks.
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
    """Convert a Trainer's setting in batches (an int) to calls; return a fraction of the epoch unchanged."""
    if not isinstance(batches, int):
        # a fraction of the calls would be other batches than that fraction of the batches
        if name == "limit_train_batches" and batches not in (None, 0.0, 1.0):
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
