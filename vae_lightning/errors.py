"""The command line's errors, in one line: which key, what it has, what fits."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import yaml
from lightning.pytorch.cli import LightningArgumentParser

from vae_lightning.data import ImageDataModule
from vae_lightning.distributions import Family, Prior
from vae_lightning.models import Condition, Inference, LatentVariableModel
from vae_lightning.objectives import Kernel, Objective, Schedule
from vae_lightning.types import Network, UserError

SLOTS: dict[str, type] = {
    **{"encoder": Network, "decoder": Network, "posterior": Family, "likelihood": Family},
    **{"embedding": Network, "prior_network": Network, "transition": Network, "upward": Network},
    **{"condition": Condition, "inference": Inference},
    **{"family": Family, "kernel": Kernel, "beta": Schedule, "capacity": Schedule},
    **{"prior": Prior, "objective": Objective, "model": LatentVariableModel, "data": ImageDataModule},
}

_TYPE_THEORY = re.compile(
    r"Parser key \"[^\"]+\":?|Type \S*Callable\[.*?\] expects a function or a callable class:|"
    r"Does not validate against any of the Union subtypes|Subtypes: \[.*|Errors:|Given value( type)?:.*|"
    r"Problem with given class_path '[^']*':|Expected a <class 'NoneType'>|\.? Got value: Namespace\(.*"
)
_GIVEN = re.compile(r"Given value: (?!NestedArg|Namespace)(.*)")
_NO_CLASS = re.compile(
    r"Expected a path but (\S+) either not accessible or invalid|Expected a dot import path string: (\S+)"
)


class Parser(LightningArgumentParser):
    """Ends a user's mistake in one line, with exit code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"vae-lightning: error: {one_line(message)}\n")
        self.exit(2)


def check_configs(args: Sequence[str]) -> None:
    """Each file after -c or --config is YAML with keys in it: jsonargparse would not say which file is not."""
    for flag, value in pairwise([*args, ""]):
        name = value if flag in ("-c", "--config") else flag.partition("=")[2] if flag.startswith("--config=") else ""
        if not (name and Path(name).is_file()):
            continue
        try:
            content = yaml.safe_load(Path(name).read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{name}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict):
            raise UserError(f"{name}: holds no keys, expected a config with model: and data:")


def one_line(message: str) -> str:
    """jsonargparse's message without its type theory: the keys from outside in, then the reasons."""
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    reasons = []
    for line in message.splitlines():
        if missing := _NO_CLASS.search(line):
            reasons.append(_wrong_class(keys[-1] if keys else "", missing[1] or missing[2]))
        else:
            reasons.append(_TYPE_THEORY.sub("", line).strip(" -"))
    text = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    given = _GIVEN.search(message)
    if (
        given and text.startswith("Expected") and "Got value" not in text
    ):  # of several types, jsonargparse says it apart
        text = f"{text}. Got value: {given[1]}"
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text)
    return f"{'.'.join(keys)}: {text}" if keys else text


def _wrong_class(key: str, name: str) -> str:
    """What the slot takes; the same for each of jsonargparse's two lines on one mistake."""
    base = SLOTS.get(key.rpartition(".")[2])
    if base is None:
        return f"{name} cannot be imported, and is no file"
    ours = (cls.__name__ for cls in subclasses(base) if cls.__module__.startswith("vae_lightning."))
    names = sorted(name for name in ours if not name.startswith("_"))
    return f"{name} is no {base.__name__} that can be imported; there are {', '.join(names)}"


def subclasses(base: type) -> set[type]:
    found: set[type] = set(base.__subclasses__())
    return found.union(*(subclasses(cls) for cls in found))
