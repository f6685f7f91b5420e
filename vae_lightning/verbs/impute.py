"""`impute RUN`: hide pixels of test images, fill them in, and print the error beside that of the mean image.

The picture has five rows: test images, what was shown of them, the mean image, one draw, the mean of all draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor

from vae_lightning.data import ImageDataModule
from vae_lightning.data.loading import data_of
from vae_lightning.metrics import MeanAndError, SpreadRows, draw_missing, impute, missing_error
from vae_lightning.metrics.formatting import with_error
from vae_lightning.models.loading import load_model
from vae_lightning.noise import reseed
from vae_lightning.pictures import stack
from vae_lightning.types import Batch
from vae_lightning.verbs._arguments import Parser, add_picture_arguments, check_picture_arguments, write_picture


def make_parser(prog: str, description: str) -> Parser:
    parser = Parser(prog, description)
    parser.add_argument("--missing", type=float, default=0.6, help="share of the pixels that are hidden")
    parser.add_argument("--steps", type=int, default=100, help="number of steps of the chain")
    parser.add_argument("--corrected", action="store_true", help="accept or reject each z (Metropolis-Hastings)")
    add_picture_arguments(parser, "imputations")
    return parser


def run(given: argparse.Namespace, trusted: list[str]) -> None:
    check_picture_arguments(given, "imputations")
    model = load_model(given.checkpoint, trusted)
    data = data_of(given.checkpoint, trusted)
    batch = _spread_images(data.test_dataloader(), given.num_images)
    x = batch["x"]
    reseed(model.device, given.seed)
    missing = draw_missing(x, given.missing)
    filled = impute(model, batch, missing, given.steps, given.corrected)
    plain = torch.where(missing, _mean_image(data), x)
    shown = (x, torch.where(missing, 0.5, x), plain, filled.draw, filled.mean)
    write_picture(stack(*(row[:20] for row in shown)), given.output)
    print(f"{len(x)} images, {given.missing:.0%} of pixels missing, {given.steps} steps", end="")
    print(f", {filled.acceptance:.0%} accepted" if given.corrected else "")
    is_binary = bool(((x == 0) | (x == 1)).all())
    for name, guess in (("chain", filled.mean), ("mean image", plain)):
        score = MeanAndError()
        score.update(missing_error(guess, x, missing))
        error, stderr = score.compute()
        wrong = f", {missing_error(guess.round(), x, missing).mean():.1%} wrong" if is_binary else ""
        print(f"{name:<12}squared error {with_error(error, stderr, 4)} a missing pixel{wrong}", flush=True)


def _spread_images(batches: Iterable[Batch], n: int) -> Batch:
    """n images, spread over the set: what is said of them is to hold for it, and a file may be sorted by class."""
    rows, first = SpreadRows(n), 0
    for batch in batches:
        rows.add(batch, first)
        first += len(batch["x"])
    return rows.from_all_ranks()


def _mean_image(data: ImageDataModule, num_images: int = 10_000) -> Tensor:
    """The mean of x over about so many training images: [C, H, W]."""
    batches = islice(data.train_dataloader(), -(-num_images // data.batch_size))
    total, count = 0.0, 0
    for batch in batches:
        total, count = total + batch["x"].double().sum(0), count + len(batch["x"])
    return (torch.as_tensor(total) / count).float()
