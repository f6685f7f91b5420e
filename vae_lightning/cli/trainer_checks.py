"""Refuse settings of Lightning that would fail late or have no effect, in one line that says what fits instead."""

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
from vae_lightning.types import UserError

_LARGEST_SEED = 2**32 - 1  # numpy's
_LEAST = {
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0,
    "log_every_n_steps": 0,
    "num_sanity_val_steps": -1,
}
_PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")  # the last three are old names of the others
_OUR_OWN = {
    "barebones": "a run writes metrics and checkpoints; leave it out",
    "default_root_dir": "a run's folder is <runs_dir>/<experiment>/<run id>; give --runs_dir",
    "enable_checkpointing": "a run is tested and goes on by its checkpoints; leave it out",
}
_SPLIT = ("fsdp", "deepspeed", "model_parallel", "modelparallel", "tensor_parallel", "tp", "xla_fsdp")
_AVERAGES = "Lightning tests the checkpoint of a run without these averages; --trainer.callbacks+=EMA averages here"
_REFUSED = {
    "BatchSizeFinder": "the run's config.yaml would keep another batch size; try some by --data.batch_size",
    "EMAWeightAveraging": _AVERAGES,
    "LearningRateFinder": "the rate is an argument of the optimizer; try some by --model.optimizer.lr",
    "ModelPruning": "it changes the weights between the validation and the checkpoint that is kept for it",
    "StochasticWeightAveraging": _AVERAGES,
    "WeightAveraging": _AVERAGES,
}


# -- before anything is built -----------------------------------------------------------------------------------------


def check_settings(given: Namespace) -> None:
    """Refuse arguments of a verb that are wrong by themselves, before anything is built.

    Raises:
        UserError: with the key, its value, and what fits.
    """
    seed, trainer = given.seed_everything, given.trainer
    if isinstance(seed, bool) or not 0 <= seed <= _LARGEST_SEED:
        raise UserError(f"seed_everything is {seed}; it must be a whole number from 0 to {_LARGEST_SEED}")
    for name, least in _LEAST.items():
        value = trainer[name]
        if value is not None and value < least:
            raise UserError(f"trainer.{name} is {value}; it must be at least {least}")
    if trainer.val_check_interval == 0:
        raise UserError(
            "trainer.val_check_interval is 0; it must be positive: batches, or a part of an epoch. To leave the "
            "validation out: --trainer.limit_val_batches=0"
        )
    if trainer.precision is not None and str(trainer.precision) not in _PRECISIONS:
        raise UserError(
            f"trainer.precision is {trainer.precision}; choose {', '.join(_PRECISIONS[:-3])}: weights and densities "
            "are float32 always, networks may run in less"
        )
    if trainer.profiler == "xla":
        raise UserError("trainer.profiler is xla, which is a TPU's; choose simple, advanced or pytorch")
    for name, why in _OUR_OWN.items():
        if trainer[name] not in (None, name == "enable_checkpointing"):
            raise UserError(f"trainer.{name} is {trainer[name]}: {why}")
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
            f"trainer.strategy is {name} ({method}): the weights and results of such processes are not brought back; "
            "choose ddp, which starts each process by this same command"
        )
    if name.lower().removesuffix("strategy").startswith(_SPLIT):
        raise _splits(name)


def _splits(name: str) -> UserError:
    return UserError(
        f"trainer.strategy is {name}: a strategy that splits the weights over devices is not supported, because steps "
        "and checkpoints here are of whole tensors; choose auto or ddp"
    )


def without_enums(value: Any) -> Any:
    """`value` with each Enum in it as its plain value, which YAML can write: Lightning has some among its defaults."""
    if isinstance(value, Namespace):
        for name, entry in vars(value).items():
            vars(value)[name] = without_enums(entry)
        return value
    if isinstance(value, list):
        return [without_enums(entry) for entry in value]
    return value.value if isinstance(value, Enum) else value


# -- once it is built -------------------------------------------------------------------------------------------------


def check_trainer(trainer: pl.Trainer, model: nn.Module) -> None:
    """Refuse a strategy that a run here cannot have, and a callback that wants another model."""
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        raise _splits(type(trainer.strategy).__name__)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BackboneFinetuning) and not hasattr(model, "backbone"):
            raise UserError(
                f"trainer.callbacks: {type(callback).__name__} wants a model with a part named backbone; "
                f"{type(model).__name__} has {', '.join(name for name, _ in model.named_children())}"
            )


