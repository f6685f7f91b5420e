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

from vae_lightning.cores import num_cores
from vae_lightning.data.base import SPLITS, CachedImages, Resident, Source, Split
from vae_lightning.data.cache import Contents, fill_from
from vae_lightning.data.decode import FILTER, IMAGE_SUFFIXES, Fit, decode
from vae_lightning.data.files import Listing, MissingFileError, list_folder, read_file, write_whole
from vae_lightning.data.progress import Progress
from vae_lightning.data.transforms import Binarisation
from vae_lightning.types import UserError

_OWN_SPLITS: Mapping[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
# fmt: off
_NO_IMAGES = frozenset({
    ".csv", ".db", ".html", ".ini", ".json", ".jsonl", ".log", ".md", ".npy", ".npz", ".py", ".tsv", ".txt", ".xml",
    ".yaml", ".yml",
})
# fmt: on
"""The endings of what lies beside images: labels, notes, what a file manager leaves."""


class ImageFolder(CachedImages):
    """The images below `data_dir`, of any size and kind, as `channels` x `height` x `width`.

    `fit`: how another aspect is met: `crop` (the middle), `pad` (black borders) or `stretch`. `channels`: 1, 3 or 4.
    Where `data_dir` has folders `train`, `val` and `test`, in any case of letters, these are the splits; `val` or
    `test` without a folder is `val_fraction` or `test_fraction` of the images in `train`. Without any such folder these
    are fractions of all. What is taken is decided by a hash of the paths: the same for every seed and machine.
    Where all images lie in folders of classes, `label` is the number of the class, in the order of the names.
    An image that cannot be read is named before training starts; `skip_broken` leaves such images out.
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
        skip_broken: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        binarisation: Binarisation = "none",
        flip: bool = False,
        dequantise: bool = False,
        resident: Resident = "auto",
        cache_dir: str = "data/cache",
        seed: int = 0,
    ) -> None:
        super().__init__(
            data_dir, batch_size, eval_batch_size, binarisation, flip, dequantise, resident, seed, cache_dir=cache_dir
        )
        if channels not in (1, 3, 4) or height < 1 or width < 1:
            raise UserError(f"ImageFolder: {channels} x {height} x {width}: channels are 1, 3 or 4, sizes at least 1")
        if fit not in ("crop", "pad", "stretch"):
            raise UserError(f"ImageFolder: fit is {fit!r}; choose crop, pad or stretch")
        if not (0 < val_fraction < 1 and 0 < test_fraction < 1 and val_fraction + test_fraction < 1):
            raise UserError(
                f"ImageFolder: fractions {val_fraction} and {test_fraction}: each above 0, below 1 together"
            )
        self.image_shape = (channels, height, width)
        self.fit, self.skip_broken = fit, skip_broken
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    @property
    def cache_folder(self) -> Path:
        channels, height, width = self.image_shape
        place = Path(self.data_dir).resolve()
        name = f"{place.name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
        return Path(self.cache_dir) / f"{name}-{channels}x{height}x{width}-{self.fit}"

    def settings(self) -> dict[str, Any]:
        fractions = [self.val_fraction, self.test_fraction]
        return {"fit": self.fit, "filter": FILTER, "fractions": fractions, "skip_broken": self.skip_broken}

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
        parts = self._split(files)
        empty = [split for split, part in zip(SPLITS, parts, strict=True) if not part]
        if empty:
            raise UserError(f"{folder}: {len(files)} images leave none for {', '.join(empty)}; it takes more of them")
        files = [path for part in parts for path in part]
        splits: dict[str, int] = {split: len(part) for split, part in zip(SPLITS, parts, strict=True)}
        read = lambda: Contents(fill_from(files, self._decode), self._labels(files))  # noqa: E731
        return Source({"listing": listing}, splits, read, files)

    def _decode(self, path: Path) -> np.ndarray:
        return decode(read_file(path), str(path), self.image_shape, self.fit)

    def _split(self, files: Sequence[Path]) -> list[list[Path]]:
        """Train, val and test: the folders of these names; what has none is taken from train, or else from all."""
        parts = {split: [path for path in files if self._top(path) in names] for split, names in _OWN_SPLITS.items()}
        own = [split for split in SPLITS if parts[split]]
        if own and "train" not in own:
            raise UserError(
                f"{self.data_dir}: a folder of images for {' and '.join(own)}, none for train; name one of them train"
            )
        fractions: dict[Split, float] = {"val": self.val_fraction, "test": self.test_fraction}
        taken = {split: fraction for split, fraction in fractions.items() if split not in own}
        self._tell(own, taken, len(files) - sum(map(len, parts.values())))
        whole = parts["train"] if own else files
        rest = sorted(whole, key=lambda path: hashlib.sha256(os.fsencode(self._relative(path))).digest())
        for split, fraction in taken.items():
            count = max(1, round(len(whole) * fraction))
            parts[split], rest = sorted(rest[:count]), rest[count:]
        return [sorted(rest), parts["val"], parts["test"]]

    def _tell(self, own: Sequence[Split], taken: Mapping[Split, float], num_outside: int) -> None:
        """Which split holds, in one line: nobody should have to guess what was trained on."""
        origin = "its folder train" if own else "all images"
        said = [f"{', '.join(own)} by its own folders"] if own else []
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

    def _labels(self, files: Sequence[Path]) -> np.ndarray | None:
        """int64 [N], by the folder that each image lies in; None where some lie in none, or all in one."""
        splits = {name for names in _OWN_SPLITS.values() for name in names}
        folders = [self._relative(path).parts[:-1] for path in files]
        classes = [parts[1:] if parts[:1] and parts[0].lower() in splits else parts for parts in folders]
        names = sorted({parts[0] for parts in classes if parts})
        if len(names) < 2 or not all(classes):
            return None
        return np.array([names.index(parts[0]) for parts in classes], dtype=np.int64)

    def _top(self, path: Path) -> str:
        """The first folder below `data_dir` that an image lies in, or its own name, in lower case."""
        return self._relative(path).parts[0].lower()

    def _relative(self, path: Path) -> Path:
        return path.relative_to(self.data_dir)

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
        return [path for path in files if str(self._relative(path)) not in broken]

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
                found |= {str(self._relative(path))} if broken else set()
            return found


def _write_note(path: Path, text: str) -> None:
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); choose another place by --data.cache_dir"
        ) from error
