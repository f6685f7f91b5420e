"""`manifold RUN`: draw a sheet of decoded latents, and the codes of the test images in it, into a PNG file.

A latent of two dimensions is drawn whole. Of a larger one the sheet is the plane of the two directions in which the
codes of the test images vary most. Points have the colour of their class.
"""

from __future__ import annotations

import argparse

import torch

from vae_lightning.data.loading import data_of
from vae_lightning.models.loading import load_model
from vae_lightning.pictures import manifold
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_picture_arguments, checkpoint_and_output, write_picture
from vae_lightning.verbs._images import check_decodes, number_of_class, test_images


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    parser.add_argument("--latent", metavar="NAME", help="the latent, such as z; default: the one of the largest KL")
    parser.add_argument("--label", help="for a conditional model: the number or the name of the class of the sheet")
    parser.add_argument("--side", type=int, default=15, help="the number of images in a row and in a column")
    add_picture_arguments(parser, "manifold", 1000, "the number of test images whose codes are drawn")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Decode the sheet, encode the test images, and write the picture.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    checkpoint, output = checkpoint_and_output(arguments, "manifold")
    if not 2 <= arguments.side <= 50:
        raise UserError(f"--side is {arguments.side}; it must be 2 to 50")
    model = load_model(checkpoint, trusted)
    check_decodes(model)
    data = data_of(checkpoint, trusted)
    label = None
    if arguments.label is not None:
        label = torch.tensor([number_of_class(model, data, arguments.label)])
    images = test_images(data, arguments.num_images)
    title = f"manifold, {checkpoint.name}"
    write_picture(manifold(model, data, images, arguments.seed, title, arguments.latent, arguments.side, label), output)


COMMAND = Command(make_parser, run)
