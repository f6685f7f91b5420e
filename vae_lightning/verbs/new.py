"""`new NAME`: begin a project of your own: data set, model, config, test and Makefile, in a package NAME."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import keyword
import re
import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlparse

from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_output

PACKAGE = Path(__file__).parents[1]
TEMPLATES = PACKAGE / "templates"
PLACES = {
    **{"pyproject.toml": "pyproject.toml", "Makefile": "Makefile", "README.md": "README.md", "gitignore": ".gitignore"},
    **{"__init__.py": "{name}/__init__.py", "data.py": "{name}/data.py", "model.py": "{name}/model.py"},
    **{"first.yaml": "configs/first.yaml", "test_project.py": "tests/test_project.py"},
}
"""Where the new project has each file of `vae_lightning/templates`."""

_MODULE, _NAME, _ORIGIN = "vae_lightning.templates", "my_project", "ORIGIN"  # what is replaced in the files
_TAKEN = {"configs", "tests", "runs", "data", "wandb"}  # folders of the project


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    parser.add_argument("name", metavar="NAME", help="the name of the package, such as my_project")
    add_output(parser, "the folder to make; default: NAME in the present folder")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:  # noqa: ARG001
    """Write the project and print what it is for.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.

    Raises:
        UserError: if the name is not free for a package, or if the folder exists or cannot be written.
    """
    folder = arguments.output or Path(arguments.name)
    check_name(arguments.name)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"new: {folder} exists; nothing was changed. Take another name, or another folder by --output")
    check_free(arguments.name)
    write_project(arguments.name, folder)
    print(f"{folder}: a package {arguments.name} with a model and a data set that are yours to change")
    print(f"next        cd {folder} && make train && make test")


def check_name(name: str) -> None:
    """Raise unless a package can have a name.

    Args:
        name: The name.

    Raises:
        UserError: with a name that would do.
    """
    is_name = re.fullmatch(r"[a-z][a-z0-9_]*", name) and not keyword.iskeyword(name)
    if not is_name:
        words = re.sub(r"[^a-z0-9]+", "_", Path(name).name.lower()).strip("_")
        words = words if words[:1].isalpha() else f"my_{words or 'project'}"
        words = f"my_{words}" if keyword.iskeyword(words) or _is_taken(words) else words
        raise UserError(f"new: {name!r} is no name of a package: small letters, digits and _, such as {words}")


def check_free(name: str) -> None:
    """Raise if another package has a name, because Python would import that one.

    Args:
        name: The name of a package.

    Raises:
        UserError: with a name that would do.
    """
    if _is_taken(name):
        raise UserError(f"new: {name} is the name of something else; take another, such as my_{name}")


def _is_taken(name: str) -> bool:
    return name in _TAKEN or name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None


def write_project(name: str, folder: Path) -> None:
    """Write the whole project or nothing.

    Args:
        name: The name of the package.
        folder: The folder to make.

    Raises:
        UserError: if the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=folder.parent))
        try:
            for source, place in PLACES.items():
                path = part / place.format(name=name)
                path.parent.mkdir(exist_ok=True)
                path.write_text(filled((TEMPLATES / source).read_text(), name))
            part.chmod(0o755)  # mkdtemp makes folders for their owner alone
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except OSError as error:
        raise UserError(f"new: {folder}: cannot be written ({error.strerror}); choose a folder by --output") from error


def filled(text: str, name: str) -> str:
    """Return the text of a template as a project of this name has it.

    Args:
        text: The text, which imports `vae_lightning.templates` and speaks of `my_project`.
        name: The name of the package.
    """
    return text.replace(_MODULE, name).replace(_NAME, name).replace(_ORIGIN, origin())


def origin() -> str:
    """Return where pip can get this package from: its checkout, the wheel it came in, its name in an index, or "".

    A name is returned only if this package was itself installed by its name: anybody may take a name in an index.
    """
    if (PACKAGE.parent / "pyproject.toml").is_file() and (PACKAGE.parent / "configs").is_dir():
        return str(PACKAGE.parent)
    try:
        record = importlib.metadata.distribution("vae_lightning").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return ""
    url = urlparse(json.loads(record)["url"] if record else "vae_lightning")
    return unquote(url.path) if url.scheme in ("", "file") else url.geturl()


COMMAND = Command(make_parser, run)
