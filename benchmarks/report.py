"""Tables of medians and ranges, and their file. Each suite has a section, which a new run of the suite replaces."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.rounds import Claim, Contender, Results, Round, Suite, measured


def summarise(suite: Suite, results: Results, header: dict[str, str]) -> dict[str, Any]:
    """A suite's entry in the results' JSON: its header, its tables as text, and the records of all rounds."""
    rounds = [{name: measured(record, results.nearest) for name, record in one.items()} for one in results.rounds]
    failures = {name: said for name, said in results.failures.items() if said != "not installed"}
    return {
        "title": suite.title,
        "header": header,
        "table": [_titles(suite), *(_row(suite, contender, rounds, results) for contender in _tried(suite, results))],
        "claims": [_judged(claim, rounds) for claim in suite.claims],
        "notes": list(suite.notes),
        "failures": failures,
        "rounds": results.rounds,
    }


def _tried(suite: Suite, results: Results) -> list[Contender]:
    """The contenders that were run, in the order of the suite."""
    names = {name for one in results.rounds for name in one} | results.failures.keys()
    return [contender for contender in suite.contenders if contender.name in names]


def _titles(suite: Suite) -> list[str]:
    ratio = [f"x {suite.base}"] if suite.base else []
    return ["contender", *(column.title for column in suite.columns), *ratio, "what"]


def _row(suite: Suite, contender: Contender, rounds: list[Round], results: Results) -> list[str]:
    if contender.name in results.failures:
        said = results.failures[contender.name]
        cells = ["not installed" if said == "not installed" else "failed"] + [""] * (len(suite.columns) - 1)
        ratio = [""] if suite.base else []
        return [contender.name, *cells, *ratio, contender.what]
    mine = [one[contender.name] for one in rounds if contender.name in one]
    cells = [spread([column.value(values) for values in mine], column.style) for column in suite.columns]
    if suite.base:
        cells.append(spread([ratio_of(one, contender.name, suite.base, suite.speed) for one in rounds], ".2f"))
    return [contender.name, *cells, contender.what]


def ratio_of(one: Round, above: str, below: str, name: str) -> float | None:
    """The ratio of two contenders within one round, in which a slow phase of the machine affects both."""
    a, b = one.get(above, {}).get(name), one.get(below, {}).get(name)
    return None if a is None or not b else a / b


def spread(values: Iterable[float | None], style: str) -> str:
    """Format as `median (least to greatest)`."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    median = format(statistics.median(known), style)
    return f"{median} ({min(known):{style}} to {max(known):{style}})" if len(known) > 1 else median


def _judged(claim: Claim, rounds: list[Round]) -> list[str]:
    known = [value for value in map(claim.value, rounds) if value is not None]
    must = claim.must(known) if callable(claim.must) else claim.must
    sign = "<=" if claim.at_most else ">="
    bound = "recorded" if claim.must is None else "-" if must is None else f"{sign} {must:{claim.style}}"
    if not known:
        verdict = "not measured"
    elif must is None:
        verdict = "" if claim.must is None else "too few rounds"
    else:
        median = statistics.median(known)
        verdict = "met" if (median <= must if claim.at_most else median >= must) else "MISSED"
    return [claim.what, bound, spread(known, claim.style), verdict]


# -- files -------------------------------------------------------------------------------------------------------------


def keep(folder: Path, name: str, machine: dict[str, str], suites: dict[str, dict[str, Any]]) -> Path:
    """Add the suites to `<folder>/<name>.json`, and write `<name>.md` from the whole JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    known = json.loads(path.read_text())["suites"] if path.is_file() else {}
    contents = {"machine": machine, "suites": {**known, **suites}}
    path.write_text(json.dumps(contents, indent=1) + "\n")
    page = path.with_suffix(".md")
    page.write_text(markdown(contents))
    return page


def markdown(contents: dict[str, Any]) -> str:
    lines = ["# Speed beside the peers", "", *(f"- {name}: {value}" for name, value in contents["machine"].items())]
    lines += [
        "",
        "Medians over the rounds, in brackets the least and the greatest; a ratio is taken within each round.",
    ]
    for name, suite in contents["suites"].items():
        lines += ["", *section(name, suite)]
    return "\n".join(lines) + "\n"


def section(name: str, suite: dict[str, Any]) -> list[str]:
    lines = [f"## {name}: {suite['title']}", ""]
    lines += [f"- {key}: {value}" for key, value in suite["header"].items()]
    lines += ["", *_table(suite["table"])]
    if suite["claims"]:
        lines += ["", *_table([["claim", "must reach", "measured", ""], *suite["claims"]])]
    if suite["notes"]:
        lines += ["", *(f"- {note}" for note in suite["notes"])]
    for contender, said in suite["failures"].items():
        lines += ["", f"`{contender}` failed; the end of what it said:", "", "```", said, "```"]
    return lines


def _table(rows: list[list[str]]) -> list[str]:
    """A Markdown table whose first row is the head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return [lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]]
