"""Arguments that several verbs take, and the parser that reports a mistake in one line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from vae_lightning.pictures import Picture, save
from vae_lightning.runs.folder import best_checkpoint
from vae_lightning.runs.suggestions import OneLineParser
from vae_lightning.types import UserError

_OF_PICTURES = (".png", ".gif", ".txt")
TRUST_HELP = "a package of your own whose classes a checkpoint or a run's config.yaml may name; may be repeated"


class Parser(OneLineParser):
    """A command's parser, which raises UserError for a wrong argument.

    The parser knows `--trust`, so that the help shows the flag; `cli.dispatch` reads the flag's value.

    Args:
        prog: The program and the command, such as "vae-lightning sample".
        description: The purpose of the command.
        add_help: Whether the parser knows `--help`.
    """

    def __init__(self, prog: str, description: str = "", add_help: bool = True) -> None:
        super().__init__(prog=prog, description=description, add_help=add_help, allow_abbrev=False)
        self.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST_HELP)

    def error(self, message: str) -> NoReturn:
        """Raise UserError with argparse's message in one line.

        Args:
            message: argparse's message.
        """
        raise UserError(self.in_one_line(message))


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the argument RUN: a run's folder or a checkpoint. `best_checkpoint` finds the file.

    Args:
        parser: The parser of the command.
    """
    parser.add_argument("run", metavar="RUN", help="a run's folder (its best checkpoint), or a checkpoint")


def add_seed(parser: argparse.ArgumentParser, of: str = "the noise") -> None:
    """Add `--seed`.

    Args:
        parser: The parser of the command.
        of: What is drawn with the seed, for the help.
    """
    parser.add_argument("--seed", type=int, default=0, help=f"the seed of {of}")


def add_output(parser: argparse.ArgumentParser, output: str) -> None:
    """Add `--output`, the file or the folder that the command writes.

    Args:
        parser: The parser of the command.
        output: The help: what is written, and where without the flag.
    """
    parser.add_argument("--output", type=Path, help=output)


def check_at_least(arguments: argparse.Namespace, **lowest: int) -> None:
    """Check that numbers that the user gave are not too small.

    Args:
        arguments: The parsed arguments. A number that is None was not given.
        **lowest: The lowest value that each flag may have, by the flag's name.

    Raises:
        UserError: for the first number that is too small.
    """
    for name, least in lowest.items():
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; it must be at least {least}")


def check_ending(output: Path | None, *endings: str, flag: str = "--output") -> None:
    """Check that the name of a file promises what the command writes: a table named .json would not be JSON.

    Args:
        output: The file that the user named; None if none was named. A name without an ending promises nothing.
        *endings: What the name may end in, such as ".png".
        flag: The option that names the file.

    Raises:
        UserError: if the name ends in something else.
    """
    if output is not None and output.suffix and output.suffix.lower() not in endings:
        raise UserError(
            f"{flag} {output}: a name that ends in {' or '.join(endings)} was expected, for what is written"
        )


def add_picture_arguments(
    parser: argparse.ArgumentParser,
    picture: str,
    num_images: int | None = 50,
    images: str = "the number of images in the picture",
    also: str = "",
) -> None:
    """Add RUN and the arguments of a command that draws one picture: the number of images, the seed, the file.

    Args:
        parser: The parser of the command.
        picture: The name of the picture's file, without its ending.
        num_images: The default of `--num_images`; None for a command without this flag.
        images: The help of `--num_images`.
        also: What else `--output` may be, for the help.
    """
    add_run(parser)
    if num_images is not None:
        parser.add_argument("--num_images", type=int, default=num_images, help=images)
    add_seed(parser)
    output = f"the PNG file to write (clips also make a .gif, texts a .txt){also}"
    add_output(parser, f"{output}; default: images/{picture}.png in the run's folder")


def checkpoint_and_output(arguments: argparse.Namespace, picture: str, *also: str) -> tuple[Path, Path]:
    """Return the checkpoint that RUN names, and the file that the picture is written to.

    Args:
        arguments: The parsed arguments of `add_picture_arguments`.
        picture: The name of the picture's file, without its ending, if `--output` is not given.
        *also: Endings of `--output` beside those of pictures.

    Raises:
        UserError: if RUN has no checkpoint, if `--num_images` is less than 1, or if `--output` ends in something else.
    """
    check_ending(arguments.output, *_OF_PICTURES, *also)
    if "num_images" in arguments:
        check_at_least(arguments, num_images=1)
    checkpoint = best_checkpoint(arguments.run)
    return checkpoint, arguments.output or checkpoint.absolute().parent.parent / "images" / f"{picture}.png"


def write_picture(picture: Picture, output: Path, flag: str = "--output", printed_to: TextIO | None = None) -> None:
    """Write the files of a picture and print their paths.

    Args:
        picture: The picture.
        output: The PNG file to write; a GIF of clips or a table of texts has its name with the ending .gif or .txt.
        flag: The option that names the file.
        printed_to: Where the paths are printed; None for the standard output.

    Raises:
        UserError: if the file cannot be written.
    """
    try:
        written = save(picture, output)
    except OSError as error:
        raise not_written(output, error, flag=flag) from error
    print(*written, sep="\n", file=printed_to)


def not_written(output: Path, error: OSError, kind: str = "file", flag: str = "--output") -> UserError:
    """Return the error that says why a file or folder cannot be written.

    Args:
        output: The file or folder.
        error: What the system said.
        kind: What the user chooses by the option: another `file` or another `folder`.
        flag: The option.
    """
    blocking = next(
        (one for one in output.parents if one.exists() and not one.is_dir()), None
    )  # "File exists" misleads
    reason = f"{blocking} is a file, not a folder" if blocking else error.strerror
    return UserError(f"{output}: cannot be written ({reason}); choose another {kind} by {flag}")


def printable(text: object) -> str:
    """Return a text that comes from a file or a file's name as a terminal can show it, in one line.

    Args:
        text: Any value; its `str` is taken.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in str(text))


def in_columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return a table as text: columns as wide as their longest cell, two spaces apart.

    Args:
        rows: The cells of each row, of as many columns each.
        right: The columns that are aligned to the right.
    """
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)
