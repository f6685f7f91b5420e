"""`animate RUN`: join the pictures that a run drew at its epochs into GIF files.

The pictures are images/<name>-<epoch>.png in the run's folder, such as samples and reconstructions.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.pictures import save_gif
from vae_lightning.runs.suggestions import hint
from vae_lightning.runs.trust import refuse_address
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_output, add_run, check_ending, not_written

_NAME = re.compile(r"(?P<name>.+)-(?P<epoch>\d{4,})")
_MOST_PIXELS = 2e8  # of all frames together: 600 MB


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    add_run(parser)
    parser.add_argument("--picture", metavar="NAME", help="the name of the pictures, such as samples; default: all")
    parser.add_argument("--milliseconds", type=int, default=300, help="how long each picture is shown")
    add_output(parser, "the GIF file to write, of one picture alone; default: images/<name>.gif in the run's folder")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:  # noqa: ARG001 - no class is imported
    """Write a GIF of each picture that was drawn at two epochs or more.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    if arguments.milliseconds < 20:
        raise UserError(f"--milliseconds is {arguments.milliseconds}; viewers show a picture for at least 20")
    check_ending(arguments.output, ".gif")
    folder = images_folder(arguments.run)
    found = pictures_by_name(folder)
    names = _names(folder, found, arguments.picture)
    if arguments.output is not None and len(names) > 1:
        raise UserError(f"--output takes one picture: choose it by --picture, of {', '.join(names)}")
    for name in names:
        output = arguments.output or folder / f"{name}.gif"
        frames = read_frames(found[name])
        try:
            save_gif(frames, output, arguments.milliseconds)
        except OSError as error:
            raise not_written(output, error) from error
        print(output)


def images_folder(run: str) -> Path:
    """Return the folder of a run's pictures.

    Args:
        run: The run's folder, or a checkpoint of it.

    Raises:
        UserError: if there is none.
    """
    refuse_address(run)
    path = Path(run)
    folder = (path if path.is_dir() else path.absolute().parent.parent) / "images"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a run draws pictures there unless --pictures.num_images=0")
    return folder


def pictures_by_name(folder: Path) -> dict[str, list[Path]]:
    """Return the pictures of each name in the order of their epochs.

    Args:
        folder: The folder of a run's pictures.
    """
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in folder.glob("*.png"):
        if match := _NAME.fullmatch(path.stem):
            found.setdefault(match["name"], []).append((int(match["epoch"]), path))
    return {name: [path for _, path in sorted(pictures)] for name, pictures in sorted(found.items())}


def read_frames(paths: Sequence[Path]) -> Tensor:
    """Return pictures as frames of the largest height and width, white where a picture is smaller: uint8 [T, 3, H, W].

    Of many large pictures some are left out, evenly, so that all together take at most 600 MB.

    Args:
        paths: The pictures.

    Raises:
        UserError: if a picture cannot be read.
    """
    first = _read(paths[0])
    most = max(2, int(_MOST_PIXELS / first[0].numel()))
    kept = torch.linspace(0, len(paths) - 1, min(most, len(paths))).round().long().tolist()
    pictures = [_read(paths[i]) for i in kept]
    height, width = (max(one.shape[side] for one in pictures) for side in (1, 2))
    return torch.stack([F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1]), value=255) for one in pictures])


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a picture; remove it") from error


def _names(folder: Path, found: dict[str, list[Path]], wanted: str | None) -> list[str]:
    """The names whose pictures move: those of two epochs or more."""
    if wanted is not None and wanted not in found:
        known = ", ".join(found) or "none"
        raise UserError(f"{folder}: no pictures {wanted}-<epoch>.png{hint(wanted, found)}; there are {known}")
    names = [name for name, paths in found.items() if len(paths) > 1 and wanted in (None, name)]
    if not names:
        raise UserError(
            f"{folder}: no picture of two epochs; train with --pictures.every_n_epochs=1 to have one of each epoch"
        )
    return names


COMMAND = Command(make_parser, run)
