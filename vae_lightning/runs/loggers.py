"""The loggers of a run: a CSV file in the run's folder, and Weights & Biases, which records offline if need be."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vae_lightning.runs.whole_files import write_whole
from vae_lightning.types import UserError


class MetricsCSV(Logger):
    """Write `metrics.csv`, one row for each logging step. A resumed run appends to the file of the run.

    Lightning's CSVLogger deletes an existing file. A metric that appears later becomes a new column, and the whole file
    is rewritten. A run that resumes from step `start` logs the later steps again, so their old rows are dropped. An
    incomplete last row is dropped too.

    Args:
        path: the CSV file.
        start: the step from which the run resumes; 0 for a new run.
    """

    def __init__(self, path: Path, start: int = 0) -> None:
        super().__init__()
        self.path, self.start = path, start
        self._columns: list[str] | None = None
        self._tested: set[int | None] = set()

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return self.path.parent.name

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml in the run's folder has the hyper-parameters."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if self._columns is None:
            self._columns = self._read_columns()
        if _is_test(row) and step not in self._tested:
            self._tested.add(step)
            self._drop_test(step)
        new = [name for name in row if name not in self._columns]
        if new:
            self._add_columns(new)
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    def _read_columns(self) -> list[str]:
        """The columns of an existing file, whose rows from `start` on are removed first."""
        if not self.path.is_file():
            return []
        text = self.path.read_text()
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
        columns = list(rows[0]) if rows else []
        kept = [row for row in rows if self._is_kept(row)]
        self._write(columns, kept)
        return columns

    def _is_kept(self, row: dict[str, str]) -> bool:
        """True if the row is from before `start`, or holds the result of a test."""
        step = row.get("step") or ""
        return step.isdigit() and (int(step) < self.start or _is_test(row))

    def _drop_test(self, step: int | None) -> None:
        """Drop the row of an earlier test at this step, whose process was killed before it wrote all results."""
        assert self._columns is not None
        rows = self._rows()
        kept = [row for row in rows if not (_is_test(row) and row["step"] == str(step))]
        if len(kept) < len(rows):
            self._write(self._columns, kept)

    def _add_columns(self, names: list[str]) -> None:
        assert self._columns is not None
        rows = self._rows()
        self._columns = [*self._columns, *names]
        self._write(self._columns, rows)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.is_file():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def _write(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.path, text.getvalue().encode())


def _is_test(row: Mapping[str, Any]) -> bool:
    """True if a metric of a test has a value in the row. A cell without a value is empty or missing."""
    return any(value not in ("", None) for name, value in row.items() if name and name.startswith("test/"))


def start_wandb(logger: WandbLogger, init_args: dict[str, Any]) -> WandbLogger:
    """Start the W&B run on the first rank. If the server does not answer or refuses the key, record offline.

    Args:
        logger: the logger to start.
        init_args: the arguments that `logger` was made with, to make an offline logger in its place.

    Raises:
        UserError: if W&B refuses a variable of the environment or an argument.
    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return logger
    import wandb
    from pydantic import ValidationError  # raised by the settings of W&B

    if init_args["offline"]:
        os.environ["WANDB_MODE"] = "offline"
    if logger._wandb_init.get("anonymous", True) is None:
        del logger._wandb_init["anonymous"]  # Lightning always passes this argument, and W&B warns of it at each start
    try:
        wandb.setup()  # W&B reads the environment (WANDB_SILENT) here, before Lightning's call makes W&B warn
        _ = logger.experiment
    except wandb.errors.UsageError as error:
        raise UserError(f"W&B: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        (name, *_), value = error.errors()[0]["loc"], error.errors()[0]["input"]
        raise UserError(f"W&B: {name} {value!r} (WANDB_{str(name).upper()}): {error.errors()[0]['msg']}") from error
    except (wandb.errors.Error, TimeoutError) as error:
        if init_args["offline"]:
            raise
        print(f"W&B cannot be reached ({str(error).splitlines()[0][:100]}): recording offline", flush=True)
        wandb.teardown()
        init_args = {**init_args, "offline": True}
        return start_wandb(WandbLogger(**init_args), init_args)
    return logger


def log_page(loggers: Iterable[Logger], path: Path) -> None:
    """Give an HTML file to the loggers that show or store one: W&B and MLflow.

    Args:
        loggers: the loggers of the run.
        path: the HTML file.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.log({path.stem: wandb.Html(path.read_text(), inject=False)})
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(path))
