"""The report that a run writes at its end, which must never fail the run."""

from __future__ import annotations

from pathlib import Path

import lightning.pytorch as pl

from vae_lightning.runs.loggers import log_page
from vae_lightning.runs.record import REPORT, is_run
from vae_lightning.verbs.report import page_of


def write_report(trainer: pl.Trainer, folder: Path) -> Path | None:
    """Write the report of a run that has ended, and give it to the loggers that store pages. Returns the file.

    A report that fails, for a full disk or a logger that has lost its server, is one line: the run's numbers and
    checkpoints are written already.

    Args:
        trainer: The trainer after its fit or test.
        folder: The run's folder.
    """
    if not trainer.is_global_zero or trainer.fast_dev_run or not is_run(folder):  # type: ignore[attr-defined]
        return None
    path = folder / REPORT
    try:
        page_of(folder).save(path)
        log_page(trainer.loggers, path)
    except Exception as error:
        print(f"report: not written: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
    return path if path.is_file() else None
