"""Errors of the command line in one line: the key, its value, and the nearest name that works."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from vae_lightning.cli.slots import slots, subclasses
from vae_lightning.metrics.evaluator import Evaluator
from vae_lightning.runs.suggestions import argparse_hint, hint, nearest_config
from vae_lightning.types import UserError

_OTHERS: dict[str, type] = {  # slots that other packages fill too: only the nearest class is named
    **{"optimizer": Optimizer, "scheduler": LRScheduler, "callbacks": Callback, "logger": Logger},
    **{"also": Evaluator, "metrics": Evaluator},
}

_TYPE_THEORY = re.compile(
    r"Parser key \"[^\"]+\":?|Type \S*Callable\[.*?\] expects a function or a callable class:|"
    r"Does not validate against any of the Union subtypes|Subtypes: \[.*|Errors:|Given value( type)?:.*|"
    r"Problem with given class_path '[^']*':|Expected a <class 'NoneType'>|\.? Got value: Namespace\(.*"
)
_VALUE = re.compile(r"Given value: (?!NestedArg|Namespace)(.*)")
_NO_CLASS = re.compile(
    r"Expected a path but (\S+) either not accessible or invalid|Expected a dot import path string: (\S+)"
)
_NO_OPTION = re.compile(r"Option '([\w.]+)' is not accepted(?:\. Got value: Namespace\(class_path='([\w.]+)')?")
_NO_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_NO_MODULE = re.compile(r"No module named '(\w+)'")
_NO_KEY = re.compile(r"does not accept option '([\w.]+)'")
_NO_FILE = re.compile(r"File does not exist: '(.+)'")
_NO_LITERAL = re.compile(r"Literal\[.*Got value: (\S+)$")
_NO_CONFIG = re.compile(r"the following arguments are required: (fit\.data, )?fit\.model")


class Parser(LightningArgumentParser):
    """Reports a user's mistake in one line, and exits with code 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Write the message in one line and exit.

        Args:
            message: jsonargparse's message.
            ex: The error that jsonargparse has caught, if any.
        """
        if not self.exit_on_error:
            super().error(message, ex)
        sys.stderr.write(f"vae-lightning: error: {one_line(message, flags_of(self))}\n")
        self.exit(2)


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags of a parser and of its subcommands.

    Args:
        parser: A parser of argparse or jsonargparse.
    """
    verbs = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
    inner = {option: None for parsers in verbs for one in parsers.values() for option in flags_of(one)}
    return [*parser._option_string_actions, *inner]


def check_configs(args: Sequence[str]) -> None:
    """Raise unless each file after -c or --config is YAML with keys; jsonargparse would not name the file.

    Args:
        args: The command line.

    Raises:
        UserError: with the name of the file.
    """
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


def one_line(message: str, options: Sequence[str] = ()) -> str:
    """Return jsonargparse's message without types: the keys from the outermost, the reasons, and the nearest name.

    Args:
        message: jsonargparse's message.
        options: The flags of the parser that wrote the message.
    """
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))
    reasons = []
    for line in message.splitlines():
        if missing := _NO_CLASS.search(line):
            is_near = _package_here(message) is None
            reasons.append(_wrong_class(keys[-1] if keys else "", missing[1] or missing[2], is_near))
        else:
            reasons.append(_TYPE_THEORY.sub("", line).strip(" -"))
    text = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    value = _VALUE.search(message)
    if value and text.startswith("Expected") and "Got value" not in text:
        # for a union of types jsonargparse writes the value on a separate line
        text = f"{text}. Got value: {value[1]}"
    text = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", text)
    text += "" if "did you mean" in text else _near_miss(message, text, options)
    return f"{'.'.join(keys)}: {text}" if keys else text


def _package_here(message: str) -> str | None:
    """Return the missing package if it lies in the present folder, which a console script does not search."""
    missing = _NO_MODULE.search(message)
    is_here = missing is not None and (Path(missing[1]).is_dir() or Path(f"{missing[1]}.py").is_file())
    return missing[1] if missing is not None and is_here else None


def _wrong_class(key: str, name: str, is_near: bool) -> str:
    """Return the message for a wrong class: the classes that the slot takes, and the nearest name if `is_near`."""
    slot, last = key.rpartition(".")[2], name.rpartition(".")[2]
    base = slots().get(slot)
    known = sorted(cls.__name__ for cls in subclasses(base or _OTHERS.get(slot, Parser)))
    near = hint(last, (one for one in known if one != name and not one.startswith("_"))) if is_near else ""
    if base is None:
        return f"{name} cannot be imported, and is no file{near}"
    module, is_foreign = sys.modules.get(name.rpartition(".")[0]), "." in name and not name.startswith("vae_lightning.")
    if is_foreign and hasattr(module, last):  # importing it worked: the list of our classes would hide what is wrong
        return f"{name} is no subclass of {base.__module__}.{base.__name__}"
    if is_foreign:
        return f"{name} is no {base.__name__} that can be imported{near}"
    ours = (cls.__name__ for cls in subclasses(base) if cls.__module__.startswith("vae_lightning."))
    names = sorted(name for name in ours if not name.startswith("_"))
    return f"{name} is no {base.__name__} that can be imported{near}; there are {', '.join(names)}"


def _near_miss(message: str, text: str, options: Sequence[str]) -> str:
    """Return the name nearest to the wrong one in jsonargparse's `message`, or in `text`, the message in one line."""
    if match := _NO_OPTION.search(message):
        outer = re.findall(r"given class_path '([\w.]+)'", message[: match.start()])
        return hint(match[1].partition(".")[0], _arguments(match[2] or (outer or [""])[-1]))
    if match := _NO_ATTRIBUTE.search(message):
        return hint(match[2], vars(sys.modules.get(match[1], sys)))
    if package := _package_here(message):
        return f"; {package} lies in the present folder: give --trust {package}"
    if match := _NO_KEY.search(message):
        return argparse_hint(f"unrecognized arguments: --{match[1]}", options).replace("mean --", "mean ")
    if match := _NO_LITERAL.search(text):
        return hint(match[1], re.findall(r"'([^']+)'", text))
    if match := _NO_FILE.search(message):
        near = nearest_config(Path(match[1]))
        return f" (did you mean {near}?)" if near else "; vae-lightning configs lists the shipped ones"
    if _NO_CONFIG.fullmatch(message):
        return " (give a config: -c vae/digits)"
    return argparse_hint(message, options) + _misspelt_form(message)


def _arguments(class_path: str) -> list[str]:
    """Return the arguments of an imported class, and the two keys of a class in a YAML file."""
    module, _, name = class_path.rpartition(".")
    names = ["class_path", "init_args"]
    with suppress(Exception):  # if jsonargparse cannot read the types of the class, no name is suggested
        names += ArgumentParser(exit_on_error=False).add_class_arguments(getattr(sys.modules[module], name))
    return names


def _misspelt_form(message: str) -> str:
    """Return the hint for a misspelt `class_path` or `init_args`."""
    form = ("class_path", "init_args")
    keys = re.findall(r"[{,] ?'(\w+)':", message.rpartition("Given value: ")[2])
    return next(filter(None, (hint(key, form) for key in keys if key not in form)), "")
