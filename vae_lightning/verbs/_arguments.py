"""Arguments that several verbs take, and the parser that ends a mistake in one line."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from torch import Tensor

from vae_lightning.pictures import save_png
from vae_lightning.runs.folder import best_checkpoint
from vae_lightning.runs.suggestions import OneLineParser
from vae_lightning.types import UserError


class Parser(OneLineParser):
    """Raises UserError for a wrong argument; `--trust` is one of its arguments, and is read by the dispatch."""

    def __init__(self, prog: str, description: str = "", add_help: bool = True) -> None:
        super().__init__(prog=prog, description=description, add_help=add_help, allow_abbrev=False)
        self.add_argument(
            "--trust",
            action="append",
            default=[],
            metavar="PACKAGE",
            help="a package of your own whose classes a checkpoint or a run's config.yaml may name; may be repeated",
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(self.in_one_line(message))


def add_run(parser: argparse.ArgumentParser) -> None:
    """The argument RUN: a folder or a checkpoint."""
    parser.add_argument("checkpoint", metavar="RUN", help="a run's folder (its best checkpoint), or a checkpoint")


def add_picture_arguments(parser: argparse.ArgumentParser, what: str) -> None:
    """RUN, and the arguments of a verb that draws one picture: how many images, the seed, the file."""
    add_run(parser)
    parser.add_argument("--num_images", type=int, default=50, help="how many images are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of the noise")
    parser.add_argument("--output", type=Path, help=f"default: images/{what}.png in the run's folder")


def check_picture_arguments(given: argparse.Namespace, what: str) -> None:
    """Replace RUN by its checkpoint, and give `output` its default.

    Raises:
        UserError: if there is no such checkpoint, or no image is asked for.
    """
    if given.num_images < 1:
        raise UserError(f"--num_images is {given.num_images}; it must be at least 1")
    given.checkpoint = best_checkpoint(given.checkpoint)
    given.output = given.output or given.checkpoint.absolute().parent.parent / "images" / f"{what}.png"


def write_picture(grid: Tensor, output: Path) -> None:
    """Write a PNG file and print its path.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        save_png(grid, output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); choose another file by --output") from error
    print(output)
