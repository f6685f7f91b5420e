"""Recipes as plain data: the form in which a checkpoint stores `functools.partial(MLP, hidden_sizes=(400,))`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from vae_lightning.types import UserError


def to_plain(value: Any, where: str = "") -> Any:
    """A class, a partial of a class or a dataclass as `{class_path, init_args}`, the form of the YAML files.

    Args:
        value: The recipe; plain values and containers of recipes are allowed too.
        where: The argument's name, for messages.

    Raises:
        UserError: if a checkpoint could rebuild `value` only by running code (a lambda, a module instance).
    """
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(k): to_plain(v, f"{where}.{k}") for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(v, where) for v in value]
    if isinstance(value, type):
        return _spec(value, {}, where)
    if isinstance(value, partial):
        recipe = without_instantiator(value)
        if isinstance(recipe.func, type):
            return _spec(recipe.func, recipe.keywords, where)
    if dataclasses.is_dataclass(value):
        return _spec(type(value), {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}, where)
    raise UserError(
        f"{where}: a checkpoint cannot rebuild {value!r}; give a class, or functools.partial(Class, name=value)"
    )


def _spec(cls: type, init_args: Mapping[str, Any], where: str) -> dict[str, Any]:
    if "<locals>" in cls.__qualname__:
        raise UserError(f"{where}: {cls.__qualname__} is defined in a function; a checkpoint needs an importable class")
    args = {**defaults(cls), **init_args}
    plain = {name: to_plain(value, f"{where}.{name}") for name, value in args.items()}
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", **({"init_args": plain} if plain else {})}


def defaults(cls: type) -> dict[str, Any]:
    """The default arguments of one of our classes, so that a checkpoint does not change if a default changes.

    Empty for classes of other packages, which keep their own defaults.
    """
    if not cls.__module__.startswith("vae_lightning."):
        return {}
    return {p.name: p.default for p in arguments(cls).values() if p.default is not inspect.Parameter.empty}


def arguments(cls: type) -> dict[str, inspect.Parameter]:
    """The arguments of a class's constructor by name; `**kwargs` stand for those of the next class's constructor."""
    found: dict[str, inspect.Parameter] = {}
    for owner in cls.__mro__:
        if "__init__" not in vars(owner):
            continue
        own = list(inspect.signature(vars(owner)["__init__"]).parameters.values())[1:]
        for parameter in own:
            if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                found.setdefault(parameter.name, parameter)
        if all(p.kind != p.VAR_KEYWORD for p in own):
            break
    return found


def without_instantiator(recipe: Any) -> Any:
    """A recipe that the command line has built, as a plain partial of its class; any other recipe unchanged.

    jsonargparse makes `partial(instantiator, Class, **arguments)`. Lightning's instantiator holds the command line with
    its trainer and data, which a copy of the model cannot take along.
    """
    is_wrapped = isinstance(recipe, partial) and not isinstance(recipe.func, type) and recipe.args
    if is_wrapped and isinstance(recipe.args[-1], type):
        return partial(recipe.args[-1], **recipe.keywords)
    return recipe
