"""`report RUN`: one HTML file of a run, without a network: numbers, curves, pictures, latents, settings.

`train`, `fit` and `test` write it at their end. The file needs nothing beside it: mail it, or open it on a phone. It is
made from the files in the run's folder alone, so a run of any model has one, and no checkpoint is loaded.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vae_lightning.metrics.formatting import value_and_error
from vae_lightning.pictures import Page, bar_chart, error_chart, line_chart
from vae_lightning.runs.checkpoint_form import is_number
from vae_lightning.runs.record import (
    CONFIG,
    METRICS,
    REPORT,
    Record,
    class_name,
    entry,
    folder_of,
    last_change,
    mapping,
    read_curves,
    read_run,
    state_of,
)
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_output, add_run, check_ending, not_written

MEANINGS = {
    "nll": "-log p(x) by importance sampling, an upper bound on average. Lower is better",
    "nll_bpd": "the same in bits for each number of x",
    "nll_ess": "effective importance samples: near 1 the bound is loose, and more samples lower nll",
    "elbo": "the lower bound of log p(x) that a VAE maximises. Higher is better",
    "elbo_per_step": "elbo over the number of steps of the sequences",
    "log_likelihood": "E_q[log p(x|z)]: how well x is explained by its code",
    "kl": "KL(q(z|x) || p(z)), the rate: the most that z can tell about x, on average",
    "loss": "what training minimises",
    "rate": "kl, estimated again with evaluation.num_samples draws of z an example",
    "distortion": "-log_likelihood, estimated again with as many draws",
    "active_units": "dimensions whose mean varies over x by more than 0.01",
    "mutual_information": "what z tells about which x it came from",
    "aggregate_gap": "KL from the mixture of all q(z|x) to the prior: what samples of the prior miss",
    "mse": "squared error of the reconstruction, a pixel and channel. Lower is better",
    "psnr": "of the reconstruction. Higher is better",
    "ssim": "likeness of the reconstruction. Higher is better",
    "swap_cost": "how far log p(x|z) falls with the z of another x; 0 if z is ignored",
    "count_accuracy": "share of images whose number of objects is right, at the likeliest count",
    "count_accuracy_sampled": "the same at a count that is drawn from q",
    "presence": "probability of this many objects or more, averaged over images",
    "fg_ari": "agreement of the segments with the objects of the truth: 1 is perfect, 0 is chance",
    "box_recall": "share of true boxes whose centre lies in a found box",
    "extent_iou": "overlap of a true box and what a step painted, for the best pairs: 1 is perfect",
    "dead_dimensions": "dimensions with a KL below 0.01 nats",
    "sigma": "the scale of p(x|z)",
    "rollout_error": "how far predicted objects are from the truth. Lower is better; late frames: see the speed",
    "rollout_speed": "of predicted objects over the true speed: 0 if they stand still, 1 at best",
    "rollout_overlaps": "predicted frames with two objects in one place. Lower is better",
    "rollout_inside": "predicted objects within the box: 1 at best",
    "rollout_swaps": "sequences where two predicted objects have changed places. Lower is better",
    "exact": "share of steps whose whole next state is right; unseen: in worlds that training has not",
    "state_error": "root mean squared error of the next state. Lower is better",
    "exact_match": "share of texts x that are read right as a whole from their sentence",
    "exact_match_any": "share of texts that are one of the true ones as a whole",
    "token_accuracy": "share of tokens that are right in their place",
    "edit_distance": "words to put in, take out or change, a text. Lower is better",
    "bleu": "likeness of short runs of words, 0 to 1. Higher is better",
    "round_trip": "share of x that are read again from the sentence that the model writes for them",
    "length_ratio": "length of the model's texts over that of the true ones: 1 at best",
    "nats_per_token": "-log p of the next token, given the true ones before it. Lower is better",
    "cost": "a term of the loss that is in no bound",
    "centre_error": "how far found objects are from the truth. Lower is better",
    "tracks_lost": "objects that the model has lost by the end of a sequence. Lower is better",
}
"""What each number of a test means, by the first part of its name."""

_CAPTIONS = {
    "reconstructions": "originals above their reconstructions: the mean of p(x|z) at one z ~ q(z|x)",
    "samples": "samples: the mean of p(x|z) at z ~ p(z)",
    "rollouts": "predictions after the first frames of validation clips; grey border: frames seen",
    "rollouts_test": "predictions after the first frames of test clips; grey border: frames seen",
}
Curve = list[tuple[float, float]]
_OF_THE_BOUND = ("nll", "nll_bpd", "elbo", "log_likelihood", "kl")  # the numbers at the head of the table
_FIRST = ("elbo", "log_likelihood", "kl", "loss")  # the order of the curves
_NOT_DRAWN = ("test/", "train/skipped_steps")
_PICTURE = re.compile(r"(?P<name>.+?)(?:-(?P<epoch>\d{4,}))?\.(?:png|gif|txt)")
_MOST_BYTES = 20 * 2**20  # of all pictures of a report
_MOST_LETTERS = 10_000  # of a text
_LONGEST_UNIT = 30  # letters that fit beside a chart


class Drawn(NamedTuple):
    """A file in a run's `images`: its name without epoch and ending, its epoch (-1 without one), its path."""

    name: str
    epoch: int
    path: Path


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    add_run(parser)
    add_output(parser, f"the HTML file to write; default: {REPORT} in the run's folder")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:  # noqa: ARG001 - nothing is imported
    """Write the report of a run and print its path.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names; not needed, because nothing is imported.
    """
    folder = folder_of(arguments.run)
    save_page(page_of(folder), arguments.output or folder / REPORT)


