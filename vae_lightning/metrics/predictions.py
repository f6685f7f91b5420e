"""The file of `predict`: arrays by name, with a row for each image, in the order of the data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_lightning.data import DataModule
from vae_lightning.data.base import Split
from vae_lightning.metrics.evaluator import in_order
from vae_lightning.runs.whole_files import whole_file
from vae_lightning.types import UserError


def rows_of(batches: Sequence[Mapping[str, Tensor]], device: torch.device) -> dict[str, np.ndarray]:
    """The rows of all batches, and of all ranks, by name. `device`: where the ranks can exchange tensors."""
    rows = {name: in_order([batch[name].to(device) for batch in batches]).cpu() for name in batches[0]}
    is_half = {name: values.dtype == torch.bfloat16 for name, values in rows.items()}  # which numpy does not have
    return {name: (values.float() if is_half[name] else values).numpy() for name, values in rows.items()}


def describe(rows: Mapping[str, np.ndarray], data: DataModule, split: Split) -> dict[str, np.ndarray]:
    """The rows, which are the first ones of a split, with `split` and, where its images come from files, `path`."""
    count = len(next(iter(rows.values())))
    paths = data.paths(split)
    names = {} if paths is None else {"path": np.array(paths[:count], dtype=np.str_)}
    return {**rows, **names, "split": np.full(count, split)}


def save_arrays(path: Path, parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Write the arrays of all parts, one part after the other, as npz that numpy loads with allow_pickle=False.

    Raises:
        UserError: where the file cannot be written, or an array holds Python objects.
    """
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    objects = [name for name, values in arrays.items() if values.dtype == object]
    if objects:
        raise UserError(f"{path}: {objects[0]} holds Python objects; an array must be of numbers or of text")
    try:
        with whole_file(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    return arrays
