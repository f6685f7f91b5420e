"""A row of the table: its run, the published figure, and the results that the repository keeps of its runs."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from vae_lightning.runs import record as runs_record

Record: TypeAlias = dict[str, Any]
"""The part of a run's results.json that is kept."""
Kept: TypeAlias = dict[str, list[Record]]
"""The records of each row, one per seed."""

BOUNDS = ("at_most", "at_least", "below", "above")
KEPT = (
    *("metrics", "nll", "evaluation", "left_out", "binarisation", "data", "model", "seed", "precision", "devices"),
    *("machine", "seconds", "versions"),
)


class RowError(ValueError):
    """A mistake in the rows or in a run, in one line."""


@dataclass(frozen=True)
class Row:
    """A row of rows.yaml, whose head explains the fields."""

    name: str
    title: str
    config: str
    flags: str = ""
    metric: str = "test/nll"
    published: str = ""
    source: str = ""
    must: Mapping[str, Any] = field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    not_run: str = ""
    remark: str = ""
    in_readme: bool = True
    beside: Mapping[str, str] = field(default_factory=dict)
    runs_of: str = ""

    @property
    def folder(self) -> str:
        """The folder of the runs below runs/papers."""
        return self.runs_of or self.name

    @property
    def command(self) -> str:
        """The command that a reader types."""
        flags = " ".join(self.flags.split())
        return f"make train CONFIG={self.config}" + (f' ARGS="{flags}"' if flags else "")

    @property
    def arguments(self) -> list[str]:
        return ["-c", self.config, *shlex.split(self.flags)]

    def recipe(self, root: Path) -> str | None:
        """A digest of the config's contents without its comments; None if the file does not exist."""
        path = root / self.config
        if not path.is_file():
            return None
        contents = json.dumps(yaml.safe_load(path.read_text()), sort_keys=True, default=str)
        return hashlib.sha256(contents.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Figure:
    """A number of a row with its standard error, over images or over several seeds."""

    value: float
    error: float


def read_rows(path: Path) -> dict[str, Row]:
    known = {one.name for one in fields(Row)} - {"name"}
    rows = {}
    for name, entry in yaml.safe_load(path.read_text()).items():
        unknown, missing = entry.keys() - known, {"title", "config"} - entry.keys()
        if unknown or missing:
            wrong = (
                f"{sorted(unknown)[0]!r} is not a field of a row" if unknown else f"{sorted(missing)[0]!r} is missing"
            )
            raise RowError(f"{path}: {name}: {wrong}; the fields are {', '.join(sorted(known))}")
        rows[name] = Row(name, **entry)
    for row in rows.values():
        other = rows.get(row.runs_of, row)
        is_same = (other.config, other.flags, other.seeds) == (row.config, row.flags, row.seeds)
        if row.runs_of and (other is row or other.runs_of or not is_same):
            raise RowError(
                f"{path}: {row.name}: runs_of is {row.runs_of}; it must be a row with runs of its own, and with the "
                "same config, flags and seeds"
            )
        for bound, value in row.must.items():
            fits = value in rows if bound in ("below", "above") else isinstance(value, (int, float))
            if bound not in BOUNDS or not fits or len(row.must) > 1:
                wants = "at_most or at_least and a number, or below or above and a row"
                raise RowError(f"{path}: {row.name}: must is {dict(row.must)}; expected one of {wants}")
    return rows


# -- runs and what is kept of them ------------------------------------------------------------------------------------


def collect(row: Row, runs: Path, kept: Sequence[Record], root: Path) -> list[Record]:
    """For each seed, in order: the newest finished run in `runs`/papers/<folder>, else the kept record."""
    found = {record["seed"]: record for record in kept}
    folders = sorted(path.parent for path in (runs / "papers" / row.folder).glob("*/results.json"))
    for folder in folders:
        record = record_of(row, folder, root)
        known = found.get(record["seed"], {}).get("run", "")
        if known != record["run"] and _made(known) <= _made(record["run"]):
            found[record["seed"]] = record
    return [found[seed] for seed in row.seeds if seed in found]


def _made(run: str) -> str:
    """The time in a run's name, for comparison. A run whose name has no time counts as the oldest."""
    return run if re.match(r"\d{8}-\d{6}", run) else ""


def record_of(row: Row, folder: Path, root: Path) -> Record:
    """The record of a run, without the paths of its machine. The recipe is the config's present contents."""
    try:
        text = (folder / "results.json").read_text()
        results = json.loads(text, parse_constant=lambda _: None)  # older runs wrote NaN in place of null
        record = {name: results[name] for name in KEPT}
        if record["metrics"].get(row.metric) is None:
            raise RowError(f"{folder}/results.json: has no {row.metric}, the figure of {row.name}")
        if runs_record.Record(folder, {}, results).says_nothing(row.metric.removeprefix("test/")):
            raise RowError(f"{folder}/results.json: {results['loss_note']}: {row.metric} is no figure for {row.name}")
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, RowError):
            raise
        raise RowError(f"{folder}/results.json: no results of a finished run ({error})") from error
    settings = record["data"].get("init_args", {})
    places = ("data_dir", "cache_dir")
    record["data"]["init_args"] = {name: value for name, value in settings.items() if name not in places}
    return {"run": folder.resolve().name, "command": row.command, "recipe": row.recipe(root), **record}


def read_kept(path: Path) -> Kept:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


# -- figures ----------------------------------------------------------------------------------------------------------


def figure(row: Row, records: Sequence[Record], metric: str | None = None) -> Figure | None:
    """The figure of a metric (default: the row's own); None if a seed has no run, or its run lacks the metric."""
    name = metric or row.metric
    values = [value for record in records if (value := record["metrics"].get(name)) is not None]
    if len(values) < max(len(row.seeds), len(records)):
        return None
    if len(values) > 1:
        return Figure(statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values)))
    error = records[0]["metrics"].get(f"{name}_stderr")
    return Figure(values[0], math.nan if error is None else error)


def judged(row: Row, rows: Mapping[str, Row], kept: Kept) -> str:
    """`met` or `MISSED`, with the gap if the bound is another row; empty without a bound or a figure."""
    mine = figure(row, kept.get(row.folder, []))
    if mine is None or not row.must:
        return ""
    ((bound, value),) = row.must.items()
    if bound in ("at_most", "at_least"):
        return "met" if (mine.value <= value if bound == "at_most" else mine.value >= value) else "MISSED"
    other = figure(rows[value], kept.get(rows[value].folder, []))
    if other is None:
        return f"{value} has not been run"
    gap = (other.value - mine.value) * (1 if bound == "below" else -1)
    error = math.hypot(mine.error, other.error)
    digits = 2 if abs(gap) >= 0.1 else 3
    spread = "?" if math.isnan(error) else f"{error:.{digits}f}"
    verdict = f"{'met' if gap > 0 else 'MISSED'}: {gap:.{digits}f} ± {spread} {bound} {value}"
    my_elbo, its_elbo = (figure(one, kept.get(one.folder, []), "test/elbo") for one in (row, rows[value]))
    if row.metric != "test/nll" or my_elbo is None or its_elbo is None:
        return verdict
    return f"{verdict}; ELBO {my_elbo.value - its_elbo.value:+.2f} ± {math.hypot(my_elbo.error, its_elbo.error):.2f}"
