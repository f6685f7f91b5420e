"""Read untrusted files: load plain data alone, and import only classes of trusted packages.

Looking up a class imports its module, and an import runs code. A file cannot make a package trusted. The modules of
`TRUSTED` are always trusted. The user adds a package by `--trust my_pkg`, by `load_from_checkpoint(...,
trusted=["my_pkg"])`, or by `[tool.vae_lightning] trust = ["my_pkg"]` in the pyproject.toml of the present folder or of
a folder above it.
"""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from argparse import ArgumentError
from collections.abc import Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from vae_lightning.runs.checkpoint_form import check_form, check_plain, load_plain
from vae_lightning.runs.checkpoint_io import check_whole
from vae_lightning.types import UserError

TRUSTED = ("vae_lightning.", "torch.nn.", "torch.optim.", "torch.distributions.", "lightning.pytorch.cli.ReduceLR")
"""The prefixes of trusted names: classes that a file names are built only if their module has such a prefix."""

NOT_BUILT = (
    *(ImportError, AttributeError, KeyError, IndexError, TypeError, ValueError, ArithmeticError, RuntimeError),
    *(AssertionError, ArgumentError),
)
"""The exceptions that `build` raises if a class refuses the values of a file."""

_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # the only function that Lightning's checkpoints name
# A string may be parsed as YAML later, and YAML quotes, braces and escapes could hide a name
_PLAIN = re.compile(r"[\w .,+-]*")


def refuse_address(path: str | Path) -> None:
    """Refuse a path that is an address, such as `s3://bucket/last.ckpt`, because nothing is fetched.

    Args:
        path: the path that the user gave.

    Raises:
        UserError: if the path is an address.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:+/", str(path)):  # `Path` turns // into /
        raise UserError(f"{path}: an address, expected a file on this machine; download the file first")


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Load a checkpoint of this project and check the form of each entry. No code in the file runs.

    Args:
        path: the checkpoint.
        map_location: the device that the tensors are loaded to, as in `torch.load`.

    Raises:
        UserError: if the file is missing, damaged, or not a checkpoint of a Lightning module with its class path.
    """
    refuse_address(path)
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; a run keeps them in runs/<experiment>/<run id>/checkpoints/")
    check_whole(path)
    return check_form(load_plain(path, map_location), path)


# -- whose classes ----------------------------------------------------------------------------------------------------


def trust(packages: Iterable[str], path: str | Path | None = None) -> tuple[str, ...]:
    """The prefixes of trusted names: `TRUSTED`, `packages`, and the packages in the user's pyproject.toml.

    Makes the packages importable from the present folder and from the folder of the pyproject.toml.

    Args:
        packages: the packages that the user trusts by a flag or an argument.
        path: the checkpoint to read. A pyproject.toml beside the file or in its run's folder is ignored.

    Raises:
        UserError: if a name is not the name of a package, or the pyproject.toml cannot be read.
    """
    table_folder, listed = _read_trust_table(None if path is None else Path(path))
    names = [*packages, *listed]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"trust: {name!r} is not the name of a package")
        _FINDER.places[name.partition(".")[0]] = [str(folder) for folder in (Path.cwd(), table_folder) if folder]
    if _FINDER not in sys.meta_path:
        sys.meta_path.append(_FINDER)
    return (*TRUSTED, *(f"{name}." for name in names))


class _TrustedFinder(MetaPathFinder):
    """Find trusted packages in the present folder and in the folder of the pyproject.toml.

    A console script does not search the present folder. This finder comes last, so that installed packages win, and
    finds no packages but the trusted ones.
    """

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def find_spec(self, fullname: str, _: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, self.places[fullname], target) if fullname in self.places else None


_FINDER = _TrustedFinder()


def _read_trust_table(path: Path | None) -> tuple[Path | None, list[str]]:
    """The folder and the packages of the nearest pyproject.toml with our table, from the present folder upwards."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        file = folder / "pyproject.toml"
        if not file.is_file() or _is_run_folder(folder) or (path is not None and _came_with(path.resolve(), folder)):
            continue
        try:
            table = tomllib.loads(file.read_text()).get("tool", {}).get("vae_lightning")
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
        if table is not None:
            names = table.get("trust", []) if isinstance(table, dict) else None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise UserError(f'{file}: tool.vae_lightning trust is not a list of names, expected trust = ["my_pkg"]')
            return folder, names
    return None, []


def _is_run_folder(folder: Path) -> bool:
    """True if `folder` is a run's folder, or its folder of checkpoints. Another person may have sent the folder."""
    run = folder.parent if folder.name == "checkpoints" else folder
    return (run / "config.yaml").is_file() and (run / "checkpoints").is_dir()


def _came_with(path: Path, folder: Path) -> bool:
    """True if `folder` holds the checkpoint `path`, or lies within the folder of the checkpoint's run."""
    has_run = path.parent.name == "checkpoints" or (path.parent.parent / "config.yaml").is_file()
    return folder == path.parent or (has_run and folder.is_relative_to(path.parent.parent))


