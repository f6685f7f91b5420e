"""CelebA: aligned faces, read from the archive or from an extracted folder; missing files are downloaded."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np

from vae_lightning.data.base import SPLITS, CachedImages, Source
from vae_lightning.runs.whole_files import file_digest, one_at_a_time
from vae_lightning.storage.archive import ImageArchive
from vae_lightning.storage.cache import Contents, fill_from
from vae_lightning.storage.decode import CROP_FILTER, decode_crop, image_size
from vae_lightning.storage.files import (
    BYTE_ORDER_MARK,
    MissingFileError,
    check_digest,
    find,
    list_folder,
    read_bytes,
    read_file,
)
from vae_lightning.types import UserError

Crop: TypeAlias = Literal["center148", "box148", "center140", "center108"]

CROPS: Mapping[str, tuple[int, int, int, int]] = {  # left, upper, right, lower
    "center148": (15, 35, 163, 183),  # PyTorch-VAE and most tutorials
    "box148": (15, 40, 163, 188),  # 5 pixels lower: Larsen et al. 2016, NVAE ("CelebA64")
    "center140": (19, 39, 159, 179),  # WAE, RAE and many tables of FID
    "center108": (35, 55, 143, 163),  # after DCGAN
}
_ATTRIBUTE_LISTS = ("list_attr_celeba.txt", "list_attr_celeba.csv")
_SIZE = (178, 218)  # width, height of an aligned image


class CelebA(CachedImages):
    """202,599 faces of 178 x 218 pixels (Liu et al. 2015), cropped and shrunk: 162,770 / 19,867 / 19,962, as published.

    Use it to compare with published results on faces; `ProceduralFaces` needs no download.

    The files lie in `<data_dir>/celeba` or in `data_dir` itself. The images are `img_align_celeba.zip` or the folder
    `img_align_celeba`. `list_eval_partition.txt` gives the split. `list_attr_celeba.txt`, if present, gives 40
    attributes as `label`, uint8 [B, 40]. Both lists may be CSV files, like in Kaggle's copy. Missing files are
    downloaded from the addresses that torchvision uses.

    Args:
        data_dir: The folder that holds `celeba`, or the folder `celeba` itself.
        crop: The square that is cut out of each image. Results with different crops are not comparable.
        size: Height and width of the images in pixels; an antialiased bilinear filter shrinks the square.
        verify: Check digests and counts; turn this off for files in this layout that are not CelebA.
        kwargs: Arguments of `CachedImages`, except `binarisation`.

    Raises:
        UserError: if `crop` is unknown or `size` is below 1.
    """

    location = "celeba"
    digests: ClassVar[Mapping[str, str]] = {  # MD5
        "img_align_celeba.zip": "00d2c5bc6d35e252742224ab0c1e8fcb",
        "list_eval_partition.txt": "d32c9cbf5e040fd4025c592c306e6668",
        "list_attr_celeba.txt": "75e246fa4810816ffd6ee81facbd244c",
    }
    counts: ClassVar[tuple[int, int, int]] = (162_770, 19_867, 19_962)

    def __init__(
        self, data_dir: str = "data", *, crop: Crop = "center148", size: int = 64, verify: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(data_dir=data_dir, binarisation="none", **kwargs)
        if crop not in CROPS:
            raise UserError(f"CelebA: crop is {crop!r}; choose one of {', '.join(CROPS)}")
        if size < 1:
            raise UserError(f"CelebA: size is {size}; it must be at least 1")
        self.crop, self.verify = crop, verify
        self.image_shape = (3, size, size)

    @property
    def cache_folder(self) -> Path:
        folder = super().cache_folder
        return folder.with_name(f"{folder.name}-{self.crop}")

    def settings(self) -> dict[str, Any]:
        return {"crop": self.crop, "box": list(CROPS[self.crop]), "filter": CROP_FILTER, "verified": self.verify}

    def prepare_data(self) -> None:
        """Make the cache if it is missing or stale; download the files first if they are missing."""
        try:
            super().prepare_data()
        except MissingFileError as missing:
            self._download(missing)
            super().prepare_data()

    def source(self) -> Source:
        names, splits = self._partition()
        images, files = self._images_path(), dict[str, Path]()
        partition = hashlib.sha256("\n".join(names).encode()).hexdigest()
        if images.is_dir():
            listed, state, _ = list_folder(images, {".jpg"})
            files = {path.name: path for path in listed}  # at any depth: Kaggle's copy has a second folder inside
            _require_all(images, names, set(files))
        else:
            state = _file_state(images)
        fingerprint = {"images": state, "partition": partition, "attributes": self._attributes_state()}
        paths = [files[name] for name in names] if files else names
        return Source(fingerprint, splits, lambda: self._read_contents(images, files, names), paths)

    def _read_contents(self, images: Path, files: Mapping[str, Path], names: list[str]) -> Contents:
        box = CROPS[self.crop]
        read = (lambda name: read_file(files[name])) if files else self._open_archive(images, names).read

        def decode(name: str) -> np.ndarray:
            return decode_crop(read(name), name, box, self.image_shape, _SIZE)

        return Contents(fill_from(names, decode), self._attributes(names))

    def decode_file(self, contents: bytes, name: str) -> np.ndarray:
        """Crop an image of the aligned size as the data set's own; another image keeps its middle."""
        if image_size(contents, name) != _SIZE:
            return super().decode_file(contents, name)
        return decode_crop(contents, name, CROPS[self.crop], self.image_shape, _SIZE)

    def _open_archive(self, path: Path, names: list[str]) -> _Members:
        archive = ImageArchive(path)  # raises UserError for half a file, or for a web page that Google sent instead
        if self.verify:
            check_digest(path, self.digests[path.name], file_digest(path, "md5"))
        members = {Path(member).name: member for member in archive.names()}
        _require_all(path, names, set(members))
        return _Members(archive, members)

    def _partition(self) -> tuple[list[str], dict[str, int]]:
        """Return the names of the images, split after split, and the number of images of each split."""
        path = find(self._folders(), ["list_eval_partition.txt", "list_eval_partition.csv"], self._remedy())
        rows = [row for row in _rows(path) if row.words != ["image_id", "partition"]]  # a header, in CSV only
        _check_rows(path, rows, 1, {"0", "1", "2"}, "0, 1 or 2")
        names_by_split = [[name for _, (name, number) in rows if number == split] for split in "012"]
        splits: dict[str, int] = {split: len(names) for split, names in zip(SPLITS, names_by_split, strict=True)}
        if self.verify and tuple(splits.values()) != self.counts:
            raise UserError(
                f"{path}: expected {self.counts} images in train, val, test, found {tuple(splits.values())}"
            )
        if self.verify:
            check_digest(path, self.digests.get(path.name), _list_digest(path))  # no digest of the CSV is known
        names = [name for split_names in names_by_split for name in split_names]
        if len(set(names)) < len(names):
            repeated = next(name for name, count in Counter(names).items() if count > 1)
            raise UserError(f"{path}: the list names {repeated} more than once; fetch the list again")
        return names, splits

    def _attributes_state(self) -> str | None:
        """Text that changes when the list of attributes changes; None if there is no list."""
        try:
            return _file_state(find(self._folders(), _ATTRIBUTE_LISTS, ""))
        except MissingFileError:
            return None

    def _attributes(self, names: list[str]) -> np.ndarray | None:
        """uint8 [N, 40] in {0, 1}, in the order of `names`; None if there is no list of attributes."""
        try:
            path = find(self._folders(), _ATTRIBUTE_LISTS, "")
        except MissingFileError:
            return None
        if self.verify:
            check_digest(path, self.digests.get(path.name), _list_digest(path))
        table = [row for row in _rows(path) if not row.words[0].isdecimal()]  # without the line of the count
        header, *rows = table or [_Row(1, [])]
        width = len(header.words) - ("image_id" in header.words)  # the first column, in CSV only
        _check_rows(path, rows, width, {"1", "-1"}, f"{width} values 1 or -1")
        values = {name: row for _, (name, *row) in rows}
        _require_all(path, names, set(values))
        return (np.array([values[name] for name in names], dtype=np.int8) > 0).astype(np.uint8)

    def _images_path(self) -> Path:
        """The archive, or else the extracted folder. The archive comes first because its digest is known."""
        for folder in self._folders():
            for path in (folder / "img_align_celeba.zip", folder / "img_align_celeba"):
                if path.exists():
                    return path
        places = " or ".join(map(str, self._folders()))
        raise MissingFileError(
            f"neither img_align_celeba.zip nor img_align_celeba/ found in {places}; {self._remedy()}"
        )

    def _folders(self) -> tuple[Path, Path]:
        return Path(self.data_dir) / self.location, Path(self.data_dir)

    def _remedy(self) -> str:
        return (
            "download img_align_celeba.zip and list_eval_partition.txt by hand (CelebA's page "
            "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html links to Google Drive) to "
            f"{self._folders()[0]}, or pass --data.data_dir (make train DATA_DIR=...)"
        )

    def _download(self, missing: MissingFileError) -> None:
        """Download the missing files. Each goes to `download.part` until its digest is checked, then to its place."""
        folder = self._folders()[0]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with one_at_a_time(folder / ".download.lock"):  # a process that waited finds the files
                for name in self.digests:  # the optional attributes come last
                    if not self._is_present(name):
                        self._fetch(folder, name)
                shutil.rmtree(folder / "download.part", ignore_errors=True)
        except Exception as error:  # whether gdown, the network or Google's quota failed, the remedy is the same
            reason = " ".join(str(error).split())[:200]
            if isinstance(error.__context__, ModuleNotFoundError):  # torchvision's message does not name the extra
                reason = "the download needs gdown: pip install 'vae_lightning[celeba]'"
            raise MissingFileError(f"{missing} (the download failed: {reason})") from error

    def _is_present(self, name: str) -> bool:
        """Whether the file exists, or its substitute: the extracted folder for the archive, a CSV file for a list."""
        stem = Path(name).stem
        return any((folder / form).exists() for folder in self._folders() for form in (name, stem, f"{stem}.csv"))

    def _fetch(self, folder: Path, name: str) -> None:
        # imported here because the import takes seconds, and local files do not need it
        from torchvision.datasets import CelebA as Listing
        from torchvision.datasets.utils import download_file_from_google_drive

        incomplete = folder / "download.part"
        incomplete.mkdir(exist_ok=True)
        (file_id,) = (file_id for file_id, _, listed in Listing.file_list if listed == name)
        try:
            download_file_from_google_drive(file_id, str(incomplete), name, self.digests[name])
        except Exception as error:
            if name not in _ATTRIBUTE_LISTS:
                raise
            print(f"{name}: not downloaded ({' '.join(str(error).split())[:200]}); there are no labels", flush=True)
        else:
            (incomplete / name).rename(folder / name)


