"""docs/reliability.md agrees with the tests: every fault has a row, each named test exists, few rows lack a test."""

from __future__ import annotations

import ast
import re

from tests.helpers import REPOSITORY

PAGE = (REPOSITORY / "docs" / "reliability.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if re.match(r"\| [A-Z]\d", line)
]
COUNTS = {"R": 13, "S": 6, "C": 7, "N": 7, "D": 13, "X": 8, "L": 7, "W": 6, "M": 3, "F": 1, "E": 5}


def test_every_fault_has_a_row() -> None:
    assert [row[0] for row in ROWS] == [f"{kind}{n}" for kind, count in COUNTS.items() for n in range(1, count + 1)]
    assert len(ROWS) == int(re.search(r"^(\d+) faults", PAGE, re.MULTILINE)[1])  # type: ignore[index]
    assert {len(row) for row in ROWS} == {5}


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 80
    for file, name in named:
        tree = ast.parse((REPOSITORY / "tests" / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{file}::{name}"


def test_a_row_passes_or_says_why_not() -> None:
    """At most five rows have no test."""
    without = []
    for number, _, _, tests, result in ROWS:
        assert re.fullmatch(r"[1-9]\d*|not tested: \w.+", result), number
        assert result.isdigit() == ("::" in tests), number
        without += [] if result.isdigit() else [number]
    assert len(without) <= 5, without
