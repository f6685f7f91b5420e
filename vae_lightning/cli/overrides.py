"""Add the defaults of a class to the command line if a flag puts the class into a slot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from vae_lightning.cli.slots import slots, subclasses
from vae_lightning.recipes import defaults

_LINKED = {"data.seed"}  # jsonargparse computes these from other settings and refuses them on the command line
_PLAIN = (bool, int, float, str, tuple)  # not None: jsonargparse reads a class's null as the word "null"


def with_own_defaults(args: Sequence[str]) -> list[str]:
    """Insert IWAE's defaults after each `--model.objective=IWAE`, without those that a flag or a file sets.

    jsonargparse passes the arguments of the replaced class to the new class if the names fit, even if they were
    defaults: IWAE in the place of the default ELBO would get ELBO's K = 1. A value that a file or a flag sets is kept.
    Classes of other packages are left to jsonargparse.

    Args:
        args: The command line.

    Returns:
        The command line with the defaults inserted.
    """
    flags, bases = list(_flags(args)), slots()
    set_keys = {key for _, name, value in flags for key in _keys_set_by(name, value)}
    expanded: list[str] = []
    for tokens, name, value in flags:
        expanded += tokens
        for argument, default in _defaults_of(bases.get(name.rpartition(".")[2]), value).items():
            key = f"{name}.{argument}"
            if key not in _LINKED and not any(one == key or one.startswith(f"{key}.") for one in set_keys):
                expanded.append(f"--{key}={default if isinstance(default, str) else json.dumps(default)}")
    return expanded


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


def _keys_set_by(name: str, value: str) -> Iterator[str]:
    """Yield the keys that a flag sets: its own name, or the keys in a config file or in a class written as YAML."""
    if name in ("c", "config"):
        yield from _keys(yaml.safe_load(Path(value).read_text()) if Path(value).is_file() else None, "")
    else:
        yield name
        with suppress(yaml.YAMLError):  # jsonargparse reports the mistake later
            yield from _keys(yaml.safe_load(value) if value.lstrip().startswith("{") else None, name)


def _keys(tree: Any, name: str) -> Iterator[str]:
    for key, value in tree.items() if isinstance(tree, Mapping) else ():
        inner = _plain_name(f"{name}.{key}".strip("."))
        yield inner
        yield from _keys(value, inner)


def _defaults_of(base: type | None, value: str) -> dict[str, Any]:
    """Return the plain defaults of the class that a flag puts into a slot, without arguments that have no flag.

    Args:
        base: The base class of the slot; None if the flag sets no slot.
        value: The value of the flag.
    """
    known = {cls.__name__: cls for cls in subclasses(base)} if base else {}
    cls = known.get(value.rpartition(".")[2])
    if cls is None:
        return {}
    # a constructor may fix an argument of its base class: then the argument has a default, and no flag
    flags = ArgumentParser(exit_on_error=False).add_class_arguments(cls, fail_untyped=False)
    return {name: one for name, one in defaults(cls).items() if isinstance(one, _PLAIN) and name in flags}
