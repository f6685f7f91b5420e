"""Near misses: the name that a misspelt one was probably meant to be.

Only the standard library, because the doctor asks before torch is known to be sound.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NoReturn

_LEAST_RATIO = 0.65  # of difflib: VEA is 0.67 near to VAE
_CONFIGS = tuple(folder / "configs" for folder in (Path(), Path(__file__).parents[2], Path(__file__).parents[1]))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The name in `known` that is most like `word`, in any case of letters; None where none is near."""
    folded, word = {name.lower(): name for name in known}, word.lower()
    found = difflib.get_close_matches(word, folded, cutoff=_LEAST_RATIO)
    swapped = [name for name in found if sorted(name) == sorted(word)]  # Adma is Adam, though difflib says Adamax
    return folded[(swapped or found)[0]] if found else None


def hint(word: str, known: Iterable[str]) -> str:
    """` (did you mean NAME?)`, or nothing where no name is near."""
    found = nearest(word, known)
    return f" (did you mean {found}?)" if found else ""


def hints(message: str, options: Sequence[str]) -> str:
    """What to add to argparse's `message` on arguments or choices that a parser with these `options` does not know."""
    head, _, rest = message.partition("unrecognized arguments: ")
    if rest and not head:
        pairs = pairwise(["", *rest.split()])
        found = [_nearest_flag(token, options) if token[0] == "-" else _as_config(token, last) for last, token in pairs]
        return f" ({'; '.join(filter(None, found))})" if any(found) else ""
    given, is_choice, choices = message.partition("invalid choice: ")[2].partition(" (choose from ")
    return hint(given.strip("'"), (name.strip(" '") for name in choices.rstrip(")").split(","))) if is_choice else ""


def _nearest_flag(token: str, options: Sequence[str]) -> str:
    """The first part of a dotted name is looked up by itself: what follows --model. depends on the model's class."""
    flag = token.partition("=")[0].rstrip("+")
    group, dot, rest = flag.partition(".")
    groups = {option.partition(".")[0] for option in options}
    group = group if group in groups else nearest(group, groups) or group
    members = [option for option in options if not dot or option.startswith(f"{group}.")]
    found = nearest(f"{group}{dot}{rest}", members)
    if found is None and dot and not flag.startswith(f"{group}."):
        found = f"{group}.{rest}"
    return f"did you mean {found}?" if found else ""


def _as_config(token: str, last: str) -> str:
    """Nothing for the value of the flag `last`."""
    if last.startswith("-") and "=" not in last:
        return ""
    path = config_file(token)
    return f"give -c {path or token}" if path or Path(token).suffix in (".yaml", ".yml") else ""


def config_file(name: str) -> str | None:
    """The config that `name` means: a file, or `vae/mnist` for the shipped configs/vae/mnist.yaml."""
    paths = [Path(name)] if Path(name).suffix in (".yaml", ".yml") else []
    paths += [folder / f"{name}.yaml" for folder in _CONFIGS]
    return next((str(path) for path in paths if path.is_file()), None)


def nearest_file(path: Path) -> str | None:
    """A config for a `path` that is no file: the shipped one of that name, or the nearest in its folder or shipped."""
    here = Path.cwd()
    name = str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
    beside = {file.name: file for file in _yaml_files(path.parent)}
    near = nearest(path.name, beside)
    if near and not config_file(name):
        return str(Path(name).with_name(near))
    short = name.removeprefix("configs/").removesuffix(".yaml")
    return config_file(name) or config_file(nearest(short, _shipped()) or name)


def _shipped() -> list[str]:
    """The short names of the shipped configs: `vae/mnist`."""
    return [str(file.relative_to(folder).with_suffix("")) for folder in _CONFIGS for file in folder.glob("*/*.yaml")]


def _yaml_files(folder: Path) -> Iterator[Path]:
    return (file for file in (folder.iterdir() if folder.is_dir() else ()) if file.suffix in (".yaml", ".yml"))


class OneLineParser(argparse.ArgumentParser):
    """Ends a user's mistake in one line, with exit code 2, and with the nearest flag where one is near."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vae-lightning: error: {self.in_one_line(message)}\n")

    def in_one_line(self, message: str) -> str:
        return f"{self.prog.partition(' ')[2]}: {message}{hints(message, [*self._option_string_actions])}"
