"""The command line in this process, and the models and data sets of this package that it trains."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import NamedTuple

from vae_lightning.__main__ import main


class Case(NamedTuple):
    """A model with its data, and how long it trains.

    Args:
        model, data: Their classes, in this package.
        epochs: The epochs of the fit.
        middle: A step within an epoch.
        gain: The nats that the validation ELBO rises at least after the first epoch.
        best: The validation ELBO that the fit reaches at least, in nats.
    """

    model: str
    data: str
    epochs: int
    middle: int
    gain: float
    best: float


CASES = {
    "video": Case("video.VideoVAE", "video.MovingSquare", 6, 70, 50, -100),
    "tokens": Case("tokens.SentenceVAE", "tokens.Sentences", 8, 100, 2, -7.5),
    "table": Case("table.TableVAE", "table.Tumours", 20, 75, 4, -13),
}
SETTINGS = ("--trainer.logger=false", "--trust=tests", "--nll.num_samples=8", "--trainer.log_every_n_steps=10")


class Said(NamedTuple):
    """What a command returned and printed."""

    returncode: int
    stdout: str
    stderr: str


def run(*args: object, expect: int = 0) -> Said:
    """Run the command line in this process, which has imported everything."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = main([str(arg) for arg in args])
        except SystemExit as end:
            code = int(end.code or 0)
    said = Said(code, out.getvalue(), err.getvalue())
    assert code == expect, said
    return said


def fit_flags(case: Case, runs: Path, run_id: str) -> list[str]:
    settings = ["--model.optimizer=Adam", "--model.optimizer.lr=0.003", "--data.batch_size=50", *SETTINGS]
    classes = [f"--model=tests.outside.{case.model}", f"--data=tests.outside.{case.data}"]
    return [*classes, *settings, f"--runs_dir={runs}", f"--run_id={run_id}"]
