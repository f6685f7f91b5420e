"""Tables that are written batch by batch, as npz, csv or parquet; each file is whole or not there."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO, Protocol, TypeAlias

import numpy as np

from vae_lightning.runs.whole_files import whole_file
from vae_lightning.types import UserError

FORMATS = ("npz", "csv", "parquet")
Rows: TypeAlias = Mapping[str, np.ndarray | list[str]]
"""Columns of one batch by name: numbers [n, ...], or n texts. All batches have the same columns."""
_CHUNK_BYTES = 2**20


class Table(Protocol):
    """A table that grows."""

    def add(self, rows: Rows) -> None:
        """Add the rows of a batch."""

    def close(self) -> None:
        """Write what is left."""


def table_format(output: Path | None, form: str | None) -> str:
    """Return the format of a table: the one that is given, else the one that the file's ending names, else npz.

    Args:
        output: The file; None if it is not given.
        form: The format; None if it is not given.

    Raises:
        UserError: if both are given and differ, if the ending names no format, or if a package is missing.
    """
    ending = output.suffix.removeprefix(".").lower() if output is not None else ""
    if form is None and output is not None and ending not in FORMATS:
        raise UserError(f"--output {output}: ends in none of .{', .'.join(FORMATS)}; add --format")
    if form is not None and ending in FORMATS and ending != form:
        raise UserError(f"--output {output} is a {ending} file, and --format is {form}; leave one of them out")
    chosen = form or ending or "npz"
    if chosen == "parquet" and find_spec("pyarrow") is None:
        raise UserError("--format parquet needs pyarrow, which is not installed: pip install 'vae_lightning[tables]'")
    return chosen


@contextmanager
def open_table(path: Path, form: str) -> Iterator[Table]:
    """Open a table; it is renamed to `path` at the end of the block.

    Args:
        path: The file.
        form: `npz`, `csv` or `parquet`.
    """
    with whole_file(path) as file:
        makers: dict[str, Callable[[BinaryIO], Table]] = {"npz": _Npz, "csv": _Csv, "parquet": _Parquet}
        table = makers[form](file)
        yield table
        table.close()


class _Npz:
    """Columns in temporary files of their own until the number of rows is known; texts stay in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.count = file, 0
        self.texts: dict[str, list[str]] = {}
        self.numbers: dict[str, tuple[IO[bytes], np.dtype, tuple[int, ...]]] = {}

    def add(self, rows: Rows) -> None:
        for name, values in rows.items():
            if isinstance(values, list):
                self.texts.setdefault(name, []).extend(values)
                continue
            if name not in self.numbers:
                self.numbers[name] = (TemporaryFile(), values.dtype, values.shape[1:])  # noqa: SIM115 - until `close`
            self.numbers[name][0].write(np.ascontiguousarray(values).tobytes())
        self.count += len(next(iter(rows.values())))

    def close(self) -> None:
        with zipfile.ZipFile(self.file, "w", zipfile.ZIP_STORED) as archive:
            for name, (column, dtype, shape) in self.numbers.items():
                kind = np.lib.format.dtype_to_descr(dtype)
                header = {"descr": kind, "fortran_order": False, "shape": (self.count, *shape)}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member, column:
                    np.lib.format.write_array_header_1_0(member, header)
                    column.seek(0)
                    while chunk := column.read(_CHUNK_BYTES):
                        member.write(chunk)
            for name, texts in self.texts.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.array(texts, dtype=np.str_), allow_pickle=False)


class _Csv:
    """One line for each example, and one column for each number: z_mean_0, z_mean_1, ..."""

    def __init__(self, file: BinaryIO) -> None:
        self.text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self.writer = csv.writer(self.text)
        self.has_header = False

    def add(self, rows: Rows) -> None:
        columns = _flat(rows)
        if not self.has_header:
            self.writer.writerow(columns)
            self.has_header = True
        lists = (values if isinstance(values, list) else values.tolist() for values in columns.values())
        self.writer.writerows(zip(*lists, strict=True))

    def close(self) -> None:
        self.text.detach()  # the file stays open for its sync


class _Parquet:
    """The columns of csv, as Arrow's; each batch is a group of rows."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.writer: Any = None

    def add(self, rows: Rows) -> None:
        import pyarrow
        from pyarrow import parquet

        table = pyarrow.table(dict(_flat(rows)))
        if self.writer is None:
            self.writer = parquet.ParquetWriter(self.file, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _flat(rows: Rows) -> dict[str, Any]:
    """Return a column for each number: z_mean [n, 2] becomes z_mean_0 and z_mean_1, each [n]."""
    found: dict[str, Any] = {}
    for name, values in rows.items():
        if isinstance(values, list) or values.ndim == 1:
            found[name] = values
        else:
            flat = values.reshape(len(values), -1)
            found |= {f"{name}_{i}": flat[:, i] for i in range(flat.shape[1])}
    return found
