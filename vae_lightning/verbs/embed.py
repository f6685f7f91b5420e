"""`embed RUN`: write mean and scale of q(z|x) of every example of a split or of your own folder, and draw them.

The table has a row for each example: number, name (a file), label, name of the class, and the numbers of each latent.
The picture shows the means in a plane: the latent itself if it has two dimensions, else the two largest directions.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_lightning.metrics.latents import LatentUnits
from vae_lightning.models import LatentVariableModel
from vae_lightning.models.codes import DRAWS, estimated, predictions
from vae_lightning.models.loading import load_model
from vae_lightning.noise import reseed
from vae_lightning.pictures import Picture
from vae_lightning.pictures.planes import beside, principal_directions, scatter
from vae_lightning.pictures.shown import on_device
from vae_lightning.runs.folder import best_checkpoint
from vae_lightning.runs.suggestions import hint
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import Parser, add_output, not_written, write_picture
from vae_lightning.verbs._examples import FolderExamples, Part, SplitExamples, add_example_arguments, examples_of
from vae_lightning.verbs._tables import FORMATS, Rows, open_table, table_format

_MOST_POINTS = 5000
_SMALL = 0.01  # a share of the variance
_ACTIVE = LatentUnits.threshold  # of the variance of a dimension's mean over examples


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    add_example_arguments(parser)
    parser.add_argument("--format", choices=FORMATS, help="the format of the table; default: npz, or --output's ending")
    add_output(parser, "the table; default: embeddings-test.npz in the run's folder")
    parser.add_argument("--latent", help="the latent in the picture; default: the first one")
    return parser


@torch.no_grad()
def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Encode the examples batch by batch, write the table and the picture, and print their paths.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    form = table_format(arguments.output, arguments.format)
    checkpoint = best_checkpoint(arguments.run)
    model = load_model(checkpoint, trusted).to("cuda" if torch.cuda.is_available() else "cpu")
    examples = examples_of(arguments, checkpoint, trusted, model)
    output = arguments.output or checkpoint.absolute().parent.parent / f"embeddings-{examples.name}.{form}"
    points = _Points(arguments.latent, -(-examples.total // _MOST_POINTS))
    count = 0
    try:
        with open_table(output, form) as table:
            for part in examples:
                rows = _encode(model, part, arguments.seed, count == 0)
                points.add(part, rows)
                table.add(_columns(part, rows, examples.name))
                count += len(part.index)
    except OSError as error:
        raise not_written(output, error) from error
    print(*examples.report(), sep="\n", end="\n" * bool(examples.report()))
    shapes = ", ".join(f"{name} {list(value.shape[1:]) or 'one number'}" for name, value in rows.items())
    print(f"{'examples':<12}{count:,}: {shapes}\n{'table':<12}{output}", flush=True)
    _draw(points, examples, checkpoint, output)


def _encode(model: LatentVariableModel, part: Part, seed: int, is_first: bool) -> dict[str, np.ndarray]:
    """The numbers of each example, as `predict` writes them."""
    reseed(model.device, seed, int(part.index[0]))
    batch = on_device(part.batch, model.device, model.dtype)  # type: ignore[arg-type]
    trace = model.checked_trace(batch)
    if is_first and (names := estimated(trace)):
        print(f"{'note':<12}{', '.join(names)}: q(z|x) has no closed form; estimated from {DRAWS} draws", flush=True)
    found = predictions(type(model).__name__, model.trace, batch, trace, False)
    full = {name: value.float() if value.is_floating_point() else value for name, value in found.items()}
    return {name: value.cpu().numpy() for name, value in full.items()}


def _columns(part: Part, rows: Mapping[str, np.ndarray], source: str) -> Rows:
    """The columns of the table: what is known of each example, then its numbers."""
    names = {"class_name": part.class_names} if "label" in rows or any(part.class_names) or part.files else {}
    return {"index": part.index.numpy(), "name": part.names, "source": [source] * len(part.index), **names, **rows}


class _Points:
    """The means of one latent, of every n-th example: enough for a picture.

    Args:
        latent: The name of the latent; None for the first one.
        every: n.
    """

    def __init__(self, latent: str | None, every: int) -> None:
        self.latent, self.every = latent, every
        self.means: list[Tensor] = []
        self.names: list[str] = []

    def add(self, part: Part, rows: Mapping[str, np.ndarray]) -> None:
        """Keep the means of a batch's examples.

        Raises:
            UserError: if there is no such latent.
        """
        known = [name.removesuffix("_mean") for name in rows if name.endswith("_mean")]
        if self.latent is not None and self.latent not in known:
            there = f"; it has {', '.join(known)}" if known else ": no latent exists in every example"
            raise UserError(f"--latent {self.latent}: the model has no such latent{hint(self.latent, known)}{there}")
        if not known:
            return
        self.latent = self.latent or known[0]
        kept = (part.index % self.every == 0).nonzero().flatten()
        self.means.append(torch.from_numpy(rows[f"{self.latent}_mean"]).flatten(1)[kept].double())
        self.names += [part.class_names[i] for i in kept.tolist()]


def _draw(points: _Points, examples: SplitExamples | FolderExamples, checkpoint: Path, output: Path) -> None:
    """Write the picture beside the table, or print why there is none."""
    z = torch.cat(points.means) if points.means else torch.zeros(0, 0)
    if len(z) < 2 or z.shape[1] < 2:
        reason = "a plane needs two examples and dimensions" if points.means else "no latent exists in every example"
        print(f"{'picture':<12}none: {reason}", flush=True)
        return
    if idle := _idle(z, points.latent or "z"):
        print(f"{'note':<12}{idle}", flush=True)
    plane, axes, share = _plane(z, points.latent or "z")
    # a direction of almost no variance, stretched to the frame, would look as if it told the examples apart
    limits = _one_scale(plane) if z.shape[1] > 2 and plane[:, 1].var() < _SMALL * z.var(0).sum() else None
    classes = sorted(set(points.names), key=lambda name: (len(name), name) if name.isdecimal() else (99, name))
    labels = torch.tensor([classes.index(name) for name in points.names]) if any(classes) else None
    title = f"{points.latent} of {len(z):,} of {examples.total:,} examples, {examples.name}, {checkpoint.name}{share}"
    still = beside(title, scatter(plane, labels, [name or "no class" for name in classes], limits, axes=axes))
    path = output.with_suffix(".png")
    if path.exists():
        print(f"{'note':<12}an older picture is replaced: {path}", flush=True)
    write_picture(Picture(still), path)


def _plane(z: Tensor, name: str) -> tuple[Tensor, tuple[str, str], str]:
    """The points [N, 2], the names of the axes, and what share of the variance the plane holds."""
    if z.shape[1] == 2:
        return z, (f"{name} 0", f"{name} 1"), ""
    directions, shares = principal_directions(z)
    first, second = (f"{one:.0%}" if one >= _SMALL else "<1%" for one in shares[:2].tolist())
    axes = (f"direction 1 ({first})", f"dir. 2\n({second})")
    return (z - z.mean(0)) @ directions[:2].T, axes, f"; the plane has {shares[:2].sum():.0%} of the variance"


def _idle(z: Tensor, name: str) -> str:
    """Which axes show a spread that means nothing, although it fills the frame; "" if none."""
    is_idle = z.var(0) <= _ACTIVE
    if bool(is_idle.all()):
        return (
            f"{name} is not active: no mean varies by more than {_ACTIVE} over these examples, so clusters mean little"
        )
    named = [f"{name} {i}" for i in is_idle.nonzero().flatten().tolist()] if z.shape[1] == 2 else []
    return f"{named[0]} is not active: its mean varies by at most {_ACTIVE}, so its axis means little" if named else ""


def _one_scale(points: Tensor) -> tuple[float, float, float, float]:
    """The square frame around all points."""
    low, high = points.amin(0), points.amax(0)
    half = max((high - low).max().item() * 0.53, 1e-6)
    x, y = ((low + high) / 2).tolist()
    return x - half, x + half, y - half, y + half


COMMAND = Command(make_parser, run)
