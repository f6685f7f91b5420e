"""The shape of the code: imports point one way, files and functions stay small, everything is annotated."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "vae_lightning"
FILES = sorted(ROOT.rglob("*.py"))
ALLOWED = {  # what each room may import of ours, besides itself
    "types": set(),
    "signals": set(),
    "cores": set(),
    "formatting": set(),
    "ownership": {"types"},
    "noise": set(),
    "recipes": {"types"},
    "checkpoint_form": {"types"},
    "checkpoint_io": {"checkpoint_form", "types"},
    "restoring": {"checkpoint_form", "types"},
    "trust": {"checkpoint_form", "checkpoint_io", "types"},
    "trace": {"types"},
    "distributions": {"cores", "types"},
    "networks": {"types"},
    "objectives": {"trace", "types"},
    "models": {"distributions", "networks", "noise", "objectives", "recipes", "restoring", "trace", "trust", "types"},
    "data": {"cores", "drawing", "noise", "types"},
    "drawing": {"noise", "types"},
    "metrics": {"data", "distributions", "formatting", "models", "networks", "noise", "trace", "types"},
    "callbacks": {
        *("checkpoint_io", "compiler", "cores", "data", "formatting", "metrics", "models", "noise", "ownership"),
        *("restoring", "signals", "types"),
    },
}


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "vae_lightning":
            names = [f"vae_lightning.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
        found |= {name.split(".")[1] for name in names if name.startswith("vae_lightning.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    if room(path) in ALLOWED:
        assert imported_rooms(path) <= ALLOWED[room(path)] | {room(path)}


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
    """A fresh user's machine has the repository and nothing else."""
    parts = [*FILES, *(ROOT.parent / "configs").rglob("*.yaml"), ROOT.parent / "Makefile", ROOT.parent / "README.md"]
    assert [str(path) for path in parts if "../shared" in path.read_text()] == []
