"""`reconstruct RUN`: draw test images above their reconstructions into a PNG file."""

from __future__ import annotations

import argparse

from vae_lightning.data.loading import data_of
from vae_lightning.models.loading import load_model
from vae_lightning.pictures import reconstructions
from vae_lightning.storage.loader import first_images
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_picture_arguments, checkpoint_and_output, write_picture


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    add_picture_arguments(parser, "reconstructions")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Reconstruct test images and write them to a PNG file.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    checkpoint, output = checkpoint_and_output(arguments, "reconstructions")
    model = load_model(checkpoint, trusted)
    data = data_of(checkpoint, trusted)
    batch = first_images(data.test_dataloader(), arguments.num_images)
    title = f"reconstructions, {checkpoint.name}"
    write_picture(reconstructions(model, data, batch, arguments.seed, title), output)


COMMAND = Command(make_parser, run)