def save_page(page: Page, output: Path) -> None:
    """Write a page and print its path.

    Args:
        page: The page.
        output: The HTML file.

    Raises:
        UserError: if the file cannot be written.
    """
    check_ending(output, ".html", ".htm")
    try:
        page.save(output)
    except OSError as error:
        raise not_written(output, error) from error
    print(output)


def page_of(folder: Path) -> Page:
    """Return the page of a run; what the run's folder does not have is left out or said.

    Args:
        folder: The run's folder.
    """
    record = read_run(folder)
    page = Page(record.name)
    for fault in record.faults:
        page.text(fault)
    _add_facts(page, record)
    _add_numbers(page, record)
    _add_curves(page, record)
    _add_rollouts(page, record)
    _add_latents(page, record)
    _add_pictures(page, folder)
    _add_settings(page, record)
    return page


def conditions_of(record: Record) -> list[tuple[str, str]]:
    """Return what the numbers of a test depend on, as pairs of a name and a value; unknown ones are left out.

    Args:
        record: The run.
    """
    results = record.results
    weights = mapping(results, "objective", "weights").items()
    objective = [
        *([str(name)] if (name := entry(results, "objective", "name")) else []),
        *([f"K = {entry(results, 'objective', 'num_samples')}"] if entry(results, "objective", "num_samples") else []),
        *(f"{name} {value:.4g}" for name, value in weights if is_number(value)),
    ]
    data, binarisation = class_name(results.get("data")), results.get("binarisation")  # None: the data are no images
    count, split = entry(results, "data", "num_images"), entry(results, "data", "split")
    ess = record.number("nll_ess")
    samples = None if record.leaves_a_kl_out else entry(results, "nll", "num_samples")
    effective = "" if ess is None else f", {ess:.1f} of them effective"
    found = [
        ("likelihood p(x|z)", results.get("likelihood")),
        ("objective", ", ".join(objective)),
        ("loss", results.get("loss_note")),
        ("data", f"{data}, binarisation {binarisation}" if data and binarisation else data),
        ("examples", f"{count} of the {split} set" if count else None),
        ("importance samples", f"{samples}{effective}" if samples else None),
        ("not as the run", "; ".join(record.tested_otherwise) and f"tested with {'; '.join(record.tested_otherwise)}"),
        ("error", "+- one standard error over the test examples; ? where unknown"),
    ]
    return [(name, str(value)) for name, value in found if value]


def unit_of(record: Record, name: str) -> str:
    """Return the unit of a number of the test.

    Args:
        record: The run.
        name: The number's name without `test/`.
    """
    units = mapping(record.results, "units")
    unit = str(units.get(name.partition("/")[0]) or units.get("default") or "")
    return unit.removesuffix(", natural logarithm")


# -- the parts of the page ---------------------------------------------------------------------------------------------


