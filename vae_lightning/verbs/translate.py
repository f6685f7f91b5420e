"""`translate RUN FILE`: read a model's sentences into its other text: one line in, one line out.

The texts are those of the run's data: questions become forms, sentences of one language those of the other. Without
FILE, or with -, lines are read from the standard input. An empty line stays an empty line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vae_lightning.data import TextPairs
from vae_lightning.data.loading import data_of
from vae_lightning.data.parallel_text import as_text, read_text
from vae_lightning.models import Seq4
from vae_lightning.models.loading import load_model
from vae_lightning.pictures import Picture
from vae_lightning.pictures.sheets import Block, sheet
from vae_lightning.runs.folder import best_checkpoint
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.types import PADDING, UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_output, add_run, check_ending, not_written, write_picture

_AT_ONCE = 256  # lines
_STANDARD_INPUT = "the standard input"
_MAPS, _CELL, _SIDE = 3, (18, 72), 1600  # lines in the picture of attention; pixels of a word's cell, of the picture


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    add_run(parser)
    file_help = "a text in UTF-8 with a sentence in each line, words with spaces between them; -: the standard input"
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=file_help)
    parser.add_argument("--reverse", action="store_true", help="from the other text x to sentences")
    add_output(parser, "the file to write; default: the standard output")
    attention = f"a PNG file: which words the reader looks at, for the first {_MAPS} lines"
    parser.add_argument("--attention", type=Path, metavar="PNG", help=attention)
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Translate line by line.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    _check_flags(arguments)
    check_ending(arguments.attention, ".png", flag="--attention")
    checkpoint = best_checkpoint(arguments.run)
    model, data = load_model(checkpoint, trusted), data_of(checkpoint, trusted)
    if not isinstance(model, Seq4) or not isinstance(data, TextPairs):
        raise UserError(
            f"{checkpoint}: {type(model).__name__} of {type(data).__name__} does not translate; train a model of two "
            "texts, such as -c seq4/toy"
        )
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    lines = _read(arguments.file)
    tokens = _encoded(data, "x" if arguments.reverse else "sentence", lines, arguments.file)
    translate = model.write if arguments.reverse else model.read
    found = (translate(part.to(model.device)).cpu() for part in tokens.split(_AT_ONCE))
    texts = iter([text for part in found for text in data.decode("sentence" if arguments.reverse else "x", part)])
    if arguments.attention is not None:  # before the texts: if it cannot be drawn, nothing is written
        if not len(tokens):
            raise UserError("--attention: no line has a sentence to look at")
        picture = attention_maps(model, data, tokens[:_MAPS])
        write_picture(picture, arguments.attention, "--attention", printed_to=sys.stderr)
    _write([next(texts) if line.strip() else "" for line in lines], arguments.output)


def _check_flags(arguments: argparse.Namespace) -> None:
    """Refuse flags that do not go together."""
    if arguments.reverse and arguments.attention:
        raise UserError("--attention shows which words of a sentence are looked at; leave --reverse out")
    if arguments.attention is not None and arguments.attention == arguments.output:
        raise UserError(f"--attention and --output both name {arguments.output}; choose another file for one of them")


def attention_maps(model: Seq4, data: TextPairs, sentences: Tensor) -> Picture:
    """Draw which words of sentences are looked at before each word of their x: white is 1.

    Args:
        model: The model.
        data: The data, for the words.
        sentences: Whole numbers, [N, T_sentence].
    """
    sentences = sentences.to(model.device)
    x = model.read(sentences)
    blocks = []
    for i, weights in enumerate(model.attention(sentences, x).float().cpu()):
        columns = [*data.decode("sentence", sentences[i : i + 1].cpu())[0].split(), "(end)"]
        rows = [*data.decode("x", x[i : i + 1].cpu())[0].split(), "(end)"]
        cells = weights[: len(rows), : len(columns), None, None, None].expand(-1, -1, 1, *_CELL)
        named = {f"{place} {word}": row for place, (word, row) in enumerate(zip(rows, cells, strict=False), 1)}
        blocks.append(Block(named, columns, "looks at"))
    return Picture(still=sheet("attention", blocks, _SIDE))


def _read(source: str) -> list[str]:
    """The lines of a file, or of the standard input; tells a user at a terminal what is waited for."""
    if source == "-" and sys.stdin.isatty():
        print("translate: type a sentence a line, and Ctrl-D after the last one", file=sys.stderr)
    text = read_text(Path(source)) if source != "-" else as_text(sys.stdin.buffer.read(), _STANDARD_INPUT)
    return text.removesuffix("\n").split("\n") if text else []


def _encoded(data: TextPairs, field: str, lines: Sequence[str], source: str) -> Tensor:
    """The lines that are not empty as whole numbers, [N, T]; says how many words are not known."""
    rows, unknown = [], 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            tokens, not_known = data.encode(field, [line])
        except UserError as error:
            where = _STANDARD_INPUT if source == "-" else source
            raise UserError(f"{where}: {str(error).replace('line 1 ', f'line {number} ', 1)}") from error
        rows.append(tokens)
        unknown += not_known
    if unknown:
        print(f"translate: the model does not know {unknown:,} of the words", file=sys.stderr)
    return torch.cat(rows) if rows else torch.full((0, 1), PADDING)


def _write(texts: Sequence[str], output: Path | None) -> None:
    text = "".join(f"{line}\n" for line in texts)
    if output is None:
        print(text, end="", flush=True)
        return
    try:
        write_whole(output, text.encode())
    except OSError as error:
        raise not_written(output, error) from error


COMMAND = Command(make_parser, run)
