"""`configs [NAME]`: list the configs that -c takes by name, with what they need and their results, or print one."""

from __future__ import annotations

import argparse
import importlib
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vae_lightning.data.images import ImageFolder
from vae_lightning.runs.configs import config_file, config_folders, config_names, header_entry
from vae_lightning.runs.suggestions import hint
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser

_WIDTH = 120
_OUTSIDE = "see the file"


class Row(NamedTuple):
    """What is listed of a config: its short name, what its data set needs, and the result that its head states."""

    name: str
    needs: str
    result: str


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    name_help = "print the text of this config, to begin a file of your own from: configs vae/mnist > mine.yaml"
    parser.add_argument("name", metavar="NAME", nargs="?", help=name_help)
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:  # noqa: ARG001
    """Print the table, or the text of one config.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.

    Raises:
        UserError: if there is no config of the name.
    """
    known = {name: path for folder in reversed(config_folders()) for name, path in config_names(folder).items()}
    if arguments.name is not None:
        path = config_file(arguments.name)
        if path is None:
            raise UserError(f"configs: there is no config {arguments.name}{hint(arguments.name, known)}")
        print(Path(path).read_text(), end="")
        return
    rows = [row_of(name, path.read_text()) for name, path in sorted(known.items())]
    print("\n".join(table([Row("config", "needs", "result"), *rows])))
    print("\nvae-lightning train -c NAME trains one; vae-lightning configs NAME prints its file")


def row_of(name: str, text: str) -> Row:
    """Return what is listed of a config.

    Args:
        name: Its short name.
        text: The text of the file.
    """
    return Row(name, needs(yaml.safe_load(text)), header_entry(text, "result") or "-")


def needs(config: Any) -> str:
    """Return what has to be there before a config can be trained: "nothing", "a download" or "your images".

    A data set of another package is not imported for this; the answer is then "see the file".

    Args:
        config: The contents of the file.
    """
    data = config.get("data") if isinstance(config, dict) else None
    recipe = data if isinstance(data, dict) else {"class_path": data}
    source = (recipe.get("init_args") or {}).get("source")  # of canvases that are made of another data set's images
    return needs({"data": source}) if source else _needs_of_class(str(recipe.get("class_path")))


def _needs_of_class(class_path: str) -> str:
    module, _, name = class_path.rpartition(".")
    if not f"{module}.".startswith("vae_lightning.") and module:
        return _OUTSIDE
    cls = getattr(importlib.import_module(module or "vae_lightning.data"), name, None)
    if cls is None:
        return _OUTSIDE
    if issubclass(cls, ImageFolder):
        return "your images"
    return "a download" if getattr(cls, "location", "") else "nothing"


def table(rows: list[Row]) -> list[str]:
    """Return the lines of a table whose last column is broken at 120 characters.

    Args:
        rows: The rows, the heads first.
    """
    widths = [max(len(row[column]) for row in rows) + 2 for column in (0, 1)]
    left = sum(widths)
    lines = []
    for row in rows:
        first, *more = textwrap.wrap(row.result, _WIDTH - left)
        lines += [f"{row.name:<{widths[0]}}{row.needs:<{widths[1]}}{first}", *(f"{'':{left}}{line}" for line in more)]
    return lines


COMMAND = Command(make_parser, run)
