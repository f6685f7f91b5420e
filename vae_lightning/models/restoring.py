"""Compare a checkpoint with the model, optimizers and callbacks that load it, and refuse one that does not fit."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer

from vae_lightning.runs.checkpoint_form import check_whole_fit, describe, is_number
from vae_lightning.types import UserError

# -- weights ----------------------------------------------------------------------------------------------------------


def check_fits(path: str | Path | None, checkpoint: Mapping[str, Any], model: nn.Module) -> None:
    """Raise unless the tensors of a checkpoint are those of `model`: the first that differs, and its two shapes.

    An average's second set of weights (`current_model_state`) is held to the same.
    """
    if (adapt := getattr(model, "adapt_to", None)) is not None:
        adapt(checkpoint["state_dict"])
    own = model.state_dict()
    for saved in (checkpoint["state_dict"], checkpoint.get("current_model_state", own)):
        for name in sorted(saved.keys() | own.keys()):
            found, wanted = shape_in(saved, name), shape_in(own, name)
            if found != wanted:
                raise UserError(f"{path} does not fit the model of the config: {name} is {found} there, {wanted} here")


def shape_in(state: Mapping[str, Any], name: str) -> str:
    """The shape of a tensor in words, with its dtype unless that is a float, which loading converts.

    Args:
        state: tensors by name, as in a `state_dict`.
        name: the tensor's name; it may be absent.
    """
    if name not in state:
        return "absent"
    value = state[name]
    if not isinstance(value, Tensor):
        return type(value).__name__
    return str(list(value.shape)) if value.is_floating_point() else describe(value)


# -- the state of callbacks -------------------------------------------------------------------------------------------

_CHECKED = ("lightning.", "pytorch_lightning.", "vae_lightning.")
"""Modules whose callbacks keep the types of their state. A user's own may hold None where it held a number."""


def check_restored(checkpoint: dict[str, Any], model: nn.Module, trainer: pl.Trainer) -> None:
    """Raise unless the weights fit `model` and the callbacks' states are of the form of their own; called before any is
    loaded. The files that a ModelCheckpoint knows are put right in `checkpoint` itself: see `own_files`."""
    path = trainer.ckpt_path
    check_fits(path, checkpoint, model)
    if trainer.state.fn == "fit":
        check_whole_fit(checkpoint, str(path))
    states = checkpoint.get("callbacks", {})
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        key = callback.state_key
        if not states.get(key):
            continue
        if type(callback).__module__.startswith(_CHECKED):
            own, name = callback.state_dict(), f"callback {key.partition('{')[0]}"
            if not is_overridden("load_state_dict", callback, pl.Callback):  # ExactResume reads its state itself
                own = _shared(own, states[key])
            _check_like(states[key], own, name, lengths=False)
        if isinstance(callback, ModelCheckpoint):
            states[key] = {**states[key], **own_files(callback, states[key], Path(trainer.default_root_dir))}


def own_files(callback: ModelCheckpoint, state: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """What a ModelCheckpoint may take over of its saved state: scores, of files in its own folder within `root`.

    Lightning deletes the files that it knows as the worst or the last. A checkpoint may name any file; and its run's
    folder may have moved, without which Lightning would forget the best score and overwrite best.ckpt.
    """
    fresh, folder = callback.state_dict(), str(callback.dirpath)
    old = str(state.get("dirpath"))

    def here(path: Any) -> str:
        path = Path(str(path))
        moved = Path(folder, path.relative_to(old) if path.is_relative_to(old) else path.name)
        try:
            parent, limits = moved.parent.resolve(), (Path(folder).resolve(), root.resolve())
            is_own = all(parent.is_relative_to(limit) for limit in limits) and moved.is_file()
        except (OSError, ValueError):  # no name of a file
            return ""
        return str(moved) if is_own else ""

    saved = state.get("best_k_models")
    scores = {
        here(path): score for path, score in (saved.items() if isinstance(saved, dict) else ()) if is_number(score)
    }
    scores.pop("", None)
    best, last = here(state.get("best_model_path")), here(state.get("last_model_path"))
    worst = min if callback.mode == "max" else max
    kth = worst(scores, key=lambda path: float(scores[path])) if len(scores) == callback.save_top_k else ""
    return {
        "dirpath": callback.dirpath,
        "best_k_models": scores,
        "best_model_path": best,
        "best_model_score": scores.get(best),
        "last_model_path": last,
        "kth_best_model_path": kth,
        "kth_value": scores.get(kth, fresh["kth_value"]),
    }


# -- the state of optimizers and schedulers ---------------------------------------------------------------------------


def check_training_state(checkpoint: Mapping[str, Any], trainer: pl.Trainer) -> None:
    """Raise unless what a fit goes on with fits its optimizers and schedulers: a fused step does not look at shapes."""
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    for name, own in (("optimizer_states", trainer.optimizers), ("lr_schedulers", schedulers)):
        if len(checkpoint[name]) != len(own):
            raise UserError(f"the checkpoint has {len(checkpoint[name])} {name}, expected {len(own)}: not loaded")
    for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=True):
        _check_optimizer(optimizer, state)
    for scheduler, state in zip(schedulers, checkpoint["lr_schedulers"], strict=True):
        _check_scheduler(scheduler, state)


