"""`runs [FOLDER]`: a table of all runs: date, state, ELBO, NLL, what differs in their settings; --prune asks first.

The settings that differ are those of the runs of one experiment. The ELBO is that of the test, or, marked `val`, the
best of the validations. `measures` are the numbers that a model names as its first; ELBO and NLL are left out where a
beta of 0 takes their meaning. `running` means that a process holds the run's lock; `trained`, that the run was not
tested.
"""

from __future__ import annotations

import argparse
import shutil
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vae_lightning.metrics.formatting import number, value_and_error, with_error
from vae_lightning.runs.differences import differing_by_name
from vae_lightning.runs.ownership import others_kept_out
from vae_lightning.runs.record import (
    CONFIG,
    METRICS,
    REPORT,
    RESULTS,
    Record,
    find_runs,
    has_checkpoint,
    last_change,
    read_curves,
    read_run,
    state_of,
)
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, in_columns, printable

OF_ONE_RUN = ("trainer.logger", "trainer.default_root_dir", "trainer.enable_progress_bar", "runs_dir", "experiment")
"""Settings of where a run is kept and shown. They change nothing in its training, so no table lists them."""

_MOST_SETTINGS = 6  # that a row names
_OWN_FILES = {CONFIG, METRICS, RESULTS, REPORT, "classes.json", ".owner.json", "test_values.npz"}
_OWN_FOLDERS = {"checkpoints": (), "images": (".png", ".gif", ".txt"), "wandb": None}  # None: whatever is in it


class Row(NamedTuple):
    """A run of the table: its folder, what it left, its state, its date."""

    record: Record
    state: str
    date: str


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    parser.add_argument(
        "folder", metavar="FOLDER", type=Path, nargs="?", default=Path("runs"), help="the folder of runs; default: runs"
    )
    prune = "after a question, delete the runs that have neither a checkpoint nor a result, and nothing else"
    parser.add_argument("--prune", action="store_true", help=prune)
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:  # noqa: ARG001 - nothing is imported
    """Print the table; with `--prune`, ask and delete.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names; not needed, because nothing is imported.

    Raises:
        UserError: if there is no such folder.
    """
    place = arguments.folder
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; name the folder of your runs, that of --runs_dir")
    rows = sorted((Row(read_run(path), state_of(path), last_change(path)) for path in find_runs(place)), key=_order)
    if not rows:
        print(f"{place}: no runs in it")
        return
    print(table(rows, place))
    for row in rows:
        for fault in row.record.faults:
            print(printable(fault))
        if line := tested_otherwise(str(row.record.folder), row.record):
            print(printable(line))
    if arguments.prune:
        _prune(rows)


def table(rows: Sequence[Row], place: Path) -> str:
    """Return the table of runs as text, the newest run last.

    Args:
        rows: The runs.
        place: The folder below which they lie; the first column is the path from there.
    """
    differing = _differing(rows)
    cells = [("run", "date", "state", "elbo", "nll", "measures", "differs")]
    for row in rows:
        folder = row.record.folder
        name = str(folder.relative_to(place)) if folder != place else str(place)
        numbers = (_elbo(row.record), _nll(row.record), _measures(row.record))
        cells.append((name, row.date, row.state, *numbers, differing[folder]))
    if not any(row.record.measures for row in rows):
        return in_columns([(*one[:5], one[6]) for one in cells], right=(3, 4))
    return in_columns(cells, right=(3, 4))


def tested_otherwise(name: str, record: Record) -> str:
    """Return a line if the numbers of a run are those of a test with other settings than the run's; else no text.

    Args:
        name: What the run is called in the line.
        record: The run.
    """
    changes = record.tested_otherwise
    return f"{name}: tested with other settings than its config.yaml's: {'; '.join(changes)}" if changes else ""


def _order(row: Row) -> tuple[str, str]:
    return row.date, str(row.record.folder)


def _elbo(record: Record) -> str:
    """Return the ELBO of the test, or the best one of a validation."""
    elbo = record.number("elbo")
    if elbo is not None:
        return with_error(elbo, record.number("elbo_stderr"))
    if record.says_nothing("elbo"):
        return "-"
    values = [value for _, value in read_curves(record.folder).get("val/elbo", []) if value == value]
    return f"{number(max(values))} val" if values else "-"


