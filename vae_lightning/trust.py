"""Files that may be anyone's: plain data is read, and named classes are looked up only where they are known ones.

To look a class up is to import its module, and to import is to run code.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from vae_lightning.checkpoint_io import check_whole
from vae_lightning.types import UserError

TRUSTED = ("vae_lightning.", "torch.nn.", "torch.optim.", "torch.distributions.", "lightning.pytorch.cli.ReduceLR")
"""How the names that a file may hold begin: of these modules, and of nothing else, classes are built from a file."""

_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # the one function that Lightning's checkpoints name
_OLD_KEYS = ("hparams", "module_arguments")  # which Lightning still mixes into the hyper-parameters
# A string is read as YAML once more, in which quotes, braces and escapes can hide a name
_PLAIN = re.compile(r"[\w .,+-]*")


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address, such as `s3://bucket/last.ckpt`; `Path` makes one slash of its two."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+:+/", str(path)) is not None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The contents of a checkpoint of this project. Nothing in it is run: `weights_only` loading.

    Raises:
        UserError: where the file is missing, damaged, or not a checkpoint of a Lightning module with its class path.
    """
    if is_remote(path):
        raise UserError(f"{path}: an address, expected a file on this machine")
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
    if not known or not isinstance(parts["hyper_parameters"].get("_class_path"), str):
        raise UserError(f"{path}: not a checkpoint of vae_lightning (it has no state_dict with its hyper_parameters)")
    return dict(parts)


def check_checkpoint(checkpoint: Mapping[str, Any], path: str | Path, trusted: tuple[str, ...] = TRUSTED) -> None:
    """Raise where a checkpoint's hyper-parameters could bring anything but classes of `trusted` modules to be built.

    Nothing is imported before its name has passed. Functions are refused: `torch.hub.load` would run what it loads.

    Raises:
        UserError: with the name, or the string, that is refused.
    """
    for key in _OLD_KEYS:
        if key in checkpoint:
            raise UserError(
                f"{path}: has {key!r} beside its hyper_parameters, as no checkpoint of ours has: not loaded"
            )
    hparams = dict(checkpoint["hyper_parameters"])
    instantiator = hparams.pop("_instantiator", _INSTANTIATOR)
    if instantiator != _INSTANTIATOR:
        raise UserError(f"{path}: _instantiator is {instantiator!r}, expected {_INSTANTIATOR}: not loaded")
    check_names(hparams, path, trusted)


def check_names(value: Any, path: str | Path, trusted: tuple[str, ...] = TRUSTED) -> None:
    """Raise where plain data (a recipe, a configuration) names what is no class of a trusted module, or hides a name.

    Raises:
        UserError: with the name, or the string, that is refused.
    """
    try:
        names = sorted({name for text in _strings(value, path) for name in _names(text, path)})
    except RecursionError:
        raise UserError(f"{path}: its hyper-parameters are nested without end: not loaded") from None
    for name in names:
        if not name.startswith(trusted):
            known = ", ".join(dict.fromkeys(".".join(module.split(".")[:2]).rstrip(".") for module in trusted))
            raise UserError(f"{path}: names {name}, which is not of {known}: not loaded")
    for name in names:
        if not _is_class(name):
            raise UserError(f"{path}: names {name}, which is no class of this version: not loaded")


def _strings(value: Any, path: str | Path) -> Iterator[str]:
    """Every string in plain data, the keys of dicts too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for entry in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            yield from _strings(entry, path)
    elif not (value is None or isinstance(value, (bool, int, float))):
        raise UserError(f"{path}: holds a {type(value).__name__} where names and numbers are expected: not loaded")


def _names(text: str, path: str | Path) -> list[str]:
    """The words of a string that can be imported: identifiers with dots between them."""
    if not _PLAIN.fullmatch(text) or Path(text).is_file():  # a slot would read the file as YAML
        raise UserError(f"{path}: holds {text[:60]!r}, expected a name or a plain word: not loaded")
    return [word for word in text.split() if "." in word and all(part.isidentifier() for part in word.split("."))]


def _is_class(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        return isinstance(getattr(importlib.import_module(module), attribute, None), type)
    except ImportError:
        return False
