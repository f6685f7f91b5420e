"""`sample RUN`: draw samples from the model's prior, or from the prior that fit-prior has fitted, into a PNG file."""

from __future__ import annotations

import argparse
from pathlib import Path

from vae_lightning.data import DataModule
from vae_lightning.data.loading import data_of
from vae_lightning.models.loading import load_model
from vae_lightning.pictures import NoPictureError, samples
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_picture_arguments, checkpoint_and_output, write_picture
from vae_lightning.verbs.fit_prior import use_fitted_prior


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    fitted = "own: the prior of the model; fitted: the prior that fit-prior has written beside the checkpoint"
    parser.add_argument("--prior", choices=("own", "fitted"), default="own", help=fitted)
    counts = "prior: the counts of objects are drawn from p(n); aggregate: from the mean of q(n|x) in training (AIR)"
    parser.add_argument("--counts", choices=("prior", "aggregate"), help=f"{counts}; default: as in the run's config")
    add_picture_arguments(parser, "samples")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Draw samples from the prior and write them to a PNG file.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    checkpoint, output = checkpoint_and_output(arguments, "samples")
    model = load_model(checkpoint, trusted)
    if arguments.prior == "fitted":
        use_fitted_prior(model, checkpoint, trusted)
    if arguments.counts:
        if not hasattr(model, "sample_counts"):
            raise UserError(f"--counts: {type(model).__name__} has no count of objects; AIR has one")
        model.sample_counts = arguments.counts
    title = f"samples{' of the fitted prior' if arguments.prior == 'fitted' else ''}, {checkpoint.name}"
    data, error = _data_that_shows(checkpoint, trusted)
    try:
        picture = samples(model, data, arguments.num_images, arguments.seed, title)
    except NoPictureError as no_picture:
        raise error or no_picture from None
    write_picture(picture, output)


def _data_that_shows(checkpoint: Path, trusted: list[str]) -> tuple[DataModule | None, UserError | None]:
    """Return the run's data set, or why there is none: a sample of images can be drawn without it.

    Its files are needed only if it has a `show` of its own, which may read a vocabulary from them.
    """
    try:
        data = data_of(checkpoint, trusted, prepare=False)
        if getattr(type(data), "show", None) is not getattr(DataModule, "show", None):
            data.prepare_data()
    except UserError as error:
        return None, error
    return data, None


COMMAND = Command(make_parser, run)
