"""The table as Markdown: all rows in docs/results.md, and the measured rows between two marks in the README."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.papers.rows import Figure, Kept, Record, Row, figure, judged

BEGIN, END = "<!-- results: written by make results -->", "<!-- end of results -->"
HEAD = """\
# Numbers beside the papers

`make results` writes this page from the results of finished runs, which are stored in [results.json](results.json).
[rows.yaml](../benchmarks/papers/rows.yaml) defines the rows. `make results ARGS="--run ROW"` first makes the runs of a
row.

The unit is nats per image on the official test split, where lower is better. The MIG, the accuracy of
counts and the share of texts that are read right are exceptions: 1 is best. Errors of roll-outs are distances in a box
that is 2 wide.
-log p(x) is estimated by K importance samples and is an upper bound on average; "effective" is the effective number of
these samples. The standard error is over test images, or over seeds if a row has several. Two runs are tested on the
same images, so the stated error of the gap between them is too large. Static and dynamic binarisation are different
test sets. The brackets name the source of a published figure; the source is not always the paper.
"""


def page(rows: Mapping[str, Row], kept: Kept, root: Path) -> str:
    titles = ["row", "what", "measured", "published", "must reach", "reached"]
    table = [titles, *([f"`{name}`", *_cells(row, rows, kept, root)] for name, row in rows.items())]
    commands = [_commands(row, kept.get(row.folder, []), root) for row in rows.values()]
    parts = [HEAD, _table(table), "## Commands", *commands]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _cells(row: Row, rows: Mapping[str, Row], kept: Kept, root: Path) -> list[str]:
    bounds = ", ".join(f"{_words(bound)} {value}" for bound, value in row.must.items()) or "best effort"
    published = row.published + (f" [{row.source}]" if row.source else "")
    return [row.title, measured(row, kept.get(row.folder, []), root), published, bounds, judged(row, rows, kept)]


def _words(bound: str) -> str:
    return bound.replace("_", " ")


def measured(row: Row, records: Sequence[Record], root: Path) -> str:
    """The figure with its conditions (K, ELBO, effective samples, seeds), or `not run` and the reason."""
    found = figure(row, records)
    if found is None:
        return f"not run: {_reason(row, records, root)}"
    conditions = []
    if row.metric == "test/nll":
        conditions.append(f"K = {records[0]['nll']['num_samples']:,}")
        elbo = figure(row, records, "test/elbo")
        conditions += [f"ELBO {formatted(elbo)}"] if elbo else []
        ess = figure(row, records, "test/nll_ess")
        conditions += [f"{ess.value:.0f} effective"] if ess else []
    for words, metric in row.beside.items():
        other = figure(row, records, metric)
        conditions += [f"{words} {formatted(other)}"] if other else []
    conditions += [f"seeds {', '.join(map(str, row.seeds))}"] if len(row.seeds) > 1 else []
    return formatted(found) + (f" ({'; '.join(conditions)})" if conditions else "")


def formatted(found: Figure) -> str:
    """Format as 89.73 ± 0.21; numbers below 10 have three digits."""
    digits = 2 if abs(found.value) >= 10 else 3
    error = "" if math.isnan(found.error) else f" ± {found.error:.{digits}f}"
    return f"{found.value:.{digits}f}{error}"


def _reason(row: Row, records: Sequence[Record], root: Path) -> str:
    if row.not_run:
        return row.not_run
    if not (root / row.config).is_file():
        return f"there is no {row.config}"
    done = [record["seed"] for record in records]
    return f"seeds {done} of {list(row.seeds)} are done" if done else "no run of this row has finished"


def _commands(row: Row, records: Sequence[Record], root: Path) -> str:
    if row.runs_of:
        return f"### {row.name}\n\nThe runs of `{row.runs_of}`."
    now = row.recipe(root)
    lines = [f"### {row.name}", "", "```sh", records[0]["command"] if records else row.command, "```"]
    if records and records[0]["command"] != row.command:
        lines += ["", f"The row has changed since this run; its command is now `{row.command}`."]
    if any(record.get("recipe", now) != now for record in records):  # older records have none
        lines += ["", f"The contents of `{row.config}` have changed since this run."]
    facts = [_facts(record) for record in records] + ([row.remark] if row.remark and records else [])
    return "\n".join([*lines, *(f"\n- {fact}" for fact in facts)])


def _facts(record: Record) -> str:
    """The further conditions of a figure, and the time of its run."""
    seconds, versions = record["seconds"], record["versions"]
    times = [f"{_time(seconds[part])} to {part}" for part in ("fit", "test") if part in seconds]
    binarisation = f"binarisation {record['binarisation']}, " if record["binarisation"] else ""
    facts = f"seed {record['seed']}, {binarisation}{record['precision']}"
    return f"{facts}; {', '.join(times)}; {record['machine']}; torch {versions['torch']}; run {record['run']}"


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def short_table(rows: Mapping[str, Row], kept: Kept, root: Path) -> str:
    """The README's table: the rows that have a figure and `in_readme`."""
    done = [row for row in rows.values() if row.in_readme and figure(row, kept.get(row.folder, []))]
    lines = [[row.title, measured(row, kept[row.folder], root), row.published or "-", f"`{row.name}`"] for row in done]
    return _table([["what", "measured", "published", "row"], *lines]) if done else "No row has been run yet."


def put_between_marks(text: str, table: str) -> str | None:
    """The text with the table between the two marks; None if the text has no marks."""
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table}\n{END}{after}" if found and ended else None


def _table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first row is the head."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join("---" for _ in rows[0]) + " |", *lines[1:]])