def _add_facts(page: Page, record: Record) -> None:
    """Add what the run is: its state, model, data and machine; and each problem that the test has found."""
    results, config = record.results, record.config
    versions = mapping(results, "versions")
    seconds = mapping(results, "seconds")
    rows = [
        ("state", f"{state_of(record.folder)}, {last_change(record.folder)}"),
        ("model", class_name(config.get("model") or results.get("model"))),
        ("data", class_name(config.get("data") or results.get("data"))),
        ("seed", config.get("seed_everything", results.get("seed"))),
        ("time", ", ".join(f"{stage} {value} s" for stage, value in seconds.items())),
        ("machine", ", ".join(str(results[name]) for name in ("machine", "precision") if results.get(name))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("checkpoint", results.get("checkpoint")),
        ("command", results.get("command")),
        ("another such run", f"vae-lightning train -c {record.folder / CONFIG}" if config else None),
    ]
    page.table([], [(name, str(value)) for name, value in rows if value not in (None, "")])
    findings = results.get("collapse")
    for line in findings if isinstance(findings, list) else []:
        page.text(f"Latents: {line}")


def _add_numbers(page: Page, record: Record) -> None:
    page.heading("Numbers of the test")
    numbers = record.numbers()
    if not numbers:
        page.text("There are none yet: vae-lightning test and vae-lightning train write them.", is_note=True)
        return
    page.table(["given", ""], conditions_of(record))
    first = [*record.measures, *(name for name in _OF_THE_BOUND if name in numbers)]
    names = [*first, *(name for name in numbers if name not in first)]
    if "loss" in names and record.number("loss") == -(record.number("elbo") or 0.0):
        names.remove("loss")
    kinds = [name.partition("/")[0] for name in names]
    meanings = [  # of roll-outs, which have many numbers, once
        "" if kind in kinds[:i] and kind.startswith("rollout_") else MEANINGS.get(kind) for i, kind in enumerate(kinds)
    ]
    rows = [
        (name, value_and_error(*numbers[name]), unit_of(record, name), meaning)
        for name, meaning in zip(names, meanings, strict=True)
    ]
    page.table(["", "value", "unit", "meaning"], rows)
    left_out = mapping(record.results, "left_out")
    if left_out:
        page.text("Not measured: " + "; ".join(f"{name}: {why}" for name, why in left_out.items()), is_note=True)


def _add_curves(page: Page, record: Record) -> None:
    """Add a chart for each quantity, but none of a constant, nor of the same curves again: -elbo, the KL of one z."""
    curves = {name: points for name, points in read_curves(record.folder).items() if not record.says_nothing(name)}
    page.heading("Curves")
    drawn: list[list[Curve]] = []
    constants = []
    for name, columns in charts_of([name for name in curves if not name.startswith(_NOT_DRAWN)]).items():
        series = {column.partition("/")[0]: curves[column] for column in columns}
        values = {value for curve in series.values() for _, value in curve}
        if len(values) == 1 and max(map(len, series.values())) > 1:
            constants.append(f"{name} {values.pop():.4g}")
        elif list(series.values()) not in drawn:
            drawn += [list(series.values()), [[(x, -y) for x, y in curve] for curve in series.values()]]
            unit = unit_of(record, name) if record.number(name) is not None else ""
            label = unit if len(unit) <= _LONGEST_UNIT else ""
            page.chart(line_chart(series, title=name, x_label="step", y_label=label))
    notes = [f"Constant: {', '.join(constants)}."] if constants else []
    notes += [] if drawn else [f"There are none: {METRICS} has no values."]
    if notes:
        page.text(" ".join(notes), is_note=True)


def charts_of(columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the columns of metrics.csv that belong into one chart, by the chart's name: `train/kl` and `val/kl`.

    Args:
        columns: The names of the columns.
    """
    charts: dict[str, list[str]] = {}
    for column in columns:
        charts.setdefault(column.partition("/")[2] or column, []).append(column)
    order = sorted(charts, key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    return {name: charts[name] for name in order}


def _add_rollouts(page: Page, record: Record) -> None:
    """Add the error of roll-outs over the predicted frame, beside predictions without a model."""
    speeds = {name: value for name, (value, _) in record.numbers().items() if name.startswith("rollout_speed/")}
    chart = error_chart({**mapping(record.results, "details"), **speeds})
    if chart is not None:
        page.heading("Roll-outs")
        note = "mean and sampled are the model's, the others need no model. What stands still has small late errors."
        page.chart(chart, note)


def _add_latents(page: Page, record: Record) -> None:
    """Add the KL of each dimension of each latent, the largest first."""
    details = mapping(record.results, "details")
    for key, values in details.items():
        first, _, latent = key.partition("/")
        if first != "kl_per_dimension" or not isinstance(values, list) or not values:
            continue
        errors = details.get(f"kl_per_dimension_stderr/{latent}")
        known = errors if isinstance(errors, list) and len(errors) == len(values) else [None] * len(values)
        kls = [float(value) if is_number(value) else math.nan for value in values]
        order = sorted(range(len(kls)), key=lambda i: math.inf if math.isnan(kls[i]) else -kls[i])
        bars = {str(i): kls[i] for i in order}
        used = sum(value >= 0.01 for value in kls)
        page.heading(f"KL of each dimension of {latent}")
        unit, count = unit_of(record, key), entry(record.results, "data", "num_images")
        over = f"the mean over the {count} test images" if count else "the mean over the test images"
        lines = [error if is_number(error := known[i]) else None for i in order]
        chart = bar_chart(bars, lines, x_label=f"dimension of {latent}", y_label="nats", width=900)
        page.chart(
            chart,
            f"{unit}, {over}; lines of two standard errors. {used} of {len(bars)} dimensions have 0.01 nats or more. "
            "vae-lightning traverse measures the same on up to 500 of them.",
        )
    without = [name.partition("/")[2] for name in details if name.startswith("variance_of_means/")]
    without = [name for name in without if f"kl_per_dimension/{name}" not in details]
    if without:
        page.text(
            f"{', '.join(without)}: q(z|x) or p(z) has no independent dimensions, so only the sum of their KL exists. "
            "vae-lightning traverse shows a substitute by the moments of q and p, marked by ~.",
            is_note=True,
        )


def _add_pictures(page: Page, folder: Path) -> None:
    """Add the pictures of the last epoch; a text as a text."""
    latest, earlier = _latest(list(_drawn_in(folder / "images")))
    if not latest:
        return
    page.heading("Pictures")
    room, left_out = _MOST_BYTES, []
    for drawn in latest:
        size = drawn.path.stat().st_size
        epoch = f", after epoch {drawn.epoch}" if drawn.epoch >= 0 else ""
        caption = f"{_CAPTIONS.get(drawn.name, drawn.name)}{epoch}"
        if size > room:
            left_out.append(drawn.path.name)
        elif drawn.path.suffix == ".txt":
            page.heading(caption, 3)
            page.code(drawn.path.read_text(errors="replace")[:_MOST_LETTERS])
        elif _has_added(page, drawn.path, caption):
            room -= size
        else:
            left_out.append(drawn.path.name)
    more = [f"{earlier} of earlier epochs are in images/."] if earlier else []
    more += [f"Left out, because too large or damaged: {', '.join(left_out)}."] if left_out else []
    if more:
        page.text(" ".join(more), is_note=True)


def _has_added(page: Page, path: Path, caption: str) -> bool:
    try:
        page.picture(path, caption)
    except ValueError:
        return False
    return True


def _drawn_in(images: Path) -> Iterator[Drawn]:
    """Yield the pictures and texts of a folder; links are left out, since they may lead out of the run's folder."""
    for path in sorted(images.glob("*")):
        match = _PICTURE.fullmatch(path.name)
        if match and path.is_file() and not path.is_symlink():
            yield Drawn(match["name"], int(match["epoch"] or -1), path)


def _latest(drawn: Sequence[Drawn]) -> tuple[list[Drawn], int]:
    """Return the files of the last epoch of each name, and the number of the others."""
    last: dict[str, int] = {}
    for one in drawn:
        last[one.name] = max(one.epoch, last.get(one.name, -1))
    kept = [one for one in drawn if one.epoch in (-1, last[one.name])]
    return kept, len(drawn) - len(kept)


def _add_settings(page: Page, record: Record) -> None:
    path = record.folder / CONFIG
    if record.config:
        page.heading("Settings")
        page.text(f"{CONFIG}: vae-lightning train -c {path} trains another such run.", is_note=True)
        page.code(path.read_text())


COMMAND = Command(make_parser, run)
