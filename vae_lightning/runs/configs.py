"""Config files by their short names, and what the comment at the head of a config says.

The shipped configs lie in `configs/` beside the package in a checkout, and inside the package in a wheel. Imports the
standard library alone, because the doctor uses this module before it has checked torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

DEFAULTS = "defaults.yaml"
_PACKAGE = Path(__file__).parents[1]
_ENDINGS = (".yaml", ".yml")


def shipped_folder() -> Path:
    """Return the folder of the shipped configs: within the package if it was installed from a wheel, else beside it."""
    inside = _PACKAGE / "configs"  # first, because beside an installed package lie the packages of others
    return inside if (inside / DEFAULTS).is_file() else _PACKAGE.parent / "configs"


def config_folders() -> list[Path]:
    """Return the folders that short names are looked up in: `configs/` of the present folder, then the shipped ones."""
    own, shipped = Path("configs"), shipped_folder()
    return [shipped] if not own.is_dir() or own.resolve() == shipped.resolve() else [own, shipped]


def config_file(name: str) -> str | None:
    """Return the path of a config; None if there is no such file.

    Args:
        name: A file, which comes first, or the short name of a config in one of `config_folders`: `vae/mnist`, also
            written `configs/vae/mnist.yaml`.
    """
    if Path(name).is_file():
        return name
    short = short_name(name)
    if not short or Path(short).is_absolute() or ".." in Path(short).parts:
        return None
    paths = (folder / f"{short}{ending}" for folder in _folders_of(short) for ending in _ENDINGS)
    return next((str(path) for path in paths if path.is_file()), None)


def _folders_of(short: str) -> list[Path]:
    """Return the folders to look in. In a checkout, the shipped folder is written as the user would: `configs`."""
    own = Path("configs")
    return [own, shipped_folder()] if own.is_dir() and short != "defaults" else [shipped_folder()]


def short_name(name: str) -> str:
    """Return `vae/mnist` for `configs/vae/mnist.yaml`; other names are returned without their ending.

    Args:
        name: The name or the path of a config.
    """
    path = Path(name)
    stem = str(path.with_suffix("")) if path.suffix in _ENDINGS else name
    return stem.removeprefix("configs/")


def config_names(folder: Path) -> dict[str, Path]:
    """Return the configs of a folder by their short names, in alphabetic order; without the defaults of all runs.

    Args:
        folder: A folder that holds configs at any depth.
    """
    files = sorted(path for ending in _ENDINGS for path in folder.rglob(f"*{ending}") if path.name != DEFAULTS)
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in files}


def with_config_files(args: Sequence[str]) -> list[str]:
    """Replace each short name after `-c` or `--config` by the path of its file. Unknown names stay as they are.

    Args:
        args: A command line.
    """
    replaced, is_name = [], False
    for arg in args:
        flag, is_one, value = arg.partition("=")
        if is_name:
            arg = config_file(arg) or arg
        elif is_one and flag in ("-c", "--config"):
            arg = f"{flag}={config_file(value) or value}"
        is_name = arg in ("-c", "--config")
        replaced.append(arg)
    return replaced


def experiment_of_config(path: str) -> str:
    """Return the experiment's name: vae/mnist for configs/vae/mnist.yaml, the bare name for a file outside configs/.

    Args:
        path: The path of a config file.
    """
    stem = Path(os.path.normpath(path)).with_suffix("")
    if stem.is_absolute() and stem.is_relative_to(shipped_folder()):
        return stem.relative_to(shipped_folder()).as_posix()  # the way to a wheel may lead through another configs/
    parts = stem.parts
    return "/".join(parts[parts.index("configs") + 1 :]) if "configs" in parts else stem.name


def header_entry(text: str, word: str) -> str | None:
    """Return what the head of a config says after a word such as `result`, in one line; None if it does not.

    The head is the comment at the beginning of the file. An entry goes on in the lines that are indented below it.

    Args:
        text: The text of the config.
        word: `command`, `result` or `cost`.
    """
    head = [line[1:].removeprefix(" ") for line in takewhile(lambda line: line.startswith("#"), text.splitlines())]
    start = next((index for index, line in enumerate(head) if line.startswith(f"{word} ")), None)
    if start is None:
        return None
    more = takewhile(lambda line: line.startswith("  "), head[start + 1 :])
    return " ".join(" ".join([head[start].removeprefix(word), *more]).split())
