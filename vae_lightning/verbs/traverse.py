"""`traverse RUN`: draw what each dimension of the latents does, the largest KL first, into a PNG file.

A row is one dimension: images whose other latents stay at the prior's mean, or at the code of an image. Its values go
from -2 to 2 standard deviations of the aggregate posterior. Dimensions whose KL is below 0.01 nats are left out.
"""

from __future__ import annotations

import argparse

import torch

from vae_lightning.data.loading import data_of
from vae_lightning.models.loading import load_model
from vae_lightning.pictures import traversals
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import (
    Parser,
    add_picture_arguments,
    check_at_least,
    checkpoint_and_output,
    write_picture,
)
from vae_lightning.verbs._images import (
    FILE_OR_INDEX,
    check_decodes,
    images_of,
    number_of_class,
    test_images,
    with_label,
)


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    start = f"{FILE_OR_INDEX}, at whose code the other latents stay; default: they stay at the prior's mean"
    parser.add_argument("--image", metavar="FILE|INDEX", help=start)
    parser.add_argument("--latent", metavar="NAME", help="the latent to move, such as z; default: all latents")
    numbers = "the numbers of the dimensions to draw, dead ones too; default: all that are not dead"
    parser.add_argument("--dimensions", type=int, nargs="+", default=[], metavar="N", help=numbers)
    parser.add_argument("--label", help="for a conditional model: the number or the name of the class to draw")
    parser.add_argument("--steps", type=int, default=9, help="the number of images in a row")
    reach = "how far a row goes, in standard deviations of the aggregate posterior"
    parser.add_argument("--reach", type=float, default=2.0, help=reach)
    parser.add_argument("--rows", type=int, default=20, help="the largest number of rows")
    parser.add_argument("--gif", action="store_true", help="write a moving picture too, in which all dimensions move")
    images = "the number of test images that KL and range are measured on"
    add_picture_arguments(parser, "traverse", 500, images)
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Move each dimension and write the picture.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    check_at_least(arguments, steps=2, rows=1, num_images=2)
    if not 0 < arguments.reach < torch.inf:
        raise UserError(f"--reach is {arguments.reach}; it must be above 0, such as 2")
    checkpoint, output = checkpoint_and_output(arguments, "traverse")
    model = load_model(checkpoint, trusted)
    check_decodes(model)
    data = data_of(checkpoint, trusted)
    start = label = None
    if arguments.label is not None:
        label = torch.tensor([number_of_class(model, data, arguments.label)])
    if arguments.image is not None:
        start = with_label(images_of(data, [arguments.image]), model, data, arguments.label)
    picture = traversals(
        model,
        data,
        test_images(data, arguments.num_images),
        arguments.seed,
        f"traverse, {checkpoint.name}",
        start,
        label,
        arguments.latent,
        arguments.dimensions,
        arguments.steps,
        arguments.reach,
        arguments.rows,
        arguments.gif,
    )
    write_picture(picture, output)


COMMAND = Command(make_parser, run)
