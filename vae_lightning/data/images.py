"""A folder of your own images, of any size and kind, as one data set."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_lightning.data.base import SPLITS, CachedImages, Source, Split
from vae_lightning.data.folders import (
    Classes,
    Parts,
    Splits,
    check_options,
    classes_of,
    divide,
    name_of_cache,
    split_folders,
)
from vae_lightning.runs.machine import num_cores
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.storage.cache import BrokenImagesError, Contents, fill_from, read_header
from vae_lightning.storage.decode import FILTER, IMAGE_SUFFIXES, Fit, decode
from vae_lightning.storage.examples import Images
from vae_lightning.storage.files import Listing, MissingFileError, list_folder, no_folder, read_file
from vae_lightning.storage.progress import Progress
from vae_lightning.types import UserError

# fmt: off
_NO_IMAGES = frozenset({
    ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".npy", ".npz", ".py", ".tsv", ".txt", ".xml",
    ".yaml", ".yml",
})
# fmt: on
"""Endings of files that are not images: labels, notes, files that a file manager writes."""


class ImageFolder(CachedImages):
    """The images below `data_dir`, of any size and kind, as `channels` x `height` x `width`.

    Use it to train on images of your own.

    Folders of `data_dir` named `train`, `val` and `test` (or `training`, `valid`, `testing`) are the splits. A hash of
    the paths draws a missing split from `train`, or all splits from all images; the draw is the same for every seed and
    machine. If all images lie in folders of classes, `label` is the index of the class in `class_names`.

    Args:
        data_dir: The folder of the images.
        height: Height of the images in the batch.
        width: Width of the images in the batch.
        channels: 1 (grey), 3 (RGB) or 4 (RGB with transparency).
        fit: How an image of another aspect ratio is fitted: crop (keep the middle), pad (black borders) or stretch.
        val_fraction: Share of the images for validation, if there is no folder of validation images.
        test_fraction: Share of the images for testing, if there is no folder of test images.
        splits: auto refuses folder names with two meanings; folders takes folders with names of splits as splits and
            leaves out images beside them; fractions takes no folder as a split.
        grey_bits: Number of bits that 16-bit grey images use, 9 to 16; 12 if white is 4,095.
        skip_broken: Leave out images that cannot be read; otherwise they are an error before training starts.
        cache_dir: The folder of the caches, which hold the decoded images.
        kwargs: Arguments of `CachedImages`.

    Raises:
        UserError: if an argument is outside its range.
    """

    def __init__(
        self,
        data_dir: str = "data/images",
        height: int = 64,
        width: int = 64,
        channels: int = 3,
        fit: Fit = "crop",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        splits: Splits = "auto",
        grey_bits: int = 16,
        skip_broken: bool = False,
        cache_dir: str = "data/cache",
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, cache_dir=cache_dir, **kwargs)
        check_options("ImageFolder", (channels, height, width), fit, (val_fraction, test_fraction), splits)
        if not 9 <= grey_bits <= 16:
            raise UserError(f"ImageFolder: grey_bits is {grey_bits}; it must be 9 to 16")
        self.image_shape = (channels, height, width)
        self.fit, self.skip_broken, self.grey_bits = fit, skip_broken, grey_bits
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.splits: Splits = splits

    @property
    def cache_folder(self) -> Path:
        return Path(self.cache_dir) / name_of_cache(self.data_dir, self.image_shape, self.fit)

    def settings(self) -> dict[str, Any]:
        return {
            "fit": self.fit,
            "filter": FILTER,
            "fractions": [self.val_fraction, self.test_fraction],
            "splits": self.splits,
            "grey_bits": self.grey_bits,
            "skip_broken": self.skip_broken,
        }

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, read from the cache; `label` holds indices into them. Empty if there are no labels."""
        header = read_header(self.cache_folder)
        return () if header is None else tuple(header.source.get("classes", ()))

    def prepare_data(self) -> None:
        """Make the cache if it is missing or stale, and print a warning if the pixels look wrong."""
        try:
            super().prepare_data()
        except BrokenImagesError as error:
            skip = "" if self.skip_broken else ", or leave them out by --data.skip_broken=true"
            raise BrokenImagesError(error.problems, f"delete or replace such files{skip}") from error
        for warning in _pixel_warnings(self.load("train")) if self.prints_notes else []:
            print(f"{self.data_dir}: {warning}", flush=True)
        self.prints_notes = False  # a training that ends with a test calls this again

    def source(self) -> Source:
        files, listing, others = self._listing()
        notes = _unread(others)
        if self.skip_broken:
            files, broken = self._without_broken(files, listing)
            notes += broken
        folder_by_split = split_folders(self.data_dir, [self._relative(path) for path in files], self.splits)
        files_by_split, split_note = self._split(files, folder_by_split)
        notes.append(split_note)
        files = [path for split in SPLITS for path in files_by_split[split]]
        names, labels, note = self._classes(files, folder_by_split)
        notes += [note] if note else []
        splits: dict[str, int] = {split: len(files_by_split[split]) for split in SPLITS}
        read = lambda: Contents(fill_from(files, self._decode), labels)  # noqa: E731
        lines = [f"{self.data_dir}: {line}" for line in notes]
        return Source({"listing": listing, "classes": names}, splits, read, files, lines)

    def _listing(self) -> Listing:
        """The images of the folder.

        Raises:
            MissingFileError: if there is no such folder, or it has no images.
        """
        folder, remedy = Path(self.data_dir), "point --data.data_dir (make train DATA_DIR=...) at a folder of images"
        if not folder.is_dir():
            raise MissingFileError(f"{no_folder(folder)}; {remedy}")
        listing = list_folder(folder, IMAGE_SUFFIXES)
        if not listing.files:
            endings, unread = " ".join(sorted(IMAGE_SUFFIXES)), "".join(f"; {line}" for line in _unread(listing.others))
            raise MissingFileError(f"{folder}: no images there (files that end in {endings}){unread}; {remedy}")
        return listing

    def _classes(self, files: Sequence[Path], folder_by_split: Mapping[Split, str]) -> Classes:
        return classes_of([self._relative(path) for path in files], folder_by_split)

    def _decode(self, path: Path) -> np.ndarray:
        return self.decode_file(read_file(path), str(path))

    def decode_file(self, contents: bytes, name: str) -> np.ndarray:
        return decode(contents, name, self.image_shape, self.fit, self.grey_bits)

    def _split(
        self, files: Sequence[Path], folder_by_split: Mapping[Split, str]
    ) -> tuple[dict[Split, list[Path]], str]:
        """The files of each split, and a line about them.

        A split without a folder gets a fraction of train's folder, or of all files.
        """
        by_parts = {self._relative(path): path for path in files}
        fractions: dict[Split, float] = {"val": self.val_fraction, "test": self.test_fraction}
        parts, note = divide(self.data_dir, list(by_parts), folder_by_split, fractions)
        return {split: [by_parts[one] for one in several] for split, several in parts.items()}, note

    def _relative(self, path: Path) -> Parts:
        return path.relative_to(self.data_dir).parts

    def _name(self, path: Path) -> str:
        return "/".join(self._relative(path))

    def _without_broken(self, files: list[Path], listing: str) -> tuple[list[Path], list[str]]:
        """The files that can be decoded, and a line on the others.

        A note beside the cache keeps the result while the folder does not change.
        """
        note = self.cache_folder.with_name(f"{self.cache_folder.name}.skipped.json")
        try:
            known = json.loads(note.read_text())
            broken = set(known["broken"]) if known["listing"] == listing else None
        except (OSError, ValueError, TypeError, KeyError):
            broken = None
        if broken is None:
            broken = self._find_broken(files)
            _write_note(note, json.dumps({"listing": listing, "broken": sorted(broken)}))
        one = len(broken) == 1
        fault = "1 image that cannot be read is" if one else f"{len(broken)} images that cannot be read are"
        lines = [f"{fault} left out; {note} lists {'it' if one else 'them'}"] if broken else []
        return [path for path in files if self._name(path) not in broken], lines

    def _find_broken(self, files: list[Path]) -> set[str]:
        def is_broken(path: Path) -> bool:
            try:
                self._decode(path)
            except UserError:
                return True
            return False

        with ThreadPoolExecutor(num_cores()) as pool, Progress("looking for broken images", len(files)) as progress:
            names = set()
            for path, broken in zip(files, pool.map(is_broken, files), strict=True):
                progress.advance(1)
                names |= {self._name(path)} if broken else set()
            return names


