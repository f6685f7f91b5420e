"""`impute RUN`: hide pixels of test images, fill them in, and compare the error with the mean image's.

The picture has five rows: test images, the same images with the hidden pixels in grey, the images filled in with the
mean training image, one draw of the chain, the mean of the chain's draws.
"""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vae_lightning.data import ImageDataModule
from vae_lightning.data.loading import data_of
from vae_lightning.metrics import MeanAndError, draw_missing, impute, missing_error
from vae_lightning.metrics.formatting import with_error
from vae_lightning.models.loading import load_model
from vae_lightning.noise import reseed
from vae_lightning.pictures import draw, no_picture, show
from vae_lightning.pictures.shown import names_of_classes
from vae_lightning.types import Batch, UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_picture_arguments, checkpoint_and_output, write_picture
from vae_lightning.verbs._images import spread_images


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    parser.add_argument("--missing", type=float, default=0.6, help="the share of the pixels that are hidden")
    parser.add_argument("--steps", type=int, default=100, help="the number of steps of the chain")
    parser.add_argument("--corrected", action="store_true", help="accept or reject each z (Metropolis-Hastings)")
    add_picture_arguments(parser, "imputations")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Impute test images, write the picture, and print the two errors.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    checkpoint, output = checkpoint_and_output(arguments, "imputations")
    model = load_model(checkpoint, trusted)
    data = data_of(checkpoint, trusted)
    if not isinstance(data, ImageDataModule):
        raise UserError(f"impute: {type(data).__name__} is no ImageDataModule, whose pixels could be missing")
    batch = spread_images(data.test_dataloader(), arguments.num_images)
    x = batch["x"]
    reseed(model.device, arguments.seed)
    missing = draw_missing(x, arguments.missing)
    chain = impute(model, batch, missing, arguments.steps, arguments.corrected)
    with_mean_image = torch.where(missing, _mean_image(data), x)
    hidden = torch.where(missing, 0.5, x)
    rows = {"original": x, "hidden in grey": hidden, "mean image": with_mean_image}
    rows |= {"one draw": chain.draw, "mean of draws": chain.mean}
    _draw(data, batch, rows, f"imputations, {checkpoint.name}", output)
    print(f"{len(x)} images, {arguments.missing:.0%} of pixels missing, {arguments.steps} steps", end="")
    print(f", {chain.acceptance:.0%} accepted" if arguments.corrected else "")
    is_binary = bool(((x == 0) | (x == 1)).all())
    for name, guess in (("chain", chain.mean), ("mean image", with_mean_image)):
        score = MeanAndError()
        score.update(missing_error(guess, x, missing))
        error, stderr = score.compute()
        wrong = f", {missing_error(guess.round(), x, missing).mean():.1%} wrong" if is_binary else ""
        print(f"{name:<12}squared error {with_error(error, stderr, 4)} a missing pixel{wrong}", flush=True)


def _draw(data: ImageDataModule, batch: Batch, rows: dict[str, Tensor], title: str, output: Path) -> None:
    """Write the picture of the first twenty images; without a picture, the errors are still worth printing."""
    shown = {caption: show(data, row[:20], like=batch["x"]) for caption, row in rows.items()}
    drawable = {caption: row for caption, row in shown.items() if row is not None}
    if drawable:
        write_picture(draw(title, drawable, names_of_classes(data, batch, 20)), output)
    else:
        print(no_picture(batch["x"]))


def _mean_image(data: ImageDataModule, num_images: int = 10_000) -> Tensor:
    """Return the mean [C, H, W] of x over about `num_images` training images."""
    batches = islice(data.train_dataloader(), -(-num_images // data.batch_size))
    total, count = 0.0, 0
    for batch in batches:
        total, count = total + batch["x"].double().sum(0), count + len(batch["x"])
    return (torch.as_tensor(total) / count).float()


COMMAND = Command(make_parser, run)