def _measures(record: Record) -> str:
    """Return the numbers of the test that the model names as its first."""
    found = record.numbers()
    return ", ".join(f"{name} {value_and_error(*found[name])}" for name in record.measures) or "-"


def _nll(record: Record) -> str:
    nll = record.number("nll")
    return "-" if nll is None else with_error(nll, record.number("nll_stderr"))


def _differing(rows: Sequence[Row]) -> dict[Path, str]:
    """Return for each run the settings in which the runs of its experiment differ."""
    text = {}
    for experiment in {_experiment(row.record) for row in rows}:
        group = [row.record for row in rows if _experiment(row.record) == experiment]
        found = differing_by_name([record.config for record in group if record.config])
        found = {name: values for name, values in found.items() if not name.startswith(OF_ONE_RUN)}
        short = short_names(list(found))
        with_config = 0
        for record in group:
            pairs = []
            if record.config:
                values = [(short[name], values[with_config]) for name, values in found.items()]
                pairs = [f"{name} {value}" for name, value in values if value is not None]
                with_config += 1
            more = [f"and {len(pairs) - _MOST_SETTINGS} more"] if len(pairs) > _MOST_SETTINGS else []
            text[record.folder] = ", ".join([*pairs[:_MOST_SETTINGS], *more])
    return text


def _experiment(record: Record) -> Path:
    return record.folder.absolute().parent


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return for each setting its shortest ending that no other has: `lr` for `model.optimizer.lr`.

    Args:
        names: The full names, such as `model.optimizer.lr`.
    """
    short = {}
    for name in names:
        words = name.split(".")
        endings = [".".join(words[i:]) for i in reversed(range(len(words)))]
        taken = [other for other in names if other != name]
        short[name] = next((one for one in endings if not any(_ends(other, one) for other in taken)), name)
    return short


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


# -- pruning -----------------------------------------------------------------------------------------------------------


def _prune(rows: Sequence[Row]) -> None:
    """Ask whether to delete the runs without a checkpoint and a result, and delete them if the answer is yes."""
    empty = [row.record.folder for row in rows if row.state == "empty"]
    deletable = []
    for folder in empty:
        foreign = next(_foreign(folder), None)
        if foreign is None:
            deletable.append(folder)
        else:
            print(f"{printable(folder)}: kept, because of {printable(foreign)}, which no run writes")
    if not deletable:
        print(
            "nothing to delete: each run has a checkpoint or a result, or is running"
            if not empty
            else "nothing deleted"
        )
        return
    print("without a checkpoint and a result:", *(f"  {printable(folder)}" for folder in deletable), sep="\n")
    try:
        answer = input(f"delete {'this run' if len(deletable) == 1 else f'these {len(deletable)} runs'}? [y/N] ")
    except (EOFError, KeyboardInterrupt):
        answer = ""
        print()
    if answer.strip().lower() not in ("y", "yes"):
        print("nothing deleted")
        return
    for folder in deletable:
        print(f"{printable(folder)}: {_delete(folder)}")


def _delete(folder: Path) -> str:
    """Delete a run unless it has begun to run, or to hold more, since the table was made. Return what happened."""
    try:
        with others_kept_out(folder) as is_ours:
            if not is_ours or has_checkpoint(folder) or (folder / RESULTS).exists() or any(_foreign(folder)):
                return "kept, because it has changed"
            shutil.rmtree(folder)  # refuses a link, and follows none
    except OSError as error:
        return f"not deleted ({error.strerror or error})"
    return "deleted"


def _foreign(folder: Path) -> Iterator[Path]:
    """Yield what lies in a run's folder that the run has not written. A link at the top counts as foreign."""
    for path in sorted(folder.iterdir()):
        kind = path.lstat().st_mode
        if stat.S_ISREG(kind) and (path.name in _OWN_FILES or path.name.endswith(".vae_lightning.part")):
            continue
        if not stat.S_ISDIR(kind) or path.name not in _OWN_FOLDERS:
            yield path
            continue
        endings = _OWN_FOLDERS[path.name]
        if endings is not None:
            yield from (inner for inner in path.iterdir() if inner.is_symlink() or inner.suffix not in endings)


COMMAND = Command(make_parser, run)