def _unread(others: Counter[str]) -> list[str]:
    """A line on files that may be images but are not read, such as a phone's .heic; none if there are none."""
    counts = {suffix or "none": count for suffix, count in others.items() if suffix not in _NO_IMAGES}
    if not counts:
        return []
    order = sorted(counts, key=lambda suffix: (-counts[suffix], suffix))
    endings = ", ".join([f"{suffix} {counts[suffix]}" for suffix in order[:5]] + ["..."] * (len(order) > 5))
    return [f"{sum(counts.values())} files not read because of their endings ({endings})"]


def _pixel_warnings(images: Images, most: int = 256) -> list[str]:
    """A line for each sign that the pixels are not as meant, in at most `most` images spread over the set."""
    index = torch.linspace(0, len(images.pixels) - 1, min(most, len(images.pixels))).long()
    pixels = images.pixels[index].flatten(1)
    brightest, warnings = int(pixels.max()), []
    if bool((pixels == pixels[:, :1]).all()):
        warnings.append(
            f"each of {len(index)} checked images has one value everywhere (the brightest: {brightest}), so there is "
            "nothing to learn; transparent images are laid on black unless --data.channels=4"
        )
    elif brightest <= 64:
        warnings.append(
            f"the brightest pixel of {len(index)} checked images is {brightest} of 255; if the files hold 12 bits in "
            "16 (white is 4,095), pass --data.grey_bits=12 (similarly for 10 and 14 bits)"
        )
    return warnings


def _write_note(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another folder with --data.cache_dir"
        ) from error
