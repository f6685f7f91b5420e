"""Refuse settings of Lightning that would fail late or have no effect, in one line that names a setting that works."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from enum import Enum
from typing import Any

import lightning.pytorch as pl
from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    GradientAccumulationScheduler,
)
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, PolynomialLR

from vae_lightning.callbacks import BestAndLast
from vae_lightning.data import DataModule
from vae_lightning.types import UserError

_LARGEST_SEED = 2**32 - 1  # numpy's
_MINIMA = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
}
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")  # the last three are old names
_FIXED = {
    "barebones": "a run writes metrics and checkpoints; leave it out",
    "default_root_dir": "a run's folder is <runs_dir>/<experiment>/<run id>; give --runs_dir",
    "enable_checkpointing": "a test and a resumed fit need the run's checkpoints; leave it out",
}
_SHARDED = ("fsdp", "deepspeed", "model_parallel", "modelparallel", "tensor_parallel", "tp", "xla_fsdp")
_AVERAGES = "Lightning tests a run's checkpoint without these averages; use --trainer.callbacks+=EMA instead"
_REFUSED = {
    "BatchSizeFinder": "the run's config.yaml would record another batch size; try values of --data.batch_size",
    "EMAWeightAveraging": _AVERAGES,
    "LearningRateFinder": "the rate is an argument of the optimizer; try values of --model.optimizer.lr",
    "ModelPruning": "it changes the weights between a validation and the validation's checkpoint",
    "StochasticWeightAveraging": _AVERAGES,
    "WeightAveraging": _AVERAGES,
}


# -- before anything is built -----------------------------------------------------------------------------------------


def check_settings(settings: Namespace) -> None:
    """Refuse settings whose values alone are wrong, before anything is built.

    Args:
        settings: The parsed command line of a command.

    Raises:
        UserError: with the key, its value, and a value that works.
    """
    seed, trainer = settings.seed_everything, settings.trainer
    if isinstance(seed, bool) or not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"seed_everything is {seed}; it must be a whole number from 0 to {_LARGEST_SEED}")
    for name, minimum in _MINIMA.items():
        value = trainer[name]
        if value is not None and value < minimum:
            raise UserError(f"trainer.{name} is {value}; it must be at least {minimum}")
    if trainer.val_check_interval == 0:
        raise UserError(
            "trainer.val_check_interval is 0; it must be a positive number of batches or part of an epoch. To leave "
            "out the validation: --trainer.limit_val_batches=0"
        )
    if trainer.precision is not None and str(trainer.precision) not in _PRECISIONS:
        raise UserError(
            f"trainer.precision is {trainer.precision}; choose {', '.join(_PRECISIONS[:-3])}: weights and densities "
            "are always float32, only networks may run in less"
        )
    if trainer.profiler == "xla":
        raise UserError("trainer.profiler is xla, which needs a TPU; choose simple, advanced or pytorch")
    for name, reason in _FIXED.items():
        if trainer[name] not in (None, name == "enable_checkpointing"):
            raise UserError(f"trainer.{name} is {trainer[name]}: {reason}")
    for callback in trainer.callbacks or []:
        package, _, name = callback.class_path.rpartition(".")
        if name in _REFUSED and package.startswith(("lightning.", "pytorch_lightning.")):
            raise UserError(f"trainer.callbacks: {name}: {_REFUSED[name]}")
    _check_strategy_name(trainer.strategy)


def _check_strategy_name(strategy: Any) -> None:
    if isinstance(strategy, Namespace):
        name = strategy.class_path.rpartition(".")[2]
        method = (strategy.get("init_args") or {}).get("start_method", "popen")
    else:
        name, method = str(strategy), str(strategy).partition("ddp_")[2].partition("_")[0]
    if method in ("spawn", "fork", "forkserver", "notebook"):
        raise UserError(
            f"trainer.strategy is {name} ({method}): Lightning does not copy back the weights and results of such "
            "processes; choose ddp, which starts each process by this same command"
        )
    if name.lower().removesuffix("strategy").startswith(_SHARDED):
        raise _sharded(name)


def _sharded(name: str) -> UserError:
    return UserError(
        f"trainer.strategy is {name}: a strategy that splits the weights over devices is not supported, because steps "
        "and checkpoints need whole tensors; choose auto or ddp"
    )


def without_enums(value: Any) -> Any:
    """Replace each Enum in a setting, such as in Lightning's defaults, by its plain value: YAML cannot write an Enum.

    Args:
        value: A setting: a Namespace, which is changed in place, a list, or a single value.

    Returns:
        The setting without Enums.
    """
    if isinstance(value, Namespace):
        for name, entry in vars(value).items():
            vars(value)[name] = without_enums(entry)
        return value
    if isinstance(value, list):
        return [without_enums(entry) for entry in value]
    return value.value if isinstance(value, Enum) else value


# -- after everything is built ----------------------------------------------------------------------------------------


def check_trainer(trainer: pl.Trainer, model: nn.Module) -> None:
    """Refuse a strategy that is not supported, and a callback that needs another model.

    Args:
        trainer: The trainer with its callbacks.
        model: The model of the run.

    Raises:
        UserError: with the strategy or the callback.
    """
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise _sharded(type(trainer.strategy).__name__)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BackboneFinetuning) and not hasattr(model, "backbone"):
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} needs a model with a part named backbone; "
                f"{type(model).__name__} has {', '.join(name for name, _ in model.named_children())}"
            )


class CheckedSettings(pl.Callback):
    """Checks before the first step that each monitored metric exists, and that schedules and callbacks fit the run."""

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the monitored metrics with the metrics of the trial validation; later validations log the same."""
        logged = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        for owner, name in _monitors(trainer):
            if logged and name not in logged and (name.startswith("val/") or f"val/{name}" in logged):
                raise UserError(f"{owner}: no metric {name}; a validation logs {', '.join(logged)}")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check accumulation, batches and schedules; a resumed run has restored its schedules by now."""
        if getattr(pl_module, "multi_step", None) is not None:  # its accumulation is fixed before the first step
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, GradientAccumulationScheduler):
                    raise UserError(
                        "trainer.callbacks: GradientAccumulationScheduler does nothing with --speed.steps_per_call; "
                        "leave one of them out"
                    )
        _check_batch_statistics(trainer, pl_module)
        for config in trainer.lr_scheduler_configs:
            for scheduler in _with_parts(config.scheduler):
                _check_length(scheduler, config.interval, trainer)


def _check_batch_statistics(trainer: pl.Trainer, model: pl.LightningModule) -> None:
    """Refuse batches of one example for a BatchNorm1d, which torch would meet at the end of the first epoch."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, DataModule) or not any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        return
    num_examples = len(data.examples("train")) // trainer.world_size
    num_calls = -(-num_examples // (data.batch_size * data.batches_per_call))
    is_whole = trainer.num_training_batches >= num_calls  # limit_train_batches may leave the last batch out
    if data.batch_size == 1 or (is_whole and num_examples % data.batch_size == 1):
        raise UserError(
            "model: BatchNorm1d needs two or more examples in each batch, and the last batch of an epoch has one "
            f"({num_examples:,} examples{' a rank' * (trainer.world_size > 1)}, data.batch_size={data.batch_size}); "
            "choose another --data.batch_size"
        )


def _monitors(trainer: pl.Trainer) -> Iterator[tuple[str, str]]:
    """Yield each monitored metric with its owner: the key of a callback or a scheduler."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if name := getattr(callback, "monitor", None):
            is_linked = isinstance(callback, BestAndLast)
            yield "checkpoint.monitor" if is_linked else f"trainer.callbacks: {type(callback).__name__}", str(name)
    for config in trainer.lr_scheduler_configs:
        if config.monitor:
            yield f"model.scheduler: {type(config.scheduler).__name__}", config.monitor


def _with_parts(scheduler: Any) -> Iterator[Any]:
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _with_parts(part)


def _check_length(scheduler: Any, interval: str, trainer: pl.Trainer) -> None:
    """Compare a schedule's length with the run's; after its end OneCycleLR raises, and PolynomialLR has a rate of 0."""
    if not isinstance(scheduler, (OneCycleLR, PolynomialLR)):
        return
    key = "total_steps" if isinstance(scheduler, OneCycleLR) else "total_iters"
    schedule_length = getattr(scheduler, key)
    length = _length(interval, trainer)
    if length is not None and length <= schedule_length:
        return
    run = f"the run has {length} {interval}s" if length else f"the run's number of {interval}s is not known"
    problem = f"model.scheduler: {type(scheduler).__name__} ends after {key} = {schedule_length} {interval}s, and {run}"
    if isinstance(scheduler, OneCycleLR):
        raise UserError(f"{problem}; give the run's length as {key}, or --trainer.max_{interval}s={schedule_length}")
    if trainer.is_global_zero:
        print(f"WARNING: {problem}: the rate is 0 after that", flush=True)


def _length(interval: str, trainer: pl.Trainer) -> int | None:
    """Return the number of a scheduler's steps in the whole run; None if only time or a metric ends the run."""
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
    if interval == "epoch":  # an epoch that max_steps cuts short does not count
        limits = [epochs, trainer.max_steps // _steps_of_epoch(0, trainer) if trainer.max_steps >= 0 else None]
    else:
        by_epochs = None if epochs is None else sum(_steps_of_epoch(epoch, trainer) for epoch in range(epochs))
        limits = [by_epochs, trainer.max_steps if trainer.max_steps >= 0 else None]
    return min((length for length in limits if length is not None), default=None)


def _steps_of_epoch(epoch: int, trainer: pl.Trainer) -> int:
    """Return the optimizer steps of an epoch; with `speed.steps_per_call`, at least: the last call may be short."""
    multi_step = getattr(trainer.lightning_module, "multi_step", None)
    accumulate, batches = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            accumulate = callback.get_accumulate_grad_batches(epoch)
    if multi_step is not None:
        accumulate, batches = multi_step.accumulate, (batches - 1) * multi_step.steps_per_call + 1
    return -(-batches // accumulate)


# -- after Lightning has raised an error ------------------------------------------------------------------------------


def refusal(error: Exception) -> str | None:
    """Return the message of Lightning or torch's optimizers in one line if they refused a setting; else None.

    They refuse by a `raise` statement in their own code. Any other error is a bug, and its traceback must be shown.

    Args:
        error: The error that ended the run.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return None
    code, module = traceback.tb_frame.f_code, str(traceback.tb_frame.f_globals.get("__name__"))
    # StepLR(step_size=0) divides by 0
    is_setting = isinstance(error, ArithmeticError) and module.startswith("torch.optim.")
    is_raise = linecache.getline(code.co_filename, traceback.tb_lineno).lstrip().startswith("raise")
    if not (is_setting or isinstance(error, MisconfigurationException)) and not (
        is_raise and module.startswith(("lightning.", "torch.optim."))
    ):
        return None
    text = re.sub(r"<[\w.]*?(\w+) object at 0x\w+>", r"\1", " ".join(str(error).split()))
    source = "optimizer or scheduler" if module.startswith("torch.") else "trainer"
    return f"{source}: {text or f'{type(error).__name__} in {code.co_qualname}'}"