def foreign_packages(recipe: Any) -> list[str]:
    """The packages that plain data names and that are trusted neither by `TRUSTED` nor by the pyproject.toml.

    Args:
        recipe: the hyper-parameters of a model, as plain data.
    """
    trusted = trust(())
    names = {name for text in _strings(recipe) if _PLAIN.fullmatch(text) for name in _dotted_words(text)}
    return sorted({name.partition(".")[0] for name in names if not name.startswith((*trusted, "lightning."))})


# -- names in files ---------------------------------------------------------------------------------------------------


def check_checkpoint(checkpoint: dict[str, Any], path: str | Path, trusted: tuple[str, ...] = TRUSTED) -> None:
    """Raise if building a checkpoint's hyper-parameters could use anything but classes of `trusted` modules.

    A module is imported only after its name has passed. Functions are refused, because `torch.hub.load` would run the
    code that it loads.

    Args:
        checkpoint: the contents of the file.
        path: the file, for the message.
        trusted: the prefixes of trusted names, as `trust` returns them.

    Raises:
        UserError: with the name, or the string, that is refused.
    """
    hparams = dict(checkpoint["hyper_parameters"])
    instantiator = hparams.pop("_instantiator", _INSTANTIATOR)
    if instantiator != _INSTANTIATOR:
        raise UserError(f"{path}: _instantiator is {instantiator!r}, expected {_INSTANTIATOR}: not loaded")
    check_names(hparams, path, trusted)


def check_names(value: Any, path: str | Path, trusted: tuple[str, ...] = TRUSTED) -> None:
    """Raise if plain data names anything but a class of a trusted module, or holds a string that could hide a name.

    Args:
        value: a recipe or a configuration.
        path: the file that holds `value`, for the message.
        trusted: the prefixes of trusted names, as `trust` returns them.

    Raises:
        UserError: with the name or string that is refused, and with the flag that trusts a package.
    """
    check_plain(value, path)
    names = sorted({name for text in _strings(value) for name in _importable_names(text, path)})
    _check_no_file(value, path)
    for name in names:
        _check_trusted(name, name, path, trusted)
    for name in names:
        if not _is_class(name):
            raise UserError(f"{path}: names {name}, which is not a class that can be imported here: not loaded")


def build(parser: ArgumentParser, values: dict[str, Any], path: str | Path, trusted: tuple[str, ...]) -> Namespace:
    """Build the classes of a file's values with `parser`. The names in the values must have passed `check_names`.

    The parser looks up a word without dots among all imported classes, so the class that it finds is checked too.

    Args:
        parser: a parser with an argument for each key of `values`.
        values: the plain data of the file.
        path: the file, for the message.
        trusted: the prefixes of trusted names, as `trust` returns them.

    Raises:
        UserError: with the word, and the class that the parser has found for the word.
    """
    words = {text.strip() for text in _strings(values)}  # the parser replaces the words by classes
    parsed = parser.parse_object(values)
    for name in _class_names(parsed.as_dict()):
        word = name.rpartition(".")[2]
        if word in words:
            _check_trusted(word, name, path, trusted)
    return parser.instantiate_classes(parsed)


def _check_trusted(word: str, name: str, path: str | Path, trusted: tuple[str, ...]) -> None:
    if name.startswith(trusted):
        return
    known = ", ".join(dict.fromkeys(".".join(module.split(".")[:2]).rstrip(".") for module in trusted))
    package, shown = name.partition(".")[0], word if word == name else f"{word}, here {name}"
    raise UserError(
        f"{path}: names {shown}, which is not of {known}: not loaded; if {package} is your own package, give "
        f"--trust {package} (in Python trusted=[{package!r}])"
    )


def _strings(value: Any) -> Iterator[str]:
    """Yield every string in plain data, including the keys of dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for entry in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            yield from _strings(entry)


def _class_names(value: Any) -> Iterator[str]:
    """Yield the full names of the classes that a parser has found in plain data."""
    if isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}"
    elif isinstance(value, dict):
        if isinstance(value.get("class_path"), str):
            yield value["class_path"]
        for entry in value.values():
            yield from _class_names(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _class_names(entry)


def _importable_names(text: str, path: str | Path) -> list[str]:
    """The words of a string that could be imported: identifiers joined by dots."""
    if not _PLAIN.fullmatch(text):
        raise UserError(f"{path}: holds {text[:60]!r}, expected a name or a plain word: not loaded")
    return _dotted_words(text)


def _check_no_file(value: Any, path: str | Path) -> None:
    """Refuse a value that is also a file of the present folder: jsonargparse would read the file as YAML.

    A key is never read as a file.
    """
    if isinstance(value, str) and _is_file(value):
        raise UserError(
            f"{path}: holds the word {value[:60]!r}, and the present folder has a file of this name, which would be "
            "read in place of the word: not loaded; work in another folder"
        )
    if isinstance(value, (dict, list, tuple)):
        for entry in value.values() if isinstance(value, dict) else value:
            _check_no_file(entry, path)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a word too long for the name of a file
        return False


def _dotted_words(text: str) -> list[str]:
    return [word for word in text.split() if "." in word and all(part.isidentifier() for part in word.split("."))]


def _is_class(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        return isinstance(getattr(importlib.import_module(module), attribute, None), type)
    except ImportError:
        return False
