"""`score RUN`: write the ELBO and -log p(x) of every example of a split or of your own folder, most unusual first.

-log p(x) is estimated by importance sampling, in nats; the larger, the less the model expects the example. The first
rows are printed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_lightning.metrics import MeanAndError
from vae_lightning.metrics.formatting import number, with_error
from vae_lightning.metrics.likelihood import importance_estimate
from vae_lightning.models import LatentVariableModel
from vae_lightning.models.loading import load_model
from vae_lightning.models.trace_checks import note_of_untrained
from vae_lightning.noise import reseed
from vae_lightning.pictures.shown import on_device
from vae_lightning.runs.folder import best_checkpoint
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_output, check_at_least, check_ending, not_written
from vae_lightning.verbs._examples import Part, add_example_arguments, examples_of
from vae_lightning.verbs._tables import FORMATS, open_table, table_format

_SHOWN = 10
_ELBO_SAMPLES = 20


@dataclass(frozen=True)
class Score:
    """One example's numbers, in nats; `effective_samples` of the K importance samples."""

    index: int
    name: str
    class_name: str
    nll: float
    elbo: float
    effective_samples: float


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    add_example_arguments(parser)
    parser.add_argument("--num_samples", type=int, default=20, help="K, the number of importance samples")
    add_output(parser, "the table, .csv, .npz or .parquet; default: scores-test.csv in the run's folder")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Score the examples batch by batch, write the sorted table, and print its first rows.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    check_at_least(arguments, num_samples=1)
    check_ending(arguments.output, *(f".{one}" for one in FORMATS))
    form = table_format(None, arguments.output.suffix[1:].lower() or "csv" if arguments.output else "csv")
    checkpoint = best_checkpoint(arguments.run)
    model = load_model(checkpoint, trusted).to("cuda" if torch.cuda.is_available() else "cpu")
    examples = examples_of(arguments, checkpoint, trusted, model)
    output = arguments.output or checkpoint.absolute().parent.parent / f"scores-{examples.name}.csv"
    scores = [one for part in examples for one in score(model, part, arguments.num_samples, arguments.seed)]
    scores.sort(key=lambda one: (math.isfinite(one.nll), -one.nll))
    _write(scores, output, form)
    print(*examples.report(), sep="\n", end="\n" * bool(examples.report()))
    _print(scores, arguments.num_samples)
    print(f"{'table':<12}{output}", flush=True)


@torch.no_grad()
def score(model: LatentVariableModel, part: Part, num_samples: int, seed: int) -> list[Score]:
    """Return the scores of a batch, in its order.

    Args:
        model: The model.
        part: The batch.
        num_samples: K, the number of importance samples.
        seed: The seed of the noise.
    """
    reseed(model.device, seed, int(part.index[0]))
    batch = on_device(part.batch, model.device, model.dtype)  # type: ignore[arg-type]
    trace = model.checked_trace(batch, min(num_samples, _ELBO_SAMPLES))
    untrained = note_of_untrained(model.objective.untrained_kl(trace.latents))
    if untrained:
        raise UserError(
            f"score: {untrained}; test_values.npz in the run's folder has log_likelihood and the costs of each test "
            "example, and vae-lightning embed what the model finds in it"
        )
    outside = trace.outside_support()
    if outside is not None:
        raise UserError(
            f"score: {outside:.4g} is a value of x that the model's likelihood gives no probability; the run's data "
            "set has a binarisation or a range that these examples lack"
        )
    kls = list(trace.kl().values())
    elbo = trace.mean(trace.log_likelihood()) - (sum(kls[1:], kls[0]) if kls else 0)
    found = importance_estimate(model, batch, num_samples)
    numbers = zip((-found.log_p).tolist(), elbo.tolist(), found.effective_samples.tolist(), strict=True)
    known = zip(part.index.tolist(), part.names, part.class_names, strict=True)
    return [Score(*facts, *three) for facts, three in zip(known, numbers, strict=True)]


def _write(scores: Sequence[Score], output: Path, form: str) -> None:
    columns: dict[str, Any] = {one.name: [getattr(score, one.name) for score in scores] for one in fields(Score)}
    columns |= {name: np.array(columns[name]) for name in ("index", "nll", "elbo", "effective_samples")}
    columns["name"] = [text.replace("\n", " ") for text in columns["name"]]
    try:
        with open_table(output, form) as table:
            table.add(columns)
    except OSError as error:
        raise not_written(output, error) from error


def _print(scores: Sequence[Score], num_samples: int) -> None:
    """The most unusual examples, and the mean over all with its standard error."""
    shown = scores[:_SHOWN]
    width = max(len(one.name) for one in shown)
    heading = "class" if any(one.class_name for one in shown) else ""
    print(f"{'-log p(x)':>12} {'ELBO':>12}  {'name':<{width}}  {heading}".rstrip())
    for one in shown:
        print(f"{number(one.nll):>12} {number(one.elbo):>12}  {one.name:<{width}}  {one.class_name}".rstrip())
    summary = MeanAndError()
    summary.update(torch.tensor([one.nll for one in scores], dtype=torch.float64))
    mean, error = summary.compute()
    print(f"{'mean':<12}{with_error(mean, error)} nats over {len(scores):,} examples, K = {num_samples}", flush=True)


COMMAND = Command(make_parser, run)
