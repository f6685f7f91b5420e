"""Decide whether the folders of an image folder are splits or classes. If names allow both, the user must choose."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from vae_lightning.data.base import SPLITS, Split
from vae_lightning.types import UserError

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


def split_of(folder: str) -> Split | None:
    """Return the split that a folder of this name usually holds, or None.

    `Training`, `train_images` and `trainset` are `train`.

    Args:
        folder: The name of the folder.
    """
    name = _SUFFIX.sub("", folder.lower())
    return next((split for split, names in _SPLIT_NAMES.items() if name in names), None)


def split_folders(place: str, images: Sequence[Parts], splits: Splits) -> dict[Split, str]:
    """Return the folder of each split, by the usual names; empty if no folder is a split.

    Args:
        place: The path of the image folder, for the messages.
        images: The path of each image below the image folder.
        splits: The option `splits` of `ImageFolder`.

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
            f"{place}: a folder of images for {' and '.join(folder_by_split)}, none for train; rename the folder of "
            f"training images to train, or {_NO_SPLIT}"
        )
    if len(folder_by_split) == 1 and others and splits == "auto":
        raise UserError(
            f"{place}: {folder_by_split['train']} may be the training set or a class, because {join_names(others)} lie "
            "beside it; pass --data.splits=folders (train on that folder alone) or --data.splits=fractions (each "
            "folder is a class)"
        )
    if not folder_by_split and splits == "folders":
        raise UserError(f"{place}: no folder of images there is named train; {_NO_SPLIT}")
    if not folder_by_split:
        _refuse_splits_within(place, images)
    return folder_by_split


def _refuse_splits_within(place: str, images: Sequence[Parts]) -> None:
    """Raise if folders a level deeper are named `train` and another split, because their images would be mixed."""
    within = sorted({parts[:2] for parts in images if parts[2:] and split_of(parts[1])})
    inner_splits = {split_of(name) for _, name in within}
    if "train" in inner_splits and len(inner_splits) > 1:
        folders = join_names(["/".join(parts) for parts in within])
        raise UserError(
            f"{place}: {folders} are named like splits, but lie within another folder; point --data.data_dir at the "
            f"folder that holds train, or {_NO_SPLIT} (all images are mixed)"
        )


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
