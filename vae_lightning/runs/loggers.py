"""Where numbers go: a CSV file in the run's folder, and Weights & Biases, online or offline but never in the way."""

from __future__ import annotations

import csv
import io
import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from vae_lightning.runs.whole_files import write_whole
from vae_lightning.types import UserError


class MetricsCSV(Logger):
    """`metrics.csv`: a row for each logging step. Rows are appended, so that a resumed run goes on in its own file.

    Lightning's CSVLogger deletes the file that it finds. A metric that appears later becomes a new column: the file is
    then written anew, beside its place. A run that goes on from step `start` says what came after it once more: those
    rows are dropped, and so is a last row that was cut off.
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
        """The run's folder has them, in config.yaml."""

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
        """Of a file that is there already, after what is in it has been cut to the rows before `start`."""
        if not self.path.is_file():
            return []
        text = self.path.read_text()
        rows = list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline="")))
        columns = list(rows[0]) if rows else []
        kept = [row for row in rows if self._stays(row)]
        self._write(columns, kept)
        return columns

    def _stays(self, row: dict[str, str]) -> bool:
        """It is from before `start`, or the result of a test."""
        step = row.get("step") or ""
        return step.isdigit() and (int(step) < self.start or _is_test(row))

    def _drop_test(self, step: int | None) -> None:
        """An earlier process's test at this step: it was killed before its results were written."""
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
    """A cell without a value is empty, or is not there."""
    return any(value not in ("", None) for name, value in row.items() if name and name.startswith("test/"))


def start_wandb(logger: WandbLogger, init_args: dict[str, Any]) -> WandbLogger:
    """Start the run on the first rank; where the server cannot be reached, or the key is refused, record offline.

    Raises:
        UserError: where a variable of the environment, or an argument, is none that W&B takes.
    """
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        return logger
    import wandb
    from pydantic import ValidationError  # W&B's settings are made with it

    if init_args["offline"]:
        os.environ["WANDB_MODE"] = "offline"
    if logger._wandb_init.get("anonymous", True) is None:
        del logger._wandb_init["anonymous"]  # Lightning gives it unasked, and W&B warns of it at each start
    try:
        wandb.setup()  # reads the environment, WANDB_SILENT too, before Lightning's call of W&B makes it warn
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
