"""`reconstruct RUN`: draw test images above their reconstructions into a PNG file."""

from __future__ import annotations

import argparse

from vae_lightning.data.loading import data_of
from vae_lightning.models.loading import load_model
from vae_lightning.pictures import reconstruction_grid
from vae_lightning.storage.loader import first_images
from vae_lightning.verbs._arguments import Parser, add_picture_arguments, check_picture_arguments, write_picture


def make_parser(prog: str, description: str) -> Parser:
    parser = Parser(prog, description)
    add_picture_arguments(parser, "reconstructions")
    return parser


def run(given: argparse.Namespace, trusted: list[str]) -> None:
    check_picture_arguments(given, "reconstructions")
    model = load_model(given.checkpoint, trusted)
    batch = first_images(data_of(given.checkpoint, trusted).test_dataloader(), given.num_images)
    write_picture(reconstruction_grid(model, batch, given.seed), given.output)