def _check_scheduler(scheduler: Any, saved: Mapping[str, Any]) -> None:
    name, own = type(scheduler).__name__, scheduler.state_dict()
    needed = {key: value for key, value in own.items() if key == "last_epoch"}
    _check_like(saved, {**needed, **_shared(own, saved)}, name, lengths=True)
    for key in saved.keys() - own.keys():
        if hasattr(scheduler, str(key)):  # its state becomes its attributes: `step` would be no method any more
            raise UserError(f"the checkpoint's {name} has an entry {ascii(key)[:60]}: not loaded")


def _check_optimizer(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Against the state that one step with the saved settings leaves, of parameters of the same shapes."""
    name, groups = type(optimizer).__name__, saved["param_groups"]
    own_groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in groups] != [group["params"] for group in own_groups]:
        raise UserError(f"the checkpoint's {name} has other parameters than the model here: not loaded")
    for group, own_group in zip(groups, own_groups, strict=True):
        _check_like(group, _shared(own_group, group), f"{name}'s settings", lengths=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    after = _state_after_a_step(optimizer, groups)
    for index, state in saved["state"].items():
        if not (type(index) is int and 0 <= index < len(parameters) and isinstance(state, dict)):
            raise UserError(f"the checkpoint's {name} has a state of {ascii(index)[:60]}, which is no parameter here")
        if state:
            _check_state(
                state, after.get(index, {}), parameters[index].detach(), f"{name}'s state of parameter {index}"
            )


def _check_state(state: dict[str, Any], own: dict[str, Any], parameter: Tensor, name: str) -> None:
    """Raise unless `state` has each entry of `own` in its form; further tensors have the parameter's shape, or none."""
    _check_like(state, own, name, lengths=True)
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dim():
            like = own[key] if isinstance(own.get(key), Tensor) else parameter
            _check_like(value, like, f"{name}.{ascii(key)[:60]}", lengths=True)
            if value.stride() != like.stride():  # a fused step takes both for laid out alike
                state[key] = torch.empty_like(like, dtype=value.dtype, device=value.device).copy_(value)


def _state_after_a_step(optimizer: Optimizer, groups: list[dict[str, Any]]) -> dict[int, Any]:
    """The state, by the index of its parameter, of an optimizer like `optimizer` with the settings of `groups`."""
    probe = object.__new__(type(optimizer))
    probe.__dict__.update({k: v for k, v in vars(optimizer).items() if k != "step"})  # a scheduler puts its own there
    probe._optimizer_step_pre_hooks, probe._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    probe.state = defaultdict(dict)
    probe.param_groups = [
        {**group, "params": [_like_trained(p) for p in group["params"]]} for group in optimizer.param_groups
    ]
    if hasattr(probe, "_params"):  # of LBFGS
        probe._params = probe.param_groups[0]["params"]
    try:
        probe.load_state_dict({"state": {}, "param_groups": groups})
        type(optimizer).step(probe, lambda: 0.0)
    except Exception as error:  # whatever a setting of any type does to any optimizer
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the checkpoint's settings of {type(optimizer).__name__} allow no step: {reason}") from error
    state: dict[int, Any] = probe.state_dict()["state"]
    return state


def _like_trained(parameter: Tensor) -> nn.Parameter:
    like = nn.Parameter(torch.zeros_like(parameter))
    like.grad = torch.ones_like(like)
    return like


def _check_like(saved: Any, own: Any, name: str, lengths: bool) -> None:
    """Raise unless `saved` has the form of `own`: type, shape, a dict's entries, a list's length if `lengths`."""
    if own is None:
        return
    if isinstance(own, (dict, list, tuple)):
        if isinstance(own, dict):
            fits = isinstance(saved, dict) and own.keys() <= saved.keys()
        else:
            fits = isinstance(saved, (list, tuple)) and not (lengths and own and len(saved) != len(own))
    elif isinstance(own, Tensor):
        fits = isinstance(saved, Tensor) and _tensor_form(saved) == _tensor_form(own)
    elif isinstance(own, bool):
        fits = saved is None or isinstance(saved, bool)
    else:
        fits = is_number(saved) if isinstance(own, (int, float)) else isinstance(saved, type(own))
    if not fits:
        wanted = f"a dict with {', '.join(map(str, own))}" if isinstance(own, dict) and own else describe(own)
        raise UserError(f"the checkpoint's {name[:200]} is {describe(saved)}, expected {wanted[:300]}: not loaded")
    if isinstance(own, dict):
        for key, entry in own.items():
            _check_like(saved[key], entry, f"{name}.{key}", lengths)
    elif isinstance(own, (list, tuple)) and lengths:
        for index, entry in enumerate(own):
            _check_like(saved[index], entry, f"{name}[{index}]", lengths)


def _tensor_form(value: Tensor) -> tuple[Any, ...]:
    """Its shape and dtype; the dtype of a float with dimensions, which loading converts, is any float."""
    return list(value.shape), "float" if value.is_floating_point() and value.dim() > 0 else value.dtype


def _shared(own: Mapping[str, Any], saved: Any) -> dict[str, Any]:
    return {key: value for key, value in own.items() if isinstance(saved, dict) and key in saved}
