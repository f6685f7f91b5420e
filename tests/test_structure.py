"""The shape of the code: imports point one way, files and functions are small, and everything is annotated."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vae_lightning"
FILES = sorted(ROOT.rglob("*.py"))
ROOT_FILES = {"__init__", "__main__", "trace", "types", "noise", "recipes"}
VOCABULARY = {"types", "noise", "trace", "recipes"}
MATHEMATICS = {"distributions", "networks", "objectives"}
ALLOWED = {  # the rooms that each room may import, besides itself; every file is in one of these rooms
    "__init__": {"runs"},
    "types": set(),
    "noise": set(),
    "recipes": {"types"},
    "trace": {"types"},
    "runs": {"types"},
    "synthetic": {"noise"},
    "networks": {"types"},
    "distributions": {"runs", "trace", "types"},
    "objectives": {"trace", "types"},
    "storage": {"noise", "runs", "types"},
    "data": {"noise", "runs", "storage", "synthetic", "types"},
    "models": {*VOCABULARY, *MATHEMATICS, "runs"},
    "pictures": {*VOCABULARY, "models", "runs"},
    "metrics": {*VOCABULARY, *MATHEMATICS, "data", "models", "runs", "storage", "synthetic"},
    "callbacks": {*VOCABULARY, "data", "metrics", "models", "pictures", "runs", "storage"},
    "worlds": {*VOCABULARY, "data", "metrics", "models", "pictures", "runs", "storage", "synthetic"},
    "verbs": {
        *{*VOCABULARY, *MATHEMATICS, "callbacks", "data", "metrics", "models", "pictures", "runs", "storage"},
        *{"synthetic", "worlds"},
    },
    "cli": {*VOCABULARY, *MATHEMATICS, "callbacks", "data", "metrics", "models", "runs", "verbs"},
    "__main__": {"cli", "runs", "verbs"},
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Return the modules of ours that a file imports anywhere, such as `runs.folder`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and (ROOT.parent / (node.module or "").replace(".", "/")).is_dir():
            names = [f"{node.module}.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
        found |= {name.removeprefix("vae_lightning.") for name in names if name.startswith("vae_lightning.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    assert {module.split(".")[0] for module in imported_modules(path)} <= ALLOWED[room(path)] | {room(path)}


def test_rooms_have_an_order() -> None:
    """There is no cycle of imports, neither between rooms nor between files."""
    rooms = {name: set(allowed) for name, allowed in ALLOWED.items()}
    list(TopologicalSorter(rooms).static_order())
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): imported_modules(path) for path in FILES}
    list(TopologicalSorter({name: files.keys() & found for name, found in files.items()}).static_order())


def test_the_root_holds_the_vocabulary_alone() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == ROOT_FILES
    assert max(len(path.relative_to(ROOT).parts) for path in FILES) == 2


def functions() -> list[tuple[str, ast.FunctionDef]]:
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]


def test_functions_and_files_are_short() -> None:
    """90 % of functions under 25 lines, none over 60; no file over 400."""
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for _, node in functions())
    assert lengths[int(0.9 * len(lengths))] < 25
    assert lengths[-1] <= 60
    assert max(len(path.read_text().splitlines()) for path in FILES) <= 400


def test_every_function_has_its_return_type() -> None:
    assert [name for name, node in functions() if node.returns is None] == []


def test_nothing_needs_what_lies_beside_the_checkout() -> None:
    """A new user's machine has the repository and nothing beside it."""
    parts = [*FILES, *(ROOT.parent / "configs").rglob("*.yaml"), ROOT.parent / "Makefile", ROOT.parent / "README.md"]
    assert [str(path) for path in parts if "../shared" in path.read_text()] == []
