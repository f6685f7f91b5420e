"""Add the defaults of a class to the command line if a flag or a config file puts the class into a slot."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser

from vae_lightning.cli.slots import slots, subclasses
from vae_lightning.recipes import arguments

_LINKED = {"data.seed"}  # jsonargparse computes these from other settings and refuses them on the command line


def with_own_defaults(args: Sequence[str]) -> list[str]:
    """Insert a class's defaults after the flag or the file that names the class, without those that the user has set.

    jsonargparse passes the arguments of the replaced class to the new class if the names fit, even if they were
    defaults: IWAE in the place of the default ELBO would get ELBO's K = 1, and AdamW in the place of Adam no weight
    decay. A value that a file or a flag sets is kept. Defaults that YAML cannot write are left to jsonargparse.

    Args:
        args: The command line.

    Returns:
        The command line with the defaults inserted.
    """
    flags, bases = list(_flags(args)), _bases()
    settings = [list(_settings(name, value)) for _, name, value in flags]
    set_keys = {key for of_one in settings for key, _ in of_one}
    expanded: list[str] = []
    for (tokens, _, _), of_one in zip(flags, settings, strict=True):
        expanded += tokens
        for name, value in of_one:
            for argument, default in _defaults_of(_base(name, bases), value, bases).items():
                key = f"{name}.{argument}"
                if key not in _LINKED and not any(one == key or one.startswith(f"{key}.") for one in set_keys):
                    expanded.append(_flag(name, argument, default))
    return expanded


def _bases() -> dict[str, type]:
    """The base class of each slot by the slot's name, torch's too."""
    return {"optimizer": torch.optim.Optimizer, "scheduler": torch.optim.lr_scheduler.LRScheduler, **slots()}


def _base(name: str, bases: Mapping[str, type]) -> type | None:
    """The base class of the slot of this name; None if it is no slot, as a key `model` in the notes for W&B is none."""
    return bases.get(name.rpartition(".")[2]) if name.partition(".")[0] in ("model", "data") else None


def _flags(args: Sequence[str]) -> Iterator[tuple[Sequence[str], str, str]]:
    """Yield for each argument its tokens, its name without `init_args` and `class_path`, and its value."""
    rest = list(args)
    while rest:
        token = rest.pop(0)
        name, is_one, value = token.partition("=")
        tokens = [token]
        if token.startswith("-") and not is_one and rest and not rest[0].startswith("-"):
            value = rest.pop(0)
            tokens.append(value)
        yield tokens, _plain_name(name.lstrip("-")), value


def _plain_name(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ("init_args", "class_path"))


def _settings(name: str, value: str) -> Iterator[tuple[str, str]]:
    """Yield the keys that a flag sets, each with its value if that is text: of a file, those in the file.

    The key of a class is that of its slot, and its value is the name or the path of the class.
    """
    if name in ("c", "config"):
        yield from _leaves(yaml.safe_load(Path(value).read_text()) if Path(value).is_file() else None, "")
    else:
        yield name, value
        with suppress(yaml.YAMLError):  # jsonargparse reports the mistake later
            yield from _leaves(yaml.safe_load(value) if value.lstrip().startswith("{") else None, name)


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, str]]:
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        inner = _plain_name(f"{name}.{key}".strip("."))
        yield inner, value if isinstance(value, str) else ""
        yield from _leaves(value, inner)


def _class(base: type | None, value: str) -> type | None:
    """The class that a value names in a slot: by the name of a class derived from `base`, or by its path.

    Args:
        base: The base class of the slot; None if the setting is no slot.
        value: The value of the setting.
    """
    if base is None:
        return None
    known = {cls.__name__: cls for cls in subclasses(base)}
    module, _, name = value.rpartition(".")
    if module:
        with suppress(Exception):  # whatever a user's own file raises, jsonargparse reports later
            cls = getattr(importlib.import_module(module), name)
            return cls if isinstance(cls, type) else None
    return known.get(name)


def _defaults_of(base: type | None, value: str, slots: Container[str]) -> dict[str, Any]:
    """The defaults of the class that a value names in a slot, as YAML has them, without arguments that have no flag.

    A default is left out if no class of the slot has another. So is a class that is the default of a slot: it is the
    same in the class before, or a file says otherwise. So is what YAML cannot write, such as an Enum, and None, which
    jsonargparse does not take for a class within a class.

    Args:
        base: The base class of the slot; None if the setting is no slot.
        value: The value of the setting.
        slots: The names of all slots.
    """
    cls = _class(base, value)
    if base is None or cls is None:
        return {}
    own, others = _arguments(cls), [_arguments(other) for other in subclasses(base) - {cls}]
    differ = [
        name for name, default in own.items() if any(name in one and _is_other(default, one[name]) for one in others)
    ]
    # a constructor may fix an argument of its base class: then the argument has a default, and no flag
    flags = _flags_of(cls) if differ else []
    written = {}
    for name in differ:
        if name not in flags or (isinstance(own[name], type) and name in slots):
            continue
        with suppress(_NotYAMLError):
            written[name] = _as_yaml(own[name])
    return written


@cache
def _flags_of(cls: type) -> list[str]:
    """The arguments of a class that have a flag."""
    return ArgumentParser(exit_on_error=False).add_class_arguments(cls, fail_untyped=False)


@cache
def _arguments(cls: type) -> dict[str, Any]:
    """The defaults of a class's arguments by name."""
    return {name: one.default for name, one in arguments(cls).items()}


def _is_other(default: Any, other: Any) -> bool:
    """Whether `other` is a default that would be taken for `default`; True and 1 are two."""
    return (
        other is not inspect.Parameter.empty and other is not None and (type(other), other) != (type(default), default)
    )


class _NotYAMLError(Exception):
    """A value that YAML cannot write, or that the parser would read as another."""


def _as_yaml(default: Any) -> Any:
    """The default as YAML has it: a class by its path, a tuple as a list.

    Types are compared exactly, because the member of an IntEnum is a number too, and the parser wants its name.
    """
    if isinstance(default, type) and default is not inspect.Parameter.empty and "<locals>" not in default.__qualname__:
        return f"{default.__module__}.{default.__qualname__}"
    if type(default) in (list, tuple):
        if any(isinstance(one, type) for one in default):
            raise _NotYAMLError
        return [_as_yaml(one) for one in default]
    if type(default) not in (bool, int, float, str):
        raise _NotYAMLError
    return default


def _flag(slot: str, argument: str, default: Any) -> str:
    """The flag that sets an argument of the class in a slot.

    Of `--slot.argument=` and the text "[1]" jsonargparse makes a list, and of [.inf] a list of a word; within a mapping
    it does not.
    """
    text = yaml.safe_dump([default], default_flow_style=True, width=math.inf, allow_unicode=True).strip()[1:-1]
    is_word = isinstance(default, str) and text == default
    if is_word or not (isinstance(default, str) or any(special in text for special in (".inf", ".nan"))):
        return f"--{slot}.{argument}={text}"
    return f"--{slot}={{init_args: {{{argument}: {text}}}}}"
