"""`interpolate RUN --between A B`: draw the way between the codes of two images into a PNG file.

The way is straight, or along the sphere for latents on a sphere. The row above it mixes the pixels of the two images.
"""

from __future__ import annotations

import argparse

from vae_lightning.models.loading import load_model
from vae_lightning.pictures import interpolation
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_picture_arguments, checkpoint_and_output, write_picture
from vae_lightning.verbs._images import FILE_OR_INDEX, check_decodes, data_for, images_of, with_label


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    both = f"two images, each {FILE_OR_INDEX}"
    parser.add_argument("--between", nargs="+", required=True, metavar="FILE|INDEX", help=both)
    parser.add_argument("--label", help="for a conditional model: the number or the name of the class of both images")
    parser.add_argument("--steps", type=int, default=10, help="the number of images on the way, both ends included")
    add_picture_arguments(parser, "interpolate", None)
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Walk from one image to the other and write the picture.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    checkpoint, output = checkpoint_and_output(arguments, "interpolate")
    between = arguments.between
    if len(between) != 2:
        raise UserError(f"--between has {len(between)} image{'s' * (len(between) > 1)}; a way has two ends: give two")
    if not 2 <= arguments.steps <= 100:
        raise UserError(f"--steps is {arguments.steps}; it must be 2 to 100")
    model = load_model(checkpoint, trusted)
    check_decodes(model)
    data = data_for(checkpoint, trusted, between)
    batch = with_label(images_of(data, between), model, data, arguments.label)
    a, b = ({name: values[i : i + 1] for name, values in batch.items()} for i in (0, 1))
    title = f"between {between[0]} and {between[1]}, {checkpoint.name}"
    write_picture(interpolation(model, data, a, b, arguments.seed, title, arguments.steps), output)


COMMAND = Command(make_parser, run)
