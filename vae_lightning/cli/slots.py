"""The slots of models and data sets, read from the annotations of their constructors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, get_args, get_origin, get_type_hints

from vae_lightning.data import DataModule
from vae_lightning.models import LatentVariableModel


def slots() -> dict[str, type]:
    """Return the base class of each slot by the slot's name: `encoder`: Network, `prior`: Prior, `beta`: Schedule.

    A slot is a constructor's argument that takes an object of a class of this package, or a recipe of such an object
    (`Callable[..., Network]`). The slots of a user's own models and data sets are included after their import.
    """
    bases: dict[str, type] = {"model": LatentVariableModel, "data": DataModule}
    waiting, seen = [*bases.values()], set[type]()
    while waiting:
        base = waiting.pop()
        for cls in {base, *subclasses(base)} - seen:
            seen.add(cls)
            new = {name: slot for name, slot in _slots_of(cls) if name not in bases}
            bases |= new
            waiting += new.values()
    return bases


def subclasses(base: type) -> set[type]:
    """Return all classes that are derived from a class, at any depth.

    Args:
        base: The class.
    """
    direct: set[type] = set(base.__subclasses__())
    return direct.union(*(subclasses(cls) for cls in direct))


def _slots_of(cls: type) -> Iterator[tuple[str, type]]:
    """Yield the name and the base class of each slot of the class's own constructor."""
    constructor = cls.__dict__.get("__init__")
    if not inspect.isfunction(constructor):
        return
    hints: dict[str, Any] = {}
    with suppress(NameError, TypeError):  # a user's annotation that cannot be evaluated gives no slot
        hints = get_type_hints(constructor)
    for name, hint in hints.items():
        base = next((one for one in _classes_in(hint) if one.__module__.startswith("vae_lightning.")), None)
        if name != "return" and base is not None and not hasattr(base, "_fields"):
            yield name, base


def _classes_in(hint: Any) -> Iterator[type]:
    """Yield the classes of a value of this type, or the classes that the value returns if it is a function."""
    if isinstance(hint, type) and get_origin(hint) is None:
        yield hint
    elif get_origin(hint) not in (None, Mapping, dict):  # the values of a mapping have names of the user's
        returned = get_args(hint)[-1:] if get_origin(hint) is Callable else get_args(hint)
        for one in returned:
            yield from _classes_in(one)
