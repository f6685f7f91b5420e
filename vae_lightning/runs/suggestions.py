"""Suggest the right name for a misspelt one.

Imports the standard library alone, because the doctor uses this module before it has checked torch.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

from vae_lightning.runs.configs import config_file, config_folders, config_names, short_name

_LEAST_RATIO = 0.65  # of difflib; VEA and VAE have a ratio of 0.67


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The name in `known` that is most like `word`, ignoring case; None if no name is similar.

    Args:
        word: the misspelt name.
        known: the right names.
    """
    folded, word = {name.lower(): name for name in known}, word.lower()
    near = difflib.get_close_matches(word, folded, cutoff=_LEAST_RATIO)
    swapped = [name for name in near if sorted(name) == sorted(word)]  # for Adma difflib prefers Adamax to Adam
    return folded[(swapped or near)[0]] if near else None


def hint(word: str, known: Iterable[str]) -> str:
    """` (did you mean NAME?)`, or an empty string if no name is similar.

    Args:
        word: the misspelt name.
        known: the right names.
    """
    near = nearest(word, known)
    return f" (did you mean {near}?)" if near else ""


def argparse_hint(message: str, options: Sequence[str]) -> str:
    """The suggestion to append to argparse's message of an unknown argument or choice; empty for other messages.

    Args:
        message: the message of argparse.
        options: the flags that the parser knows.
    """
    head, _, rest = message.partition("unrecognized arguments: ")
    if rest and not head:
        pairs = pairwise(["", *rest.split()])
        near = [
            _flag_suggestion(token, options) if token[0] == "-" else _config_suggestion(token, last)
            for last, token in pairs
        ]
        return f" ({'; '.join(filter(None, near))})" if any(near) else ""
    value, is_choice, choices = message.partition("invalid choice: ")[2].partition(" (choose from ")
    return hint(value.strip("'"), (name.strip(" '") for name in choices.rstrip(")").split(","))) if is_choice else ""


def _flag_suggestion(token: str, options: Sequence[str]) -> str:
    """Look up the first part of a dotted name by itself, because the flags after --model. depend on its class."""
    flag = token.partition("=")[0].rstrip("+")
    group, dot, rest = flag.partition(".")
    groups = {option.partition(".")[0] for option in options}
    group = group if group in groups else nearest(group, groups) or group
    members = [option for option in options if not dot or option.startswith(f"{group}.")]
    near = nearest(f"{group}{dot}{rest}", members)
    if near is None and dot and not flag.startswith(f"{group}."):
        near = f"{group}.{rest}"
    return f"did you mean {near}?" if near else ""


def _config_suggestion(token: str, last: str) -> str:
    """A suggestion of `-c` for a lone token that names a config; empty if the token is the value of the flag `last`."""
    if last.startswith("-") and "=" not in last:
        return ""
    return f"give -c {token}" if config_file(token) or Path(token).suffix in (".yaml", ".yml") else ""


def nearest_config(path: Path) -> str | None:
    """The config that a wrong path probably means, as -c takes it: one beside the path, or one with a short name.

    Args:
        path: a path that is not a file.
    """
    here = Path.cwd()
    name = str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
    beside = {file.name: file for file in _yaml_files(path.parent)}
    near = nearest(path.name, beside)
    if near:
        return str(Path(name).with_name(near))
    short = nearest(short_name(name), (known for folder in config_folders() for known in config_names(folder)))
    if short is None or path.suffix not in (".yaml", ".yml"):
        return short
    file = Path("configs", f"{short}.yaml")
    return str(file) if file.is_file() else short


def _yaml_files(folder: Path) -> Iterator[Path]:
    return (file for file in (folder.iterdir() if folder.is_dir() else ()) if file.suffix in (".yaml", ".yml"))


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports a user's mistake in one line, with a suggestion if a flag is similar, and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vae-lightning: error: {self.in_one_line(message)}\n")

    def in_one_line(self, message: str) -> str:
        return f"{self.prog.partition(' ')[2]}: {message}{argparse_hint(message, [*self._option_string_actions])}"
