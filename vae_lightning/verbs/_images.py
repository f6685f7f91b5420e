"""The images that a verb looks at: test images by number, the user's own files, or a sample of the test set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae_lightning.data import CachedImages, DataModule
from vae_lightning.data.loading import data_of
from vae_lightning.data.own_files import OwnFiles
from vae_lightning.metrics import SpreadRows
from vae_lightning.models import LatentVariableModel
from vae_lightning.runs.suggestions import hint
from vae_lightning.types import Batch, UserError

FILE_OR_INDEX = "an image file, or the number of a test image, from 0"


def is_index(given: str) -> bool:
    """Whether an argument is the number of a test image, and not a file of that name.

    Args:
        given: The argument.
    """
    return given.removeprefix("-").isdecimal() and not Path(given).is_file()


def data_for(checkpoint: Path, trusted: list[str], given: Sequence[str]) -> DataModule:
    """Return the run's data set, ready for the images that are given.

    The files of the data set are not needed if all images are the user's own and it is a `CachedImages` data set.

    Args:
        checkpoint: The run's checkpoint.
        trusted: The packages that `--trust` names.
        given: Files, or numbers of test images.
    """
    data = data_of(checkpoint, trusted, prepare=False)
    if not (isinstance(data, CachedImages) and given and not any(map(is_index, given))):
        data.prepare_data()
    return data


def images_of(data: DataModule, given: Sequence[str]) -> Batch:
    """Return the images that are given, in their order, and print a line for each file that was resized.

    Args:
        data: The run's data set.
        given: Files, or numbers of test images.

    Returns:
        `x` [n, C, H, W], and the other fields of test images if no file is among the images.

    Raises:
        UserError: if a file cannot be read, or there is no such test image.
    """
    rows = _test_rows(data, [int(one) for one in given if is_index(one)])
    files = [one for one in given if not is_index(one)]
    own: Batch = {}
    if files:
        own, notes = OwnFiles(data).batch(files)
        print(*notes, sep="\n" if notes else "", end="\n" if notes else "", flush=True)
    found, numbers, row = [], iter(range(len(files))), iter(range(len(given) - len(files)))
    for one in given:
        batch, i = (rows, next(row)) if is_index(one) else (own, next(numbers))
        found.append({name: values[i] for name, values in batch.items()})
    shared = [name for name in found[0] if all(name in one for one in found)]
    return {name: torch.stack([one[name] for one in found]) for name in shared}


def test_images(data: DataModule, n: int) -> Batch:
    """Return n test images, spread over the test set; all of them if there are fewer.

    Args:
        data: The run's data set.
        n: The number of images.

    Raises:
        UserError: if there are no test images.
    """
    batch = spread_images(test_batches(data), n)
    if not batch:
        raise _no_test_images(data)
    return batch


def spread_images(batches: Iterable[Batch], n: int) -> Batch:
    """Return n images spread over the whole set, because the first n of a file sorted by class are of one class.

    Args:
        batches: Batches of a loader.
        n: The number of images.
    """
    rows, first = SpreadRows(n), 0
    for batch in batches:
        rows.add(batch, first)
        first += len(batch["x"])
    return rows.from_all_ranks()


def test_batches(data: DataModule) -> Iterable[Batch]:
    """Return the batches of the run's test images.

    Args:
        data: The run's data set.

    Raises:
        UserError: if there are none.
    """
    try:
        if not len(data.examples("test")):
            raise _no_test_images(data)
        return data.test_dataloader()
    except (LookupError, NotImplementedError) as error:  # of a `load` that knows no test split
        raise _no_test_images(data) from error


def with_label(batch: Batch, model: LatentVariableModel, data: DataModule, label: str | None) -> Batch:
    """Return the batch with the label that `--label` names, on every image.

    Args:
        batch: The images.
        model: The model, which must be conditional if there is a label.
        data: The run's data set, whose names of classes are known.
        label: The number or the name of a class; None to leave the batch unchanged.

    Raises:
        UserError: if the model is not conditional, or needs a label that the images do not have, or knows no such
            class.
    """
    count = model.num_labels
    if label is None:
        if count and "label" not in batch:
            raise UserError(f"{type(model).__name__} is given the label of an image, and a file has none; add --label")
        return batch
    number = torch.full((len(batch["x"]),), number_of_class(model, data, label), dtype=torch.long)
    return {**batch, "label": number}


def number_of_class(model: LatentVariableModel, data: DataModule | None, label: str) -> int:
    """Return the number of a class that the model is conditioned on.

    Args:
        model: The model.
        data: The run's data set, whose names of classes are known; None if it cannot be opened.
        label: The number or the name of the class.

    Raises:
        UserError: if the model is not conditioned on classes, or there is no such class.
    """
    if not model.num_labels:
        raise UserError(f"--label: {type(model).__name__} is not conditioned on a label; leave the flag out")
    names = tuple(getattr(data, "class_names", ()) or ())
    if label in names:
        return names.index(label)
    if label.isdecimal() and int(label) < model.num_labels:
        return int(label)
    known = f", or {', '.join(names[:10])}{', ...' * (len(names) > 10)}" if names else ""
    raise UserError(
        f"--label {label}: no such class{hint(label, names)}; the model knows 0 .. {model.num_labels - 1}{known}"
    )


def decodes(model: LatentVariableModel) -> bool:
    """Whether the model defines `decode` or `decode_given`.

    Args:
        model: The model.
    """
    base, kind = LatentVariableModel, type(model)
    return kind.decode is not base.decode or kind.decode_given is not base.decode_given


def check_decodes(model: LatentVariableModel) -> None:
    """Raise UserError unless the model can decode latents of one's own.

    Args:
        model: The model.
    """
    if not decodes(model):
        raise UserError(
            f"{type(model).__name__} has no decode(latents), which draws x at chosen latents; vae-lightning "
            "reconstruct and sample serve every model"
        )


def _test_rows(data: DataModule, numbers: Sequence[int]) -> dict[str, Any]:
    """Return the test images with these numbers, by reading the batches up to the last of them."""
    if not numbers:
        return {}
    batches, total = test_batches(data), len(data.examples("test"))
    wrong = next((number for number in numbers if not 0 <= number < total), None)
    if wrong is not None:
        raise UserError(f"{wrong}: no such file, and no such test image: these are 0 .. {total - 1}")
    found: dict[int, dict[str, Tensor]] = {}
    first = 0
    for batch in batches:
        here = [number for number in numbers if first <= number < first + len(batch["x"])]
        found |= {number: {name: values[number - first] for name, values in batch.items()} for number in here}
        first += len(batch["x"])
        if first > max(numbers):
            break
    return {name: torch.stack([found[number][name] for number in numbers]) for name in found[numbers[0]]}


def _no_test_images(data: DataModule) -> UserError:
    return UserError(f"{type(data).__name__} has no test images, and the picture needs some")
