"""`reconstruct RUN`: draw test images, or files of yours, above their reconstructions into a PNG file.

A model that predicts frames also draws how it goes on after the first frames of clips, into a second file, which ends
in `_rollouts`. A file of another size is resized as the run's data set resizes its own, and a line says so.
"""

from __future__ import annotations

import argparse

from vae_lightning.models import PredictsFrames
from vae_lightning.models.loading import load_model
from vae_lightning.pictures import reconstructions, rollouts
from vae_lightning.storage.loader import first_images
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_picture_arguments, checkpoint_and_output, write_picture
from vae_lightning.verbs._images import FILE_OR_INDEX, data_for, images_of, test_batches, with_label

_NUM_CLIPS = 4  # of the picture of roll-outs


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    own = f"the images to reconstruct, each {FILE_OR_INDEX}; default: the first test images"
    parser.add_argument("--images", nargs="+", default=[], metavar="FILE|INDEX", help=own)
    parser.add_argument("--label", help="for a conditional model: the number or the name of the class of all images")
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
    data = data_for(checkpoint, trusted, arguments.images)
    if arguments.images:
        batch = images_of(data, arguments.images)
    else:
        batch = first_images(test_batches(data), arguments.num_images)
    batch = with_label(batch, model, data, arguments.label)
    title = f"reconstructions, {checkpoint.name}"
    write_picture(reconstructions(model, data, batch, arguments.seed, title), output)
    if isinstance(model, PredictsFrames):
        clips = {name: values[:_NUM_CLIPS] for name, values in batch.items()}
        picture = rollouts(model, data, clips, arguments.seed, f"roll-outs, {checkpoint.name}")
        write_picture(picture, output.with_name(f"{output.stem}_rollouts{output.suffix}"))


COMMAND = Command(make_parser, run)
