"""Decide whether the folders of an image folder are splits or classes. If names allow both, the user must choose."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from vae_lightning.data.module import SPLITS, Split
from vae_lightning.types import Shape, UserError

Splits: TypeAlias = Literal["auto", "folders", "fractions"]
Parts: TypeAlias = tuple[str, ...]
"""The path of an image below the image folder: the names of the folders, then the name of the file."""

_SPLIT_NAMES: Mapping[Split, frozenset[str]] = {
    "train": frozenset({"train", "training", "trn"}),
    "val": frozenset({"val", "valid", "validation", "dev", "development"}),
    "test": frozenset({"test", "testing", "tst", "eval", "evaluation"}),
}
_SUFFIX = re.compile(r"[ _-]?(set|images|imgs|data|split)$")
_NO_SPLIT = "pass --data.splits=fractions if these folders are not splits"


def check_options(owner: str, shape: Shape, fit: str, fractions: tuple[float, float], splits: str) -> None:
    """Check the options of a data set that is a folder of the user.

    Args:
        owner: The class, for the messages.
        shape: (C, H, W).
        fit: How an image of another aspect ratio is fitted.
        fractions: The shares of val and of test.
        splits: The option `splits`.

    Raises:
        UserError: if one of them is outside its range.
    """
    channels, height, width = shape
    if channels not in (1, 3, 4) or height < 1 or width < 1:
        raise UserError(
            f"{owner}: channels x height x width is {channels} x {height} x {width}; channels must be 1, 3 or "
            "4, height and width at least 1"
        )
    if fit not in ("crop", "pad", "stretch"):
        raise UserError(f"{owner}: fit is {fit!r}; choose crop, pad or stretch")
    val, test = fractions
    if not (0 < val < 1 and 0 < test < 1 and val + test < 1):
        raise UserError(
            f"{owner}: val_fraction is {val} and test_fraction is {test}; each must be above 0, and their sum below 1"
        )
    if splits not in ("auto", "folders", "fractions"):
        raise UserError(f"{owner}: splits is {splits!r}; choose auto, folders or fractions")


def name_of_cache(data_dir: str, shape: Shape, fit: str) -> str:
    """Return the name of the cache of a folder: one for each folder, size and way of fitting.

    Args:
        data_dir: The folder.
        shape: (C, H, W).
        fit: How an image of another aspect ratio is fitted.
    """
    place = Path(data_dir).resolve()
    name = f"{place.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
    return f"{name}-{'x'.join(map(str, shape))}-{fit}"


def split_of(folder: str) -> Split | None:
    """Return the split that a folder of this name usually holds, or None.

    `Training`, `train_images` and `trainset` are `train`.

    Args:
        folder: The name of the folder.
    """
    name = _SUFFIX.sub("", folder.lower())
    return next((split for split, names in _SPLIT_NAMES.items() if name in names), None)


def split_folders(place: str, images: Sequence[Parts], splits: Splits, noun: str = "images") -> dict[Split, str]:
    """Return the folder of each split, by the usual names; empty if no folder is a split.

    Args:
        place: The path of the image folder, for the messages.
        images: The path of each image below the image folder.
        splits: The option `splits` of `ImageFolder`.
        noun: What the paths are of, for the messages.

    Raises:
        UserError: if the names allow two meanings: `train` alone among other folders may be a class, two folders may
            both be `val`, and splits may lie within another folder.
    """
    if splits == "fractions":
        return {}
    tops = sorted({parts[0] for parts in images if parts[1:]})
    candidates = {split: [top for top in tops if split_of(top) == split] for split in SPLITS}
    if same_split := next((names for names in candidates.values() if names[1:]), None):
        raise UserError(f"{place}: {join_names(same_split)} are names of one split; rename all but one, or {_NO_SPLIT}")
    folder_by_split = {split: names[0] for split, names in candidates.items() if names}
    others = [top for top in tops if top not in folder_by_split.values()]
    if folder_by_split and "train" not in folder_by_split:
        raise UserError(
            f"{place}: a folder of {noun} for {' and '.join(folder_by_split)}, none for train; rename the folder of "
            f"training {noun} to train, or {_NO_SPLIT}"
        )
    if len(folder_by_split) == 1 and others and splits == "auto":
        raise UserError(
            f"{place}: {folder_by_split['train']} may be the training set or a class, because {join_names(others)} lie "
            "beside it; pass --data.splits=folders (train on that folder alone) or --data.splits=fractions (each "
            "folder is a class)"
        )
    if not folder_by_split and splits == "folders":
        raise UserError(f"{place}: no folder of {noun} there is named train; {_NO_SPLIT}")
    if not folder_by_split:
        _refuse_splits_within(place, images, noun)
    return folder_by_split


def _refuse_splits_within(place: str, images: Sequence[Parts], noun: str) -> None:
    """Raise if folders a level deeper are named `train` and another split, because their contents would be mixed."""
    within = sorted({parts[:2] for parts in images if parts[2:] and split_of(parts[1])})
    inner_splits = {split_of(name) for _, name in within}
    if "train" in inner_splits and len(inner_splits) > 1:
        folders = join_names(["/".join(parts) for parts in within])
        raise UserError(
            f"{place}: {folders} are named like splits, but lie within another folder; point --data.data_dir at the "
            f"folder that holds train, or {_NO_SPLIT} (all {noun} are mixed)"
        )


def divide(
    place: str,
    paths: Sequence[Parts],
    folder_by_split: Mapping[Split, str],
    fractions: Mapping[Split, float],
    noun: str = "images",
) -> tuple[dict[Split, list[Parts]], str]:
    """Return the paths of each split, and a line that says which these are, so that nobody has to guess.

    A split without a folder gets a fraction of train's folder, or of all paths, by a hash of the paths.

    Args:
        place: The path of the folder, for the message of an error.
        paths: The paths below the folder.
        folder_by_split: What `split_folders` returned.
        fractions: The shares of `val` and `test`, for those that have no folder.
        noun: What the paths are of, for the line.

    Raises:
        UserError: if a split gets nothing.
    """
    parts: dict[Split, list[Parts]] = {
        split: [path for path in paths if path[0] == folder_by_split.get(split)] for split in SPLITS
    }
    drawn = {split: fraction for split, fraction in fractions.items() if split not in folder_by_split}
    note = _split_note(folder_by_split, drawn, len(paths) - sum(map(len, parts.values())), noun)
    whole = parts["train"] if folder_by_split else paths
    rest = sorted(whole, key=lambda path: hashlib.sha256(os.fsencode("/".join(path))).digest())
    for split, fraction in drawn.items():
        count = max(1, round(len(whole) * fraction))
        parts[split], rest = sorted(rest[:count]), rest[count:]
    parts["train"] = sorted(rest)
    if empty := [split for split in SPLITS if not parts[split]]:
        short = f"the number of {noun} is {len(paths)}, which leaves none for {', '.join(empty)}"
        raise UserError(f"{place}: {short}; add {noun}")
    return parts, note


def _split_note(folder_by_split: Mapping[Split, str], drawn: Mapping[Split, float], num_left: int, noun: str) -> str:
    origin = f"the folder {printable(folder_by_split['train'])}" if folder_by_split else f"all {noun}"
    facts = [f"{split} is the folder {printable(top)}" for split, top in folder_by_split.items()]
    facts += [f"{split} is {fraction:g} of {origin}" for split, fraction in drawn.items()]
    facts += ["drawn by a hash of the paths, the same for every seed"] if drawn else []
    facts += [f"{noun} outside of these folders, left out: {num_left}"] if folder_by_split and num_left else []
    return f"split: {'; '.join(facts)}"


class Classes(NamedTuple):
    """The classes of a set of images.

    Args:
        names: The names of the classes in order; empty if there are no labels.
        labels: Index of each image's class in `names`, int64 [N]; None if there are no labels.
        note: A line for the user about the classes, or about why there are none; None if there is nothing to say.
    """

    names: list[str]
    labels: np.ndarray | None
    note: str | None


def classes_of(images: Sequence[Parts], folder_by_split: Mapping[Split, str]) -> Classes:
    """Return the classes: the names of the folders that hold images, below the folder of a split if there is one.

    Args:
        images: The path of each image below the image folder.
        folder_by_split: The folder of each split, as `split_folders` returns it.
    """
    folders = _class_folders(images, folder_by_split)
    counts = Counter(name for name in folders if name is not None)
    names = sorted(counts)
    if not names:
        return Classes([], None, None)
    if missing := folders.count(None):
        example = printable("/".join(images[folders.index(None)]))
        reason = f"{missing} of {len(images)} images are not in the folder of a class ({example})"
        return Classes([], None, f"no labels, because {reason}; move these images into a folder, or remove them")
    if len(names) < 2:
        return Classes([], None, f"no labels, because all images lie in one folder, {printable(names[0])}")
    number = {name: i for i, name in enumerate(names)}
    table = join_names([f"{number[name]} = {name} ({counts[name]:,})" for name in names], 12)
    note = f"label: {len(names)} classes, named by the folders: {table}"
    if folder_by_split:
        trained = {name for name, parts in zip(folders, images, strict=True) if parts[0] == folder_by_split["train"]}
        unseen = [name for name in names if name not in trained]
        note += f"; no training image of {join_names(unseen)}" if unseen else ""
    return Classes(names, np.array([number[name] for name in folders if name is not None], dtype=np.int64), note)


def _class_folders(images: Sequence[Parts], folder_by_split: Mapping[Split, str]) -> list[str | None]:
    """The first folder of each image below the folder of its split.

    Archives often unpack to `train/train/cat`; the second `train` is not a class.
    """
    depths = {}
    for split, top in folder_by_split.items():
        inner = {parts[1] if parts[2:] else None for parts in images if parts[0] == top}
        repeated = all(name and split_of(name) == split for name in inner)
        depths[top] = 2 if repeated else 1
    starts = [depths.get(parts[0], 0) for parts in images]
    return [parts[start] if len(parts) > start + 1 else None for parts, start in zip(images, starts, strict=True)]


def join_names(names: Collection[str], most: int = 5) -> str:
    """Return the first names as text, and the number of the other names.

    Args:
        names: The names, in order.
        most: The largest number of names in the text.
    """
    first = ", ".join(printable(name) for name in list(names)[:most])
    return f"{first} and {len(names) - most:,} more" if len(names) > most else first


def printable(name: str) -> str:
    """Return a file name as text that every terminal can print; bytes that are not UTF-8 become question marks.

    Args:
        name: The name as the file system gives it.
    """
    return name.encode(errors="replace").decode()
