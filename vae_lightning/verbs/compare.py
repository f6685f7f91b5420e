"""`compare RUN RUN ...`: runs side by side: numbers with the error of their difference, curves, settings that differ.

The differences are those to the first run. If both runs tested the same examples, their errors are paired: those of
the mean of the differences of each example, which are smaller than the errors of the two numbers suggest. A run of
other data or of another likelihood is not put beside the first one, because a difference of their nats says nothing.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vae_lightning.metrics.formatting import value_and_error
from vae_lightning.pictures import Page, line_chart
from vae_lightning.runs.differences import differing_by_name
from vae_lightning.runs.record import (
    Record,
    class_name,
    entry,
    folder_of,
    last_change,
    mapping,
    read_curves,
    read_run,
    read_values,
    state_of,
)
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, check_ending, in_columns, printable
from vae_lightning.verbs.report import save_page, unit_of
from vae_lightning.verbs.runs import OF_ONE_RUN, short_names, tested_otherwise

Values = Mapping[str, npt.NDArray[np.float64]]
_FIRST = ("nll", "nll_bpd", "elbo", "log_likelihood", "kl")  # the order of the numbers
_HARMLESS = {"batch_size", "eval_batch_size", "num_workers", "resident", "flip"}  # no choice of the test examples
_CURVES = ("val/elbo", "train/elbo", "val/log_likelihood", "val/kl", "train/grad_norm", "train/images_per_second")


class Difference(NamedTuple):
    """The difference of a number to that of the first run.

    Args:
        value: The difference.
        error: Its standard error; None if unknown.
        num_pairs: The number of examples that both runs tested, if the error is of their differences; 0 if it is that
            of two independent numbers.
    """

    value: float
    error: float | None
    num_pairs: int


@dataclass(frozen=True)
class Compared:
    """A run of the comparison: its name in the tables, what it left, and the values of each test example."""

    name: str
    record: Record
    values: Values


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's folder, or a checkpoint in it; two or more")
    output = "the HTML file to write; default: compare.html in the present folder"
    parser.add_argument("--output", type=Path, default=Path("compare.html"), help=output)
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:  # noqa: ARG001 - nothing is imported
    """Print the comparison and write its page.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names; not needed, because nothing is imported.

    Raises:
        UserError: if fewer than two runs are given, or one twice. With exit code 1, after everything is written: if the
            numbers of a run are not put beside those of the first.
    """
    check_ending(arguments.output, ".html", ".htm")
    folders = [folder_of(path) for path in arguments.runs]
    if len(folders) < 2:
        raise UserError("compare: one run is given; give two or more: vae-lightning compare RUN RUN")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("compare: a run is given twice; give each run once")
    names = _names(folders)
    runs = [Compared(name, read_run(path), consistent_values(path)) for name, path in zip(names, folders, strict=True)]
    page = Page("Comparison of " + ", ".join(names))
    page.table(
        ["run", "folder", "state", "date"],
        [(name, str(path), state_of(path), last_change(path)) for name, path in zip(names, folders, strict=True)],
    )
    for compared in runs:
        for fault in compared.record.faults:
            print(printable(fault))
    alike = _comparable(page, runs)
    if len(alike) > 1:
        _show_numbers(page, alike)
        _show_curves(page, alike)
    _show_settings(page, runs)
    save_page(page, arguments.output)
    kept = [one.name for one in alike]
    if left_out := [name for name in names if name not in kept]:
        others = ", ".join(left_out)
        refusal = UserError(f"compare: the numbers of {others} are not put beside those of {names[0]}; see above")
        refusal.exit_code = 1  # for scripts, which do not read the line above
        raise refusal


# -- what may be compared ----------------------------------------------------------------------------------------------


def _comparable(page: Page, runs: Sequence[Compared]) -> list[Compared]:
    """Return the first run and those that it can be compared with; print and add why each other run cannot."""
    alike = [runs[0]]
    for other in runs[1:]:
        reason = why_not_comparable(runs[0], other)
        if reason is None:
            alike.append(other)
        else:
            line = f"{runs[0].name} and {other.name}: numbers are not put side by side: {reason}"
            print(printable(line))
            page.text(line)
    return alike


def why_not_comparable(first: Compared, second: Compared) -> str | None:
    """Return why the numbers of two runs mean different things; None if they can be compared.

    Args:
        first: A run.
        second: Another run.
    """
    facts = [_facts(compared.record) for compared in (first, second)]
    for name, value in facts[0].items():
        if value != facts[1][name] and None not in (value, facts[1][name]):
            return f"{name} {value} / {facts[1][name]}"
    if "fingerprint" in first.values and "fingerprint" in second.values and not num_shared(first.values, second.values):
        changed = differing_by_name([entry(one.record.config, "data", "init_args") for one in (first, second)])
        for name in changed.keys() - _HARMLESS:
            return f"the test examples differ: data.{name} {' / '.join(map(str, changed[name]))}"
    return None


def _facts(record: Record) -> dict[str, object]:
    """Return what two runs must share. Of the likelihood: its name, and the settings that are numbers of levels."""
    results, config = record.results, record.config
    recipe = entry(config, "model", "init_args", "likelihood")
    settings = mapping(recipe, "init_args")
    levels = {name: value for name, value in settings.items() if isinstance(value, int) and name.startswith("num_")}
    data = config.get("data") or results.get("data")
    return {
        "data": class_name(data),
        "likelihood": results.get("likelihood") or class_name(recipe),
        "likelihood levels": ", ".join(f"{name} {value}" for name, value in sorted(levels.items())) or None,
        "binarisation": results.get("binarisation", entry(data, "init_args", "binarisation")),
        "dequantise": entry(data, "init_args", "dequantise"),
        "x": str(shape)
        if (shape := entry(data, "init_args", "image_size") or entry(data, "init_args", "size"))
        else None,
    }


def consistent_values(folder: Path) -> Values:
    """Return the values of each test example, if they are those of the run's results; empty if not.

    A test that was killed between its two files leaves values of another test than the results.

    Args:
        folder: The run's folder.
    """
    values, record = read_values(folder), read_run(folder)
    known = [(name, record.number(name)) for name in values]
    means = [(mean, float(values[name].mean())) for name, mean in known if mean is not None]
    are_those = all(math.isclose(mean, found, rel_tol=1e-4, abs_tol=1e-4) for mean, found in means)
    return values if means and are_those else {}


# -- differences -------------------------------------------------------------------------------------------------------


def paired_difference(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> tuple[float, float | None]:
    """Return the mean of d_i = second_i - first_i and its standard error sqrt(sum_i (d_i - mean)^2 / (N (N - 1))).

    Args:
        first: The values of N examples in a run, [N].
        second: The values of the same examples in another run, [N].
    """
    d = second - first
    return float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d))) if len(d) > 1 else None


def difference(name: str, first: Compared, second: Compared) -> Difference | None:
    """Return the difference of a number of two runs; None if one of them does not have the number.

    Args:
        name: The number's name without `test/`.
        first: The run that is subtracted.
        second: The other run.
    """
    if any(one.record.says_nothing(name) for one in (first, second)):
        return None
    count = num_shared(first.values, second.values)
    if count and name in first.values and name in second.values:
        value, error = paired_difference(first.values[name][:count], second.values[name][:count])
        return Difference(value, error, count)
    if name == "nll_bpd" and (apart := difference("nll", first, second)) and apart.num_pairs:
        return _in_bits(apart, first, second)
    (a, a_error), (b, b_error) = (one.record.numbers().get(name, (None, None)) for one in (first, second))
    if a is None or b is None:
        return None
    error = math.hypot(a_error, b_error) if a_error is not None and b_error is not None else None
    return Difference(b - a, error, 0)


def _in_bits(nats: Difference, first: Compared, second: Compared) -> Difference | None:
    """Return the difference of `nll` in bits per dimension. The errors say how many nats a bit is in each run."""
    errors = [(one.record.number("nll_bpd_stderr"), one.record.number("nll_stderr")) for one in (first, second)]
    scales = [bits / error for bits, error in errors if bits and error]
    if len(scales) < 2 or not math.isclose(*scales, rel_tol=1e-3):
        return None
    return Difference(nats.value * scales[0], None if nats.error is None else nats.error * scales[0], nats.num_pairs)


def num_shared(first: Values, second: Values) -> int:
    """Return how many examples, from the first of the test set on, two runs have both tested; 0 if not the same ones.

    The fingerprints of the examples must be equal; see `metrics.examples.fingerprint`.

    Args:
        first: The values of each test example of a run.
        second: Those of another run.
    """
    a, b = first.get("fingerprint"), second.get("fingerprint")
    if a is None or b is None:
        return 0
    count = min(len(a), len(b))
    return count if np.allclose(a[:count], b[:count], rtol=1e-5, atol=1e-3, equal_nan=True) else 0


# -- what is shown -----------------------------------------------------------------------------------------------------


def _names(folders: Sequence[Path]) -> list[str]:
    """Return for each run the shortest end of its path that no other run has."""
    paths = [".".join(part.replace(".", "\0") for part in folder.resolve().parts[1:]) for folder in folders]
    short = short_names(paths)
    return [short[path].replace(".", "/").replace("\0", ".") for path in paths]


def _show_numbers(page: Page, runs: Sequence[Compared]) -> None:
    """Print and add the table of the numbers and their differences to those of the first run."""
    first, others = runs[0], runs[1:]
    every = list(dict.fromkeys(name for one in runs for name in one.record.numbers()))
    ahead = [*dict.fromkeys(name for one in runs for name in one.record.measures), *_FIRST]
    names = sorted(every, key=lambda name: ahead.index(name) if name in ahead else len(ahead))
    columns = ["", *(one.name for one in runs), *(f"{one.name} - {first.name}" for one in others), "unit"]
    rows = []
    for name in names:
        found = [one.record.numbers().get(name, (None, None)) for one in runs]
        apart = [difference(name, first, one) for one in others]
        if name == "loss" or all(value is None for value, _ in found):
            continue  # what training minimised may have another beta in each run
        cells = [value_and_error(*pair) for pair in found]
        cells += map(_in_words, apart)
        rows.append([name, *cells, unit_of(first.record, name)])
    if not rows:
        print("no run has a result: vae-lightning test writes it")
        return
    print(in_columns([columns, *rows], right=range(1, len(columns) - 1)))
    notes = _notes(first, others)
    print(*(printable(note) for note in notes), sep="\n")
    page.heading("Numbers of the test")
    page.table(columns, rows)
    for note in notes:
        page.text(note, is_note=True)


def _in_words(apart: Difference | None) -> str:
    """Return a difference with its error, and a star if the error is that of two independent numbers."""
    if apart is None:
        return "?"
    is_independent = apart.error is not None and not apart.num_pairs
    return f"{value_and_error(apart.value, apart.error)}{' *' if is_independent else ''}"


def _notes(first: Compared, others: Sequence[Compared]) -> list[str]:
    """Return how the errors of the differences were found, and which conditions differ."""
    lines = [
        "+- one standard error. * error of two independent numbers: too large if both runs tested the same examples"
    ]
    runs = (first, *others)
    lines += [
        f"{one.name}: not tested; vae-lightning test writes its numbers" for one in runs if not one.record.results
    ]
    for other in others:
        if not (first.record.results and other.record.results):
            continue
        count = num_shared(first.values, other.values)
        how = (
            f"paired over {count} test examples"
            if count
            else "not paired: no values of the same test examples are kept"
        )
        lines.append(f"{other.name} - {first.name}: {how}")
    lines += [line for one in runs if (line := tested_otherwise(one.name, one.record))]
    lines += [f"{one.name}: {note}" for one in runs if (note := one.record.results.get("loss_note"))]
    sampled = [one for one in runs if one.record.number("nll") is not None]
    samples = {str(entry(one.record.results, "nll", "num_samples")) for one in sampled}
    if len(samples) > 1:
        lines.append(f"nll is of {' / '.join(sorted(samples))} importance samples: more of them lower it")
    return lines


def _show_curves(page: Page, runs: Sequence[Compared]) -> None:
    """Add a chart for each quantity, with a curve for each run that has logged it."""
    page.heading("Curves")
    curves = {one.name: read_curves(one.record.folder) for one in runs}
    measures = dict.fromkeys(f"val/{name}" for one in runs for name in one.record.measures)
    for column in (*measures, *_CURVES):
        meant = {one.name for one in runs if not one.record.says_nothing(column)}
        series = {name: found[column] for name, found in curves.items() if column in found and name in meant}
        if series:
            name = column.partition("/")[2]
            unit = unit_of(runs[0].record, name) if runs[0].record.number(name) is not None else ""
            page.chart(line_chart(series, title=column, x_label="step", y_label=unit))


def _show_settings(page: Page, runs: Sequence[Compared]) -> None:
    """Print and add the settings that are not the same in all runs."""
    known = [one for one in runs if one.record.config]
    found = differing_by_name([one.record.config for one in known])
    found = {name: values for name, values in found.items() if not name.startswith(OF_ONE_RUN)}
    page.heading("Settings that differ")
    if not found:
        print("the settings do not differ")
        page.text("None.")
        return
    columns = ["setting", *(one.name for one in known)]
    rows = [[name, *("-" if value is None else value for value in values)] for name, values in found.items()]
    print(in_columns([columns, *rows]))
    page.table(columns, rows)


COMMAND = Command(make_parser, run)