class _Members(NamedTuple):
    """The images of an archive by their file names, in whichever folder of the archive they lie."""

    archive: ImageArchive
    members: Mapping[str, str]

    def read(self, name: str) -> bytes:
        return self.archive.read(self.members[name])


class _Row(NamedTuple):
    """The number of a line, and its words, which blanks or commas separate."""

    number: int
    words: list[str]


def _list_bytes(path: Path) -> bytes:
    """The bytes of a list, without the byte-order mark that an editor may have put at the start."""
    return read_bytes(path).removeprefix(BYTE_ORDER_MARK)


def _list_digest(path: Path) -> str:
    return hashlib.md5(_list_bytes(path), usedforsecurity=False).hexdigest()


def _rows(path: Path) -> list[_Row]:
    """The lines of a list that are not blank."""
    lines = _list_bytes(path).decode(errors="replace").replace(",", " ").splitlines()
    rows = [_Row(number, line.split()) for number, line in enumerate(lines, 1)]
    return [row for row in rows if row.words]


def _check_rows(path: Path, rows: list[_Row], width: int, allowed: set[str], expected: str) -> None:
    """Raise unless there is a row and each row has a name and `width` values, all of them in `allowed`."""
    wrong = next((n for n, (_, *values) in rows if len(values) != width or not allowed.issuperset(values)), None)
    if wrong is not None or not rows:
        raise UserError(f"{path}, line {wrong or 1}: expected the name of an image and {expected}; fetch it again")


def _file_state(path: Path) -> str:
    """Text that changes when the file changes."""
    status = path.stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


def _require_all(place: Path, names: list[str], present: set[str]) -> None:
    """Raise UserError if an image of the lists is not in `present`, the images of `place`."""
    missing = [name for name in names if name not in present]
    if missing:
        first = ", ".join(missing[:3])
        raise UserError(f"{place}: {len(missing)} of {len(names)} images are missing: {first} ...; fetch it again")
