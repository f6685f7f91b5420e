"""`check-data -c CONFIG`: prepare the data set of a config, read all of it, and list what is wrong with it."""

from __future__ import annotations

from typing import Any

import torch

from vae_lightning.data.loading import build_data
from vae_lightning.data.module import SPLITS
from vae_lightning.metrics.formatting import number
from vae_lightning.storage.cache import BrokenImagesError
from vae_lightning.storage.examples import Examples, Images
from vae_lightning.types import UserError
from vae_lightning.verbs import DataCommand


def run(recipe: dict[str, Any]) -> None:
    """Prepare the data set, read all of it, and print the size of each split, or a line for each problem.

    Args:
        recipe: The `class_path` and `init_args` of the data set.

    Raises:
        UserError: if there are problems; exit code 1.
    """
    data = build_data(recipe)
    try:
        data.prepare_data()
        problems = data.check()
    except BrokenImagesError as error:
        problems = error.problems
    if problems:
        print(*problems, sep="\n", flush=True)
        plural = "s" if problems[1:] else ""
        name = recipe["class_path"].rpartition(".")[2]
        refusal = UserError(f"{name}: {len(problems)} problem{plural}, listed above")
        refusal.exit_code = 1
        raise refusal
    for split in SPLITS:
        print(f"{split}: {_describe(data.examples(split))}", flush=True)
    print(*data.facts(), sep="\n", end="\n" * bool(data.facts()), flush=True)


def _describe(examples: Examples) -> str:
    """Return the number of examples, and the shape and type of each field; of images the mean pixel."""
    if isinstance(examples, Images):
        labels = examples.labels
        label = "" if labels is None else f", labels {list(labels.shape[1:]) or 'one'} an image"
        size = f"{len(examples):,} images {list(examples.pixels.shape[1:])}"
        return f"{size}, mean pixel {number(_mean_pixel(examples), 3)}{label}{_fields(examples, ', ', ('x', 'label'))}"
    return f"{len(examples):,} examples{_fields(examples, ': ')}"


def _fields(examples: Examples, before: str, but: tuple[str, ...] = ()) -> str:
    """Return the name, the type and the shape of each field, with `before` before the first one."""
    first = examples.select(torch.zeros(1, dtype=torch.long))
    named = [f"{name} {str(row.dtype)[6:]} {list(row.shape[1:])}" for name, row in first.items() if name not in but]
    return before + ", ".join(named) if named else ""


def _mean_pixel(images: Images, at_once: int = 1000) -> float:
    """Return the mean of all pixels, in [0, 1]; read in parts, because the file may be larger than the memory."""
    total = sum(int(part.sum(dtype=torch.int64)) for part in images.pixels.split(at_once))
    return total / images.pixels.numel() / images.max_value


COMMAND = DataCommand(run)
