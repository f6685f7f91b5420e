"""`check-data -c CONFIG`: prepare the data set of a config, read all of it, and list what is wrong with it."""

from __future__ import annotations

from typing import Any

import torch

from vae_lightning.data.loading import build_data
from vae_lightning.data.module import SPLITS
from vae_lightning.metrics.formatting import number
from vae_lightning.storage.cache import BrokenImagesError
from vae_lightning.storage.examples import Images
from vae_lightning.types import UserError


def run_on_data(spec: dict[str, Any]) -> None:
    """Prepare the data set, read all of it, and say what it is; a line for each thing that is wrong with it."""
    data = build_data(spec)
    try:
        data.prepare_data()
        problems = data.check()
    except BrokenImagesError as error:
        problems = error.problems
    if problems:
        print(*problems, sep="\n", flush=True)
        refusal = UserError(f"{spec['class_path'].rpartition('.')[2]}: {len(problems)} problems, listed above")
        refusal.exit_code = 1
        raise refusal
    for split in SPLITS:
        images = data.images(split)
        label = "" if images.labels is None else f", labels {list(images.labels.shape[1:]) or 'one'} an image"
        said = f"{len(images.pixels):,} images {list(data.image_shape)}, mean pixel {number(_mean_pixel(images), 3)}"
        print(f"{split}: {said}{label}", flush=True)


def _mean_pixel(images: Images, at_once: int = 1000) -> float:
    """Of all images, in [0, 1]; read in parts, because they may lie in a file larger than the memory."""
    total = sum(int(part.sum(dtype=torch.int64)) for part in images.pixels.split(at_once))
    return total / images.pixels.numel() / images.max_value
