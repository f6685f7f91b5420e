"""`sample RUN`: draw samples from the model's prior, or from the prior that fit-prior has fitted, into a PNG file.

`--output samples.npz` writes the numbers in place of a picture: x [n, ...] as the model returns it, and label [n].
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vae_lightning.data import DataModule
from vae_lightning.data.loading import check_unchanged, data_of
from vae_lightning.models import LatentVariableModel
from vae_lightning.models.loading import load_model
from vae_lightning.models.looking import PartDiffersError
from vae_lightning.models.temperature import at_temperature
from vae_lightning.pictures import NoPictureError, label_in_words, samples
from vae_lightning.pictures.drawing import draw_x
from vae_lightning.pictures.grids import evaluating
from vae_lightning.runs.whole_files import whole_file
from vae_lightning.types import UserError
from vae_lightning.verbs import Command
from vae_lightning.verbs._arguments import (
    Parser,
    add_picture_arguments,
    checkpoint_and_output,
    not_written,
    write_picture,
)
from vae_lightning.verbs._images import decodes, number_of_class
from vae_lightning.verbs.fit_prior import use_fitted_prior

_AT_ONCE = 1000


def make_parser(prog: str, description: str) -> Parser:
    """Return the parser of the command.

    Args:
        prog: The program and the command.
        description: The purpose of the command.
    """
    parser = Parser(prog, description)
    fitted = "own: the prior of the model; fitted: the prior that fit-prior has written beside the checkpoint"
    parser.add_argument("--prior", choices=("own", "fitted"), default="own", help=fitted)
    temperature = "what the standard deviations of the prior are multiplied by; below 1: more typical, less diverse"
    parser.add_argument("--temperature", type=float, default=1.0, help=temperature)
    parser.add_argument("--label", help="for a conditional model: the number or the name of the class of all samples")
    counts = "prior: the counts of objects are drawn from p(n); aggregate: from the mean of q(n|x) in training (AIR)"
    parser.add_argument("--counts", choices=("prior", "aggregate"), help=f"{counts}; default: as in the run's config")
    images = "the number of samples"
    add_picture_arguments(parser, "samples", images=images, also=", or an .npz file for the numbers")
    return parser


def run(arguments: argparse.Namespace, trusted: list[str]) -> None:
    """Draw samples from the prior and write them to a PNG file.

    Args:
        arguments: The parsed arguments.
        trusted: The packages that `--trust` names.
    """
    checkpoint, output = checkpoint_and_output(arguments, "samples", ".npz")
    model = load_model(checkpoint, trusted)
    if arguments.prior == "fitted":
        use_fitted_prior(model, checkpoint, trusted)
    if arguments.counts:
        if not hasattr(model, "sample_counts"):
            raise UserError(f"--counts: {type(model).__name__} has no count of objects; AIR has one")
        model.sample_counts = arguments.counts
    data, error = _data_that_shows(checkpoint, trusted)
    label, n, words = None, arguments.num_images, ""
    if arguments.label is not None:
        number = number_of_class(model, data, arguments.label)
        label, words = torch.full((n,), number), label_in_words(data, number)
    try:
        title, temperature = _title(arguments, checkpoint, words), arguments.temperature
        check_samples(model, label)
        if output.suffix.lower() == ".npz":
            _write_numbers(model, n, arguments.seed, temperature, label, output)
            return
        picture = samples(model, data, n, arguments.seed, title, temperature, label)
    except NoPictureError as no_picture:
        raise error or no_picture from None
    write_picture(picture, output)


def _write_numbers(
    model: LatentVariableModel, n: int, seed: int, temperature: float, label: Tensor | None, output: Path
) -> None:
    """Write the samples that the picture would show as numbers; more than a thousand are drawn in parts."""
    with evaluating(model, seed), at_temperature(model, temperature):
        parts = [
            draw_x(model, min(_AT_ONCE, n - first), None if label is None else label[first : first + _AT_ONCE]).cpu()
            for first in range(0, n, _AT_ONCE)
        ]
    x = torch.cat(parts).numpy()
    arrays = {"x": x} if label is None else {"x": x, "label": label.numpy()}
    try:
        with whole_file(output) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise not_written(output, error) from error
    print(f"{output}: {', '.join(f'{name} {list(values.shape)}' for name, values in arrays.items())}")


def _title(arguments: argparse.Namespace, checkpoint: Path, label: str) -> str:
    parts = ["samples of the fitted prior" if arguments.prior == "fitted" else "samples"]
    parts += [label] if label else []
    parts += [] if arguments.temperature == 1 else [f"temperature {arguments.temperature:g}"]
    return ", ".join([*parts, checkpoint.name])


def check_samples(model: LatentVariableModel, label: Tensor | None) -> None:
    """Compare decode with the trace, at samples, if a subclass has a trace of its own and the `sample` of its base.

    Args:
        model: The model.
        label: The labels of the samples of a conditional model; None for the way of `model.sample(n)`.

    Raises:
        UserError: if the two differ, so that the samples would be of another model than the one that was trained.
    """
    order = [set(vars(kind)) for kind in type(model).__mro__]
    of_trace, of_sample = (next(i for i, names in enumerate(order) if name in names) for name in ("trace", "sample"))
    if of_sample <= of_trace or not decodes(model):
        return
    x = model.sample(2) if label is None else model.sample_given(label[:2])
    beside = {"label": torch.zeros(2, dtype=torch.long) if label is None else label[:2]} if model.num_labels else {}
    try:
        model.check_decode({"x": x, **beside})
    except PartDiffersError as error:
        raise UserError(f"{error}; sample draws by decode") from error
    except UserError:
        return  # its trace needs more than x, so it cannot be checked here


def _data_that_shows(checkpoint: Path, trusted: list[str]) -> tuple[DataModule | None, UserError | None]:
    """Return the run's data set, or why there is none: a sample of images can be drawn without it.

    Its files are needed only if it has a `show` of its own, which may read a vocabulary from them.
    """
    try:
        data = data_of(checkpoint, trusted, prepare=False)
        if getattr(type(data), "show", None) is not getattr(DataModule, "show", None):
            data.prepare_data()
            check_unchanged(data, checkpoint)
    except UserError as error:
        return None, error
    return data, None


COMMAND = Command(make_parser, run)
