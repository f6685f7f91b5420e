"""Files that may be anyone's: plain data is read, and named classes are looked up only where they are known ones.

To look a class up is to import its module, and to import is to run code. What a file names proves nothing: besides
`TRUSTED`, a package is trusted because the user names it: `--trust my_pkg`, `load_from_checkpoint(...,
trusted=["my_pkg"])`, or `[tool.vae_lightning] trust = ["my_pkg"]` in the pyproject.toml of the present folder or one
above it.
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
"""How the names that a file may hold begin: of these modules, and of no other, classes are built from a file."""

NOT_BUILT = (
    *(ImportError, AttributeError, KeyError, IndexError, TypeError, ValueError, ArithmeticError, RuntimeError),
    *(AssertionError, ArgumentError),
)
"""What `build` of a file's values ends in, if a class refuses them."""

_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"  # the one function that Lightning's checkpoints name
# A string is read as YAML once more, in which quotes, braces and escapes can hide a name
_PLAIN = re.compile(r"[\w .,+-]*")


def refuse_address(path: str | Path) -> None:
    """Raise UserError if a path is an address, such as `s3://bucket/last.ckpt`: nothing is fetched."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:+/", str(path)):  # `Path` makes one slash of the two
        raise UserError(f"{path}: an address, expected a file on this machine; fetch it first")


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """The contents of a checkpoint of this project, each entry of its form. Nothing in it is run.

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
    """How trusted names begin: `TRUSTED`, and of `packages` and of the user's pyproject.toml. Makes these importable.

    A table that lies in the run's folder of `path`, or beside it, came with the file and counts for nothing.
    """
    beside, listed = _table(None if path is None else Path(path))
    named = [*packages, *listed]
    for name in named:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"trust: {name!r} is no name of a package")
        _BESIDE.places[name.partition(".")[0]] = [str(folder) for folder in (Path.cwd(), beside) if folder]
    if _BESIDE not in sys.meta_path:
        sys.meta_path.append(_BESIDE)
    return (*TRUSTED, *(f"{name}." for name in named))


class _Beside(MetaPathFinder):
    """Finds a package that the user trusts beside the user: in the present folder, and in that of the pyproject.toml.

    A console script does not search the present folder. This finds nothing else there, and installed packages first.
    """

    def __init__(self) -> None:
        self.places: dict[str, list[str]] = {}

    def find_spec(self, fullname: str, _: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, self.places[fullname], target) if fullname in self.places else None


_BESIDE = _Beside()


def _table(path: Path | None) -> tuple[Path | None, list[str]]:
    """The nearest pyproject.toml with a table of ours, from the present folder upwards: its folder and its names."""
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        file = folder / "pyproject.toml"
        if not file.is_file() or _is_of_a_run(folder) or (path is not None and _came_with(path.resolve(), folder)):
            continue
        try:
            table = tomllib.loads(file.read_text()).get("tool", {}).get("vae_lightning")
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read ({' '.join(str(error).split())})") from error
        if table is not None:
            names = table.get("trust", []) if isinstance(table, dict) else None
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise UserError(f'{file}: tool.vae_lightning has a trust that is no list, expected trust = ["my_pkg"]')
            return folder, names
    return None, []


def _is_of_a_run(folder: Path) -> bool:
    """Is `folder` a run's, or that of its checkpoints? Somebody else may have sent it."""
    run = folder.parent if folder.name == "checkpoints" else folder
    return (run / "config.yaml").is_file() and (run / "checkpoints").is_dir()


def _came_with(path: Path, folder: Path) -> bool:
    """Is `folder` that of a checkpoint, or within the folder of its run?"""
    has_run = path.parent.name == "checkpoints" or (path.parent.parent / "config.yaml").is_file()
    return folder == path.parent or (has_run and folder.is_relative_to(path.parent.parent))


def foreign_packages(recipe: Any) -> list[str]:
    """The packages of the classes in plain data that no one has to be trusted for, of `TRUSTED` and of the table."""
    trusted = trust(())
    names = {name for text in _strings(recipe) if _PLAIN.fullmatch(text) for name in _dotted(text)}
    return sorted({name.partition(".")[0] for name in names if not name.startswith((*trusted, "lightning."))})


# -- names in files ---------------------------------------------------------------------------------------------------


def check_checkpoint(checkpoint: dict[str, Any], path: str | Path, trusted: tuple[str, ...] = TRUSTED) -> None:
    """Raise if a checkpoint's hyper-parameters could bring anything but classes of `trusted` modules to be built.

    Nothing is imported before its name has passed. Functions are refused: `torch.hub.load` would run what it loads.

    Raises:
        UserError: with the name, or the string, that is refused.
    """
    hparams = dict(checkpoint["hyper_parameters"])
    instantiator = hparams.pop("_instantiator", _INSTANTIATOR)
    if instantiator != _INSTANTIATOR:
        raise UserError(f"{path}: _instantiator is {instantiator!r}, expected {_INSTANTIATOR}: not loaded")
    check_names(hparams, path, trusted)


def check_names(value: Any, path: str | Path, trusted: tuple[str, ...] = TRUSTED) -> None:
    """Raise if plain data (a recipe, a configuration) names what is no class of a trusted module, or hides a name.

    Raises:
        UserError: with the name, or the string, that is refused, and how to trust a package of one's own.
    """
    check_plain(value, path)
    names = sorted({name for text in _strings(value) for name in _names(text, path)})
    for name in names:
        _check_trusted(name, name, path, trusted)
    for name in names:
        if not _is_class(name):
            raise UserError(f"{path}: names {name}, which is no class that can be imported here: not loaded")


def build(parser: ArgumentParser, values: dict[str, Any], path: str | Path, trusted: tuple[str, ...]) -> Namespace:
    """What `parser` builds of a file's values, whose names have passed `check_names`.

    A word without dots is looked up among all classes that happen to be loaded: its class must be trusted, too.

    Raises:
        UserError: with the word, and the class that it stands for.
    """
    words = {text.strip() for text in _strings(values)}  # before the parser writes the classes in their place
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
    package, said = name.partition(".")[0], word if word == name else f"{word}, here {name}"
    raise UserError(
        f"{path}: names {said}, which is not of {known}: not loaded; if {package} is a package of your own, give "
        f"--trust {package} (in Python trusted=[{package!r}])"
    )


def _strings(value: Any) -> Iterator[str]:
    """Every string in plain data, the keys of dicts too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for entry in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            yield from _strings(entry)


def _class_names(value: Any) -> Iterator[str]:
    """The full names of the classes in what a parser made of plain data."""
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


def _names(text: str, path: str | Path) -> list[str]:
    """The words of a string that can be imported: identifiers with dots between them."""
    if not _PLAIN.fullmatch(text) or _is_file(text):  # a slot would read the file as YAML
        raise UserError(f"{path}: holds {text[:60]!r}, expected a name or a plain word: not loaded")
    return _dotted(text)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # a word too long for a name
        return False


def _dotted(text: str) -> list[str]:
    return [word for word in text.split() if "." in word and all(part.isidentifier() for part in word.split("."))]


def _is_class(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    try:
        return isinstance(getattr(importlib.import_module(module), attribute, None), type)
    except ImportError:
        return False
