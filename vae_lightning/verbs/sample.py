"""`sample RUN`: draw samples from the prior, or from the one that fit-prior has fitted, into a PNG file."""

from __future__ import annotations

import argparse

from vae_lightning.models.loading import load_model
from vae_lightning.pictures import sample_grid
from vae_lightning.verbs._arguments import Parser, add_picture_arguments, check_picture_arguments, write_picture
from vae_lightning.verbs.fit_prior import use_fitted_prior


def make_parser(prog: str, description: str) -> Parser:
    parser = Parser(prog, description)
    fitted = "fitted: the one that fit-prior has written beside the checkpoint"
    parser.add_argument("--prior", choices=("own", "fitted"), default="own", help=fitted)
    add_picture_arguments(parser, "samples")
    return parser


def run(given: argparse.Namespace, trusted: list[str]) -> None:
    check_picture_arguments(given, "samples")
    model = load_model(given.checkpoint, trusted)
    if given.prior == "fitted":
        use_fitted_prior(model, given.checkpoint, trusted)
    write_picture(sample_grid(model, given.num_images, given.seed), given.output)