class CheckedSettings(pl.Callback):
    """Before the first step of a fit: do metrics, schedules and callbacks fit the model and the length of the run?"""

    def on_sanity_check_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """One validation has been tried: what it has logged is what later ones will log."""
        known = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        for owner, name in _monitors(trainer):
            if known and name not in known and (name.startswith("val/") or f"val/{name}" in known):
                raise UserError(f"{owner}: no metric {name}; a validation logs {', '.join(known)}")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """After a run that goes on has taken its schedulers' state from the checkpoint."""
        if getattr(pl_module, "multi_step", None) is not None:  # its accumulation is settled before the first step
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, GradientAccumulationScheduler):
                    raise UserError(
                        "trainer.callbacks: GradientAccumulationScheduler does nothing with --speed.steps_per_call; "
                        "leave one of them out"
                    )
        for config in trainer.lr_scheduler_configs:
            for scheduler in _with_parts(config.scheduler):
                _check_length(scheduler, config.interval, trainer)


def _monitors(trainer: pl.Trainer) -> Iterator[tuple[str, str]]:
    """Who looks at which metric: callbacks, then schedulers."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if name := getattr(callback, "monitor", None):
            is_own = isinstance(callback, BestAndLast)
            yield "checkpoint.monitor" if is_own else f"trainer.callbacks: {type(callback).__name__}", str(name)
    for config in trainer.lr_scheduler_configs:
        if config.monitor:
            yield f"model.scheduler: {type(config.scheduler).__name__}", config.monitor


def _with_parts(scheduler: Any) -> Iterator[Any]:
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _with_parts(part)


def _check_length(scheduler: Any, interval: str, trainer: pl.Trainer) -> None:
    """OneCycleLR refuses a step beyond its last one; PolynomialLR has a rate of zero from there on."""
    if not isinstance(scheduler, (OneCycleLR, PolynomialLR)):
        return
    key = "total_steps" if isinstance(scheduler, OneCycleLR) else "total_iters"
    own = getattr(scheduler, key)
    length = _length(interval, trainer)
    if length is not None and length <= own:
        return
    run = f"the run has {length} {interval}s" if length else f"the run's number of {interval}s is not known"
    said = f"model.scheduler: {type(scheduler).__name__} ends after {key} = {own} {interval}s, and {run}"
    if isinstance(scheduler, OneCycleLR):
        raise UserError(f"{said}; give {key} of the run's length, or --trainer.max_{interval}s={own}")
    if trainer.is_global_zero:
        print(f"WARNING: {said}: the rate is 0 from there on", flush=True)


def _length(interval: str, trainer: pl.Trainer) -> int | None:
    """Steps of a scheduler in the whole run; None if nothing but time or a metric ends the run."""
    epochs = trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs >= 0 else None
    if interval == "epoch":  # an epoch that max_steps cuts does not count
        known = [epochs, trainer.max_steps // _steps_of_epoch(0, trainer) if trainer.max_steps >= 0 else None]
    else:
        by_epochs = None if epochs is None else sum(_steps_of_epoch(epoch, trainer) for epoch in range(epochs))
        known = [by_epochs, trainer.max_steps if trainer.max_steps >= 0 else None]
    return min((length for length in known if length is not None), default=None)


def _steps_of_epoch(epoch: int, trainer: pl.Trainer) -> int:
    """With several steps a call, whose last call may be short, the least that there can be."""
    multi_step = getattr(trainer.lightning_module, "multi_step", None)
    accumulate, batches = trainer.accumulate_grad_batches, int(trainer.num_training_batches)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            accumulate = callback.get_accumulate_grad_batches(epoch)
    if multi_step is not None:
        accumulate, batches = multi_step.accumulate, (batches - 1) * multi_step.steps_per_call + 1
    return -(-batches // accumulate)


# -- once Lightning has refused ---------------------------------------------------------------------------------------


def refusal(error: Exception) -> str | None:
    """The words of Lightning, or of torch's optimizers, in one line, if they raised `error` on purpose; else None.

    On purpose: by a `raise` in their own code. An error that comes up there in any other way is a bug, whose trace
    somebody needs.
    """
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return None
    code, module = traceback.tb_frame.f_code, str(traceback.tb_frame.f_globals.get("__name__"))
    is_setting = isinstance(error, ArithmeticError) and module.startswith("torch.optim.")  # StepLR of 0 divides by it
    is_raise = linecache.getline(code.co_filename, traceback.tb_lineno).lstrip().startswith("raise")
    if not (is_setting or isinstance(error, MisconfigurationException)) and not (
        is_raise and module.startswith(("lightning.", "torch.optim."))
    ):
        return None
    text = re.sub(r"<[\w.]*?(\w+) object at 0x\w+>", r"\1", " ".join(str(error).split()))
    where = "optimizer or scheduler" if module.startswith("torch.") else "trainer"
    return f"{where}: {text or f'{type(error).__name__} in {code.co_qualname}'}"
