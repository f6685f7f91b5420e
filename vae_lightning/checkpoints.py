"""Reading checkpoints: plain data only, classes of known packages only, errors in one line."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from vae_lightning.checkpoint_io import check_whole
from vae_lightning.models import LatentVariableModel
from vae_lightning.types import UserError

TRUSTED_PACKAGES = ("vae_lightning", "torch", "lightning")
"""A checkpoint names classes, and building one imports its module: so only these packages are built from a file."""
_NOT_SHOWN = ("optimizer", "scheduler", "_")


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint of this project. Nothing in it is run: `weights_only` loading.

    Raises:
        UserError: where the file is missing, damaged, or not a checkpoint of a Lightning module with its class path.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; a run keeps them in runs/<experiment>/<run id>/checkpoints/")
    check_whole(path)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises OSError, EOFError, UnpicklingError or RuntimeError, by where it broke
        raise UserError(f"{path}: not a readable checkpoint: more in it than plain data, or not torch's") from error
    parts = checkpoint if isinstance(checkpoint, dict) else {}
    known = all(isinstance(parts.get(name), dict) for name in ("state_dict", "hyper_parameters"))
    if not known or "_class_path" not in parts["hyper_parameters"]:
        raise UserError(f"{path}: not a checkpoint of vae_lightning (it has no state_dict with its hyper_parameters)")
    return dict(parts)


def load_model(path: str | Path) -> LatentVariableModel:
    """The model in a checkpoint, whatever its class, in evaluation mode on the CPU."""
    hparams = read_checkpoint(path)["hyper_parameters"]
    refuse_foreign_classes(hparams, path)
    module, _, name = hparams["_class_path"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
        if not issubclass(cls, LatentVariableModel):
            raise TypeError(f"{name} is no model of vae_lightning")
        model: LatentVariableModel = cls.load_from_checkpoint(path, map_location="cpu")
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError, argparse.ArgumentError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: its model cannot be built, or its weights do not fit it: {reason}") from error
    return model.eval()


def check_fits(path: str | Path | None, checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Raise where the tensors of a checkpoint are not those of `model`: the first that differs, and its two shapes."""
    saved, own = checkpoint["state_dict"], model.state_dict()
    for name in sorted(saved.keys() | own.keys()):
        found, wanted = _shape(saved, name), _shape(own, name)
        if found != wanted:
            raise UserError(f"{path} does not fit the model of the config: {name} is {found} there, {wanted} here")


def _shape(state: dict[str, Any], name: str) -> str:
    return str(list(state[name].shape)) if name in state else "absent"


def refuse_foreign_classes(value: Any, path: Path | str) -> None:
    """Raise where a string in `value` could name a class of another package: to look it up is to import it."""
    for name in _dotted_names(value):
        if name.split(".")[0] not in TRUSTED_PACKAGES:
            raise UserError(f"{path}: names {name}, which is not of {', '.join(TRUSTED_PACKAGES)}: not loaded")


def _dotted_names(value: Any) -> Iterator[str]:
    if isinstance(value, str) and all(part.isidentifier() for part in value.split(".")) and "." in value:
        yield value
    entries = [*value.keys(), *value.values()] if isinstance(value, dict) else value
    if isinstance(entries, (list, tuple)):
        for entry in entries:
            yield from _dotted_names(entry)


def differences(checkpoint: dict[str, Any], model: LatentVariableModel) -> list[str]:
    """What the checkpoint's model was built with where `model` is built otherwise: `key: there -> here`."""
    both = (dict(checkpoint["hyper_parameters"]), dict(model.hparams))
    return _unequal(*({k: v for k, v in _flat(_named(hparams)) if not k.startswith(_NOT_SHOWN)} for hparams in both))


def changes(config: Path, text: str) -> list[str]:
    """What a run's own config says and `text` says otherwise: `key: there -> here`."""
    return _unequal(*(dict(_flat(_named(yaml.safe_load(source)))) for source in (config.read_text(), text)))


def _unequal(saved: dict[str, str], own: dict[str, str]) -> list[str]:
    names = sorted(name for name in saved.keys() | own.keys() if saved.get(name) != own.get(name))
    return [f"{name}: {saved.get(name)} -> {own.get(name)}" for name in names]


def _named(value: Any) -> Any:
    """Classes by their last name alone: Python and YAML write the same one by different paths."""
    if isinstance(value, dict):
        return {key: _named(entry) for key, entry in value.items()}
    return value.rpartition(".")[2] if isinstance(value, str) else value


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, entry in value.items():
            name = prefix if key in ("class_path", "init_args") else f"{prefix}.{key}".strip(".")
            yield from _flat(entry, name)
    else:
        yield prefix, str(list(value) if isinstance(value, tuple) else value)
