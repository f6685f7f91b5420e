"""What the data tell the model: `image_shape`, `num_classes` and others go to the model's arguments of these names."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

from jsonargparse import Namespace

from vae_lightning.data import DataModule
from vae_lightning.data.module import TOLD
from vae_lightning.recipes import arguments
from vae_lightning.types import UserError


def told(name: str, data: DataModule, model: type, setting: Any) -> Any:
    """Return the value of the model's argument `name`: what the data say, else the setting.

    Args:
        name: One of `vae_lightning.data.module.TOLD`.
        data: The data set.
        model: The model's class; if it has no such argument, the result is not used.
        setting: The value in the configuration, which may be the argument's default; None if there is none.

    Raises:
        UserError: if the configuration says another value than the data, or if a needed value is said by neither.
    """
    argument = arguments(model).get(name)
    value = getattr(data, name, None)
    if argument is None:
        return None
    owner, source = model.__name__, type(data).__name__
    if value is None:
        if setting is None and argument.default is inspect.Parameter.empty:
            raise UserError(
                f"{owner} needs {name}, and the data set {source} has none to give; choose other data, set {name} in "
                f"the data set's class, or give --model.{name}"
            )
        return setting
    is_default = setting is None or _plain(setting) == _plain(argument.default)
    if not is_default and _plain(setting) != _plain(value):
        raise UserError(f"--model.{name} is {_plain(setting)}, but {source} has {_plain(value)}; leave the setting out")
    return value


def drop_untold(model: Namespace) -> None:
    """Remove the arguments that the data tell from a model's configuration, unless the user has set another value.

    So another run may start from the configuration with other data.

    Args:
        model: The `class_path` and `init_args` of the model; changed in place.
    """
    settings = model.get("init_args")
    for name in TOLD if settings else ():
        argument = arguments(model_class(model)).get(name)
        default = None if argument is None or argument.default is inspect.Parameter.empty else argument.default
        if settings.get(name) is None or _plain(settings[name]) == _plain(default):
            settings.pop(name, None)


def model_class(model: Namespace) -> type:
    """Return the class of a model's configuration.

    Args:
        model: The `class_path` and `init_args` of the model.
    """
    module, _, name = str(model.class_path).rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (tuple, list)) else value
