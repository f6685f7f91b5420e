"""The slots of models and data sets, read from the annotations of their constructors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, get_args, get_origin, get_type_hints

from vae_lightning.data import DataModule
from vae_lightning.models import LatentVariableModel


def slots() -> dict[str, type]:
    """The base class of each slot by the slot's name: `encoder`: Network, `prior`: Prior, `beta`: Schedule.

    A slot is an argument that takes a class of this package or a recipe of one (`Callable[..., Network]`). The slots of
    a user's own models and data sets are found too, once these are imported.
    """
    found: dict[str, type] = {"model": LatentVariableModel, "data": DataModule}
    waiting, seen = [*found.values()], set[type]()
    while waiting:
        base = waiting.pop()
        for cls in {base, *subclasses(base)} - seen:
            seen.add(cls)
            new = {name: slot for name, slot in _slots_of(cls) if name not in found}
            found |= new
            waiting += new.values()
    return found


def subclasses(base: type) -> set[type]:
    """All classes that are derived from `base`, at any depth."""
    found: set[type] = set(base.__subclasses__())
    return found.union(*(subclasses(cls) for cls in found))


def _slots_of(cls: type) -> Iterator[tuple[str, type]]:
    constructor = cls.__dict__.get("__init__")
    if not inspect.isfunction(constructor):
        return
    hints: dict[str, Any] = {}
    with suppress(NameError, TypeError):  # a user's annotation that cannot be read has no slot
        hints = get_type_hints(constructor)
    for name, hint in hints.items():
        base = next((one for one in _made_by(hint) if one.__module__.startswith("vae_lightning.")), None)
        if name != "return" and base is not None and not hasattr(base, "_fields"):
            yield name, base


def _made_by(hint: Any) -> Iterator[type]:
    """The classes that a value of this type is, or returns when it is called."""
    if isinstance(hint, type) and get_origin(hint) is None:
        yield hint
    elif get_origin(hint) is not None:
        returned = get_args(hint)[-1:] if get_origin(hint) is Callable else get_args(hint)
        for one in returned:
            yield from _made_by(one)
