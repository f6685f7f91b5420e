"""A folder of your own images, of any size and kind, as one data set."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vae_lightning.data.base import SPLITS, CachedImages, Source, Split
from vae_lightning.data.folders import Parts, Splits, classes_of, shown, split_folders
from vae_lightning.runs.machine import num_cores
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.storage.cache import Contents, fill_from, read_header
from vae_lightning.storage.decode import FILTER, IMAGE_SUFFIXES, Fit, decode
from vae_lightning.storage.files import Listing, MissingFileError, list_folder, read_file
from vae_lightning.storage.loader import Images
from vae_lightning.storage.progress import Progress
from vae_lightning.types import UserError

# fmt: off
_NO_IMAGES = frozenset({
    ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".npy", ".npz", ".py", ".tsv", ".txt", ".xml",
    ".yaml", ".yml",
})
# fmt: on
"""The endings of files that are no images: labels, notes, a file manager's own files."""


class ImageFolder(CachedImages):
    """The images below `data_dir`, of any size and kind, as `channels` x `height` x `width`.

    Folders of `data_dir` named `train`, `val` and `test` (or `training`, `valid`, `testing`) are the splits. A hash of
    the paths draws a missing split from `train`, or all splits from all images: the same draw for every seed and
    machine. If all images lie in folders of classes, `label` is the number of the class, in the order of `class_names`.

    Args:
        data_dir: The folder of the images.
        height: Height of the images in the batch.
        width: Width of the images in the batch.
        channels: 1 (grey), 3 (RGB) or 4 (RGB with transparency).
        fit: What happens to another aspect ratio: crop (keep the middle), pad (black borders) or stretch.
        val_fraction: Share of the images for validation, if there is no folder for it.
        test_fraction: Share of the images for testing, if there is no folder for it.
        splits: auto refuses folder names with two meanings; folders takes folders of these names as splits and leaves
            out images beside them; fractions takes no folder as a split.
        grey_bits: The bits that 16-bit grey images use: 12 if white is 4,095.
        skip_broken: Leave out images that cannot be read, which otherwise are named before training starts.
        cache_dir: The folder of the decoded images.
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
        if channels not in (1, 3, 4) or height < 1 or width < 1:
            raise UserError(f"ImageFolder: {channels} x {height} x {width}: channels are 1, 3 or 4, sizes at least 1")
        if fit not in ("crop", "pad", "stretch"):
            raise UserError(f"ImageFolder: fit is {fit!r}; choose crop, pad or stretch")
        if not (0 < val_fraction < 1 and 0 < test_fraction < 1 and val_fraction + test_fraction < 1):
            raise UserError(
                f"ImageFolder: fractions {val_fraction} and {test_fraction}: each above 0, below 1 together"
            )
        if splits not in ("auto", "folders", "fractions"):
            raise UserError(f"ImageFolder: splits is {splits!r}; choose auto, folders or fractions")
        if not 9 <= grey_bits <= 16:
            raise UserError(f"ImageFolder: grey_bits is {grey_bits}; it must be 9 to 16")
        self.image_shape = (channels, height, width)
        self.fit, self.skip_broken, self.grey_bits = fit, skip_broken, grey_bits
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self.splits: Splits = splits

    @property
    def cache_folder(self) -> Path:
        channels, height, width = self.image_shape
        place = Path(self.data_dir).resolve()
        name = f"{place.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
        return Path(self.cache_dir) / f"{name}-{channels}x{height}x{width}-{self.fit}"

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
        """The names of the classes that `label` counts, from the cache; none where the images have no labels."""
        header = read_header(self.cache_folder)
        return () if header is None else tuple(header.source.get("classes", ()))

    def prepare_data(self) -> None:
        super().prepare_data()
        for doubt in _doubts(self.load("train")):
            print(f"{self.data_dir}: {doubt}", flush=True)

    def source(self) -> Source:
        folder = Path(self.data_dir)
        files, listing, others = list_folder(folder, IMAGE_SUFFIXES) if folder.is_dir() else Listing([], "", Counter())
        self._tell_others(others)
        if not files:
            endings = " ".join(sorted(IMAGE_SUFFIXES))
            raise MissingFileError(
                f"{folder}: no images there (files that end in {endings}); point --data.data_dir "
                "(make train DATA_DIR=...) at a folder of them"
            )
        if self.skip_broken:
            files = self._without_broken(files, listing)
        own = split_folders(self.data_dir, [self._relative(path) for path in files], self.splits)
        parts = self._split(files, own)
        empty = [split for split, part in zip(SPLITS, parts, strict=True) if not part]
        if empty:
            raise UserError(f"{folder}: {len(files)} images leave none for {', '.join(empty)}; it takes more of them")
        files = [path for part in parts for path in part]
        names, labels, note = classes_of([self._relative(path) for path in files], own)
        if note:
            print(f"{self.data_dir}: {note}", flush=True)
        splits: dict[str, int] = {split: len(part) for split, part in zip(SPLITS, parts, strict=True)}
        read = lambda: Contents(fill_from(files, self._decode), labels)  # noqa: E731
        return Source({"listing": listing, "classes": names}, splits, read, files)

    def _decode(self, path: Path) -> np.ndarray:
        return decode(read_file(path), str(path), self.image_shape, self.fit, self.grey_bits)

    def _split(self, files: Sequence[Path], own: Mapping[Split, str]) -> list[list[Path]]:
        """Train, val and test: the folders of `own`; what has none is taken from train, or else from all."""
        parts = {split: [path for path in files if self._relative(path)[0] == own.get(split)] for split in SPLITS}
        fractions: dict[Split, float] = {"val": self.val_fraction, "test": self.test_fraction}
        taken = {split: fraction for split, fraction in fractions.items() if split not in own}
        self._tell(own, taken, len(files) - sum(map(len, parts.values())))
        whole = parts["train"] if own else files
        rest = sorted(whole, key=lambda path: hashlib.sha256(os.fsencode(self._name(path))).digest())
        for split, fraction in taken.items():
            count = max(1, round(len(whole) * fraction))
            parts[split], rest = sorted(rest[:count]), rest[count:]
        return [sorted(rest), parts["val"], parts["test"]]

    def _tell(self, own: Mapping[Split, str], taken: Mapping[Split, float], num_outside: int) -> None:
        """Which split holds, in one line: nobody should have to guess what was trained on."""
        origin = f"its folder {shown(own['train'])}" if own else "all images"
        said = [f"{split} is the folder {shown(top)}" for split, top in own.items()]
        said += [f"{split} {fraction:g} of {origin}" for split, fraction in taken.items()]
        said += ["taken by a hash of the paths, whatever the seed"] if taken else []
        said += [f"images outside of these folders, left out: {num_outside}"] if own and num_outside else []
        print(f"{self.data_dir}: split: {'; '.join(said)}", flush=True)

    def _tell_others(self, others: Counter[str]) -> None:
        """What may be images too, and is left out: a phone's .heic, say."""
        counts = {suffix or "none": count for suffix, count in others.items() if suffix not in _NO_IMAGES}
        if counts:
            kinds = [f"{suffix} {counts[suffix]}" for suffix in sorted(counts, key=lambda one: (-counts[one], one))]
            shown = ", ".join(kinds[:5] + ["..."] * (len(kinds) > 5))
            print(f"{self.data_dir}: not read, by their endings: {sum(counts.values())} files ({shown})", flush=True)

    def _relative(self, path: Path) -> Parts:
        return path.relative_to(self.data_dir).parts

    def _name(self, path: Path) -> str:
        return "/".join(self._relative(path))

    def _without_broken(self, files: list[Path], listing: str) -> list[Path]:
        """The files that can be decoded, found once for each state of the folder."""
        note = self.cache_folder.with_name(f"{self.cache_folder.name}.skipped.json")
        try:
            known = json.loads(note.read_text())
            broken = set(known["broken"]) if known["listing"] == listing else None
        except (OSError, ValueError, TypeError, KeyError):
            broken = None
        if broken is None:
            broken = self._find_broken(files)
            _write_note(note, json.dumps({"listing": listing, "broken": sorted(broken)}))
        if broken:
            print(
                f"{self.data_dir}: {len(broken)} images that cannot be read are left out ({note} lists them)",
                flush=True,
            )
        return [path for path in files if self._name(path) not in broken]

    def _find_broken(self, files: list[Path]) -> set[str]:
        def is_broken(path: Path) -> bool:
            try:
                self._decode(path)
            except UserError:
                return True
            return False

        with ThreadPoolExecutor(num_cores()) as pool, Progress("looking for broken images", len(files)) as progress:
            found = set()
            for path, broken in zip(files, pool.map(is_broken, files), strict=True):
                progress.advance(1)
                found |= {self._name(path)} if broken else set()
            return found


def _doubts(images: Images, most: int = 256) -> list[str]:
    """What of the pixels is probably not meant, by images that are spread over the set; a line for each."""
    index = torch.linspace(0, len(images.pixels) - 1, min(most, len(images.pixels))).long()
    pixels = images.pixels[index].flatten(1)
    brightest, said = int(pixels.max()), []
    looked = f"of {len(index)} images that were looked at"
    if bool((pixels == pixels[:, :1]).all()):
        said.append(
            f"each {looked} has one value everywhere (the brightest: {brightest}), so there is nothing to learn; "
            "transparent images are laid on black unless --data.channels=4"
        )
    elif brightest <= 64:
        said.append(
            f"the brightest pixel {looked} is {brightest} of 255; if the files hold 12 bits in 16 (white is "
            "4,095), say --data.grey_bits=12 (10 and 14 likewise)"
        )
    return said


def _write_note(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another place by --data.cache_dir"
        ) from error
