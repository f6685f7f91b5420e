"""What the folders of an image folder mean: splits or classes. Where the names leave that open, the user is asked."""

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
"""The path of an image below the image folder, folder by folder, its own name last."""

_SPLIT_NAMES: Mapping[Split, frozenset[str]] = {
    "train": frozenset({"train", "training", "trn"}),
    "val": frozenset({"val", "valid", "validation", "dev", "development"}),
    "test": frozenset({"test", "testing", "tst", "eval", "evaluation"}),
}
_SUFFIX = re.compile(r"[ _-]?(set|images|imgs|data|split)$")
_NO_SPLIT = "say --data.splits=fractions if these folders are no splits"


def split_of(folder: str) -> Split | None:
    """The split that a folder of this name usually holds: `Training`, `train_images` and `trainset` are `train`."""
    name = _SUFFIX.sub("", folder.lower())
    return next((split for split, names in _SPLIT_NAMES.items() if name in names), None)


def split_folders(place: str, images: Sequence[Parts], splits: Splits) -> dict[Split, str]:
    """The folder of each split by the usual names; empty where no folder is a split.

    Raises UserError where the names allow two meanings: `train` alone among other folders may be a class, two folders
    may both be `val`, splits may lie within another folder.
    """
    if splits == "fractions":
        return {}
    tops = sorted({parts[0] for parts in images if parts[1:]})
    found = {split: [top for top in tops if split_of(top) == split] for split in SPLITS}
    if twice := next((names for names in found.values() if names[1:]), None):
        raise UserError(f"{place}: {listed(twice)} are names of one split; rename all but one, or {_NO_SPLIT}")
    own = {split: names[0] for split, names in found.items() if names}
    others = [top for top in tops if top not in own.values()]
    if own and "train" not in own:
        held = " and ".join(own)
        raise UserError(
            f"{place}: a folder of images for {held}, none for train; name one of them train, or {_NO_SPLIT}"
        )
    if len(own) == 1 and others and splits == "auto":
        raise UserError(
            f"{place}: {own['train']} may be the training set or a class, because {listed(others)} lie beside it; say "
            "--data.splits=folders (train on that folder alone) or --data.splits=fractions (each folder is a class)"
        )
    if not own and splits == "folders":
        raise UserError(f"{place}: no folder of images there is named train; {_NO_SPLIT}")
    if not own:
        _refuse_splits_within(place, images)
    return own


def _refuse_splits_within(place: str, images: Sequence[Parts]) -> None:
    """Raise where training images and others lie in folders of these names a level deeper: they would be mixed."""
    within = sorted({parts[:2] for parts in images if parts[2:] and split_of(parts[1])})
    found = {split_of(name) for _, name in within}
    if "train" in found and len(found) > 1:
        shown = listed(["/".join(parts) for parts in within])
        raise UserError(
            f"{place}: {shown} are named as splits, but lie within another folder; point --data.data_dir at the folder "
            f"that holds train, or {_NO_SPLIT} (all images are mixed)"
        )


class Classes(NamedTuple):
    """`names` in order; `labels` int64 [N] counts in them, None where the images have none; `note`: what to say."""

    names: list[str]
    labels: np.ndarray | None
    note: str | None


def classes_of(images: Sequence[Parts], own: Mapping[Split, str]) -> Classes:
    """The classes: names of the folders that hold images, below the folder of a split where splits have folders."""
    folders = _class_folders(images, own)
    counts = Counter(name for name in folders if name is not None)
    names = sorted(counts)
    if not names:
        return Classes([], None, None)
    if missing := folders.count(None):
        example = shown("/".join(images[folders.index(None)]))
        where = f"{missing} of {len(images)} images are in no folder of a class ({example})"
        return Classes([], None, f"no labels, because {where}; move them into one, or away")
    if len(names) < 2:
        return Classes([], None, f"no labels, because all images lie in one folder, {shown(names[0])}")
    number = {name: i for i, name in enumerate(names)}
    said = listed([f"{number[name]} = {name} ({counts[name]:,})" for name in names], 12)
    note = f"label: {len(names)} classes by their folders: {said}"
    if own:
        trained = {name for name, parts in zip(folders, images, strict=True) if parts[0] == own["train"]}
        unseen = [name for name in names if name not in trained]
        note += f"; no training image of {listed(unseen)}" if unseen else ""
    return Classes(names, np.array([number[name] for name in folders if name is not None], dtype=np.int64), note)


def _class_folders(images: Sequence[Parts], own: Mapping[Split, str]) -> list[str | None]:
    """The first folder below `own`'s. Archives often unpack to `train/train/cat`: the second `train` is no class."""
    depths = {}
    for split, top in own.items():
        inner = {parts[1] if parts[2:] else None for parts in images if parts[0] == top}
        repeated = all(name and split_of(name) == split for name in inner)
        depths[top] = 2 if repeated else 1
    starts = [depths.get(parts[0], 0) for parts in images]
    return [parts[start] if len(parts) > start + 1 else None for parts, start in zip(images, starts, strict=True)]


def listed(names: Collection[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    first = ", ".join(shown(name) for name in list(names)[:most])
    return f"{first} and {len(names) - most:,} more" if len(names) > most else first


def shown(name: str) -> str:
    """A file's name as text that every terminal takes: it may hold bytes that are no UTF-8."""
    return name.encode(errors="replace").decode()
