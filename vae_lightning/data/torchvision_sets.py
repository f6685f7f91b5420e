"""Common small data sets: look-alikes of MNIST in files of the same format, others through torchvision's readers."""

from __future__ import annotations

import contextlib
import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from vae_lightning.data.base import CachedImages, ImageDataModule, Source, Split
from vae_lightning.data.mnist import MNIST, idx_names
from vae_lightning.noise import derive_seed
from vae_lightning.runs.whole_files import file_digest, one_at_a_time
from vae_lightning.storage.cache import Contents, fill_from
from vae_lightning.storage.decode import FILTER, decode
from vae_lightning.storage.files import (
    MissingFileError,
    check_digest,
    find,
    list_folder,
    read_bytes,
    read_file,
    read_idx,
)
from vae_lightning.storage.loader import Images
from vae_lightning.types import UserError

Subset: TypeAlias = Literal["balanced", "letters", "digits", "byclass", "bymerge", "mnist"]
_NOT_FOUND = "Dataset not found or corrupted"
"""How torchvision's message begins. The rest of the message advises arguments that our users cannot pass."""


def _remedy(files: str) -> str:
    alternative = "point --data.data_dir (make train DATA_DIR=...) at a complete copy"
    return f"delete what is left of {files} and fetch it again, or {alternative}"


def _packed_digests(*md5: str) -> Mapping[str, tuple[str, None]]:
    """MD5 of the `.gz` files, in the order of `MNIST.digests`; the digests of the contents are not published."""
    return {name: (digest, None) for name, digest in zip(MNIST.digests, md5, strict=True)}


class _LookAlike(MNIST):
    """A data set in files with the names and counts of MNIST's files."""

    def _read(self, name: str) -> Tensor:
        if not self.verify:
            return super()._read(name)
        path = self._path(name)
        if path.suffix == ".gz":
            check_digest(path, self.digests[name][0], file_digest(path, "md5"))
        if hashlib.md5(read_bytes(path), usedforsecurity=False).hexdigest() == MNIST.digests[name][1]:
            raise UserError(f"{path}: a file of MNIST's, not of {type(self).__name__}; delete it and fetch it again")
        values, count = super()._read(name), 60_000 if name.startswith("train") else 10_000
        if len(values) != count:
            raise UserError(f"{path}: expected {count:,} images or labels, found {len(values):,}; {_remedy(path.name)}")
        return values


class FashionMNIST(_LookAlike):
    """70,000 grey pictures of clothes, 28 x 28 (Xiao et al. 2017, https://arxiv.org/abs/1708.07747), split like MNIST.

    Use it in place of MNIST if digits are too easy. The arguments are those of `MNIST`.
    """

    mirrors = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    location = "FashionMNIST/raw"
    digests = _packed_digests(
        *("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe"),  # images, labels of training
        *("bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310"),  # of the test
    )


class KMNIST(_LookAlike):
    """70,000 cursive Japanese characters (Clanuwat et al. 2018, https://arxiv.org/abs/1812.01718), split like MNIST.

    Use it in place of MNIST if digits are too easy. The arguments are those of `MNIST`.
    """

    mirrors = ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",)
    location = "KMNIST/raw"
    digests = _packed_digests(
        *("bdb82020997e1d708af4cf47b453dcf7", "e144d726b3acfaa3e44228e80efcd344"),  # images, labels of training
        *("5c965bf0a639b31b8f53240b1b52f4d7", "7320c461ea6c1c855c0b718fb2a4b134"),  # of the test
    )


class TorchvisionImages(ImageDataModule):
    """A data set that torchvision reads as one array. Its test images are `test`; `num_val` of the others are `val`.

    To add such a data set, subclass this class and implement `reader` and `files`. Files that torchvision does not
    check (half a file) are found because its reader raises. One process downloads missing files while the others wait.
    Torchvision extracts an archive only if the archive has the published digest.
    """

    num_val: ClassVar[int]

    @abstractmethod
    def reader(self, train: bool, download: bool) -> Any:
        """Return torchvision's data set of the training or the test images.

        Args:
            train: Whether to read the training images; else the test images.
            download: Whether to download missing files first.
        """

    @abstractmethod
    def files(self, train: bool) -> str:
        """Return the names of the files that `reader` looks for, as text for a message.

        Args:
            train: Whether to name the files of the training images; else of the test images.
        """

    def discard(self, train: bool) -> None:
        """Remove incomplete files that an interrupted extraction left, if torchvision does not check each file.

        Args:
            train: Whether to remove files of the training images; else of the test images.
        """

    def prepare_data(self) -> None:
        """Download the files that are missing or incomplete."""
        for train in (True, False):
            if self._is_readable(train):
                continue
            with _download_lock(self.data_dir, type(self).__name__):
                if not self._is_readable(train):  # another process may have downloaded the files meanwhile
                    self.discard(train)
                    self._open_reader(train, download=True)

    def _is_readable(self, train: bool) -> bool:
        try:
            self._open_reader(train, download=False)
        except MissingFileError:
            return False
        return True

    def load(self, split: Split) -> Images:
        dataset = self._open_reader(split != "test", download=False)
        pixels = self.pixels(torch.as_tensor(dataset.data))
        labels = torch.as_tensor(getattr(dataset, "targets", getattr(dataset, "labels", ())), dtype=torch.int64)
        if len(labels) != len(pixels):
            raise UserError(
                f"{self.data_dir}: {type(self).__name__} has {len(pixels)} images, but {len(labels)} labels; "
                f"{_remedy(self.files(split != 'test'))}"
            )
        every = torch.arange(len(pixels))
        index = every if split == "test" else _train_or_val_indices(len(pixels), self.num_val, split)
        return Images(pixels[index], labels[index])

    def pixels(self, data: Tensor) -> Tensor:
        """Return the reader's array as uint8 [N, C, H, W].

        Args:
            data: The array as torchvision returns it.
        """
        return data

    def _open_reader(self, train: bool, download: bool) -> Any:
        try:
            return self.reader(train, download)
        except Exception as error:  # network, pickle and archive raise many classes; torchvision documents none
            raise _missing_error(type(self).__name__, self.data_dir, error, self.files(train)) from error


def _missing_error(name: str, data_dir: str, error: Exception, files: str) -> MissingFileError:
    """An error of one line: the data set, the complaint of its reader, and the files that the reader looked for."""
    text = " ".join(str(error).split())[:200]
    text = "not found, or not as published" if text.startswith(_NOT_FOUND) else text
    return MissingFileError(f"{name} in {Path(data_dir)}: {text}; {_remedy(files)}")


@contextlib.contextmanager
def _download_lock(data_dir: str, name: str) -> Iterator[None]:
    """Let one process at a time download the data set `name`."""
    with contextlib.ExitStack() as stack:
        try:
            Path(data_dir).mkdir(parents=True, exist_ok=True)
            stack.enter_context(one_at_a_time(Path(data_dir) / f".{name}.lock"))
        except OSError as error:
            raise UserError(f"{data_dir}: cannot be written ({error.strerror}); choose --data.data_dir") from error
        yield


def _train_or_val_indices(total: int, num_val: int, split: Split) -> Tensor:
    """Sorted indices of `train` or `val`. A hash of the index decides, so that no library version changes the split."""
    shuffled = sorted(range(total), key=derive_seed)
    num_val = min(num_val, max(1, total // 6))
    return torch.tensor(sorted(shuffled[:num_val] if split == "val" else shuffled[num_val:]))


class _Arrays(NamedTuple):
    """The arrays that EMNIST's reader returns; the names are those of torchvision's data sets."""

    data: Tensor  # uint8 [N, H, W]
    targets: Tensor  # uint8 [N]


class EMNIST(TorchvisionImages):
    """Handwritten letters and digits, 28 x 28 (Cohen et al. 2017, https://arxiv.org/abs/1702.05373).

    Use it for more classes than MNIST's ten. The four files of a subset, raw or `.gz`, lie in `<data_dir>/EMNIST/raw`,
    `<data_dir>/EMNIST/raw/gzip`, `<data_dir>` or `<data_dir>/gzip`; `idx_names` lists the accepted names. If files are
    missing, NIST's archive is downloaded and unpacked.

    Args:
        data_dir: The folder of the files.
        subset: balanced (47 classes, 112,800 + 18,800 images), letters, digits, byclass, bymerge or mnist.
        verify: Check the counts (NIST publishes no digest of single files); turn this off for files of your own.
        kwargs: Arguments of `ImageDataModule`, except `flip`.
    """

    image_shape = (1, 28, 28)
    location = "EMNIST/raw"
    num_val = 10_000
    counts: ClassVar[Mapping[str, tuple[int, int]]] = {  # training images, test images
        "balanced": (112_800, 18_800),
        "letters": (124_800, 20_800),
        "digits": (240_000, 40_000),
        "byclass": (697_932, 116_323),
        "bymerge": (697_932, 116_323),
        "mnist": (60_000, 10_000),
    }

    def __init__(
        self, data_dir: str = "data", *, subset: Subset = "balanced", verify: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(data_dir=data_dir, flip=False, **kwargs)
        self.subset, self.verify = subset, verify

    def files(self, train: bool) -> str:
        return " and ".join(self._names(train))

    def reader(self, train: bool, download: bool) -> Any:
        if download:
            from torchvision import datasets  # here and below, because the import takes seconds

            datasets.EMNIST(self.data_dir, split=self.subset, train=train, download=True)
        raw = Path(self.data_dir) / self.location
        folders = [raw, raw / "gzip", Path(self.data_dir), Path(self.data_dir) / "gzip"]
        paths = [find(folders, idx_names(name), "") for name in self._names(train)]
        arrays = _Arrays(*(read_idx(path) for path in paths))
        for path, array, shape in zip(paths, arrays, (self.image_shape[1:], ()), strict=True):
            count = self.counts[self.subset][0 if train else 1]
            if self.verify and len(array) != count:
                raise ValueError(f"{path}: expected {count:,} images in {self.subset}, found {len(array):,}")
            if array.shape[1:] != shape:
                raise ValueError(
                    f"{path}: expected numbers of shape [N{''.join(f', {n}' for n in shape)}], "
                    f"found {list(array.shape)}"
                )
        return arrays

    def _names(self, train: bool) -> list[str]:
        """The names of the raw files of the images and of the labels."""
        prefix = f"emnist-{self.subset}-{'train' if train else 'test'}"
        return [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]

    def discard(self, train: bool) -> None:
        for path in (Path(self.data_dir) / self.location / name for name in self._names(train)):
            try:
                read_idx(path)
            except UserError:
                path.unlink(missing_ok=True)

    def pixels(self, data: Tensor) -> Tensor:
        return data.transpose(1, 2).contiguous()[:, None]  # the files hold each image transposed


class CIFAR10(TorchvisionImages):
    """60,000 colour pictures of 10 classes, 32 x 32 (Krizhevsky 2009): 45,000 / 5,000 / 10,000.

    The arguments are those of `ImageDataModule`.
    """

    image_shape = (3, 32, 32)
    location = "cifar-10-batches-py"
    num_val = 5_000

    def files(self, train: bool) -> str:
        return "cifar-10-python.tar.gz or cifar-10-batches-py/"

    def reader(self, train: bool, download: bool) -> Any:
        from torchvision import datasets

        return datasets.CIFAR10(self.data_dir, train=train, download=download)

    def pixels(self, data: Tensor) -> Tensor:
        return data.permute(0, 3, 1, 2).contiguous()


class SVHN(TorchvisionImages):
    """Digits of house numbers in colour, 32 x 32 (Netzer et al. 2011): 66,257 / 7,000 / 26,032.

    The "extra" images of the publication are left out. The arguments are those of `ImageDataModule`.
    """

    image_shape = (3, 32, 32)
    location = "train_32x32.mat"
    num_val = 7_000

    def files(self, train: bool) -> str:
        return f"{'train' if train else 'test'}_32x32.mat"

    def reader(self, train: bool, download: bool) -> Any:
        from torchvision import datasets

        return datasets.SVHN(self.data_dir, split="train" if train else "test", download=download)


class Omniglot(CachedImages):
    """32,460 characters of 50 alphabets (Lake et al. 2015), shrunk from 105 x 105 to 28 x 28, ink white.

    The 30 alphabets of the background set are `train` and `val` (a tenth of the images); the other 20 alphabets are
    `test`. Likelihoods are not comparable with those of the static binarisation that papers often use (Burda et al.
    2016). The arguments are those of `CachedImages`.
    """

    image_shape = (1, 28, 28)
    location = "omniglot-py"
    counts: ClassVar[Mapping[bool, int]] = {True: 19_280, False: 13_180}  # by whether it is the background set

    def prepare_data(self) -> None:
        """Make the cache if it is missing or stale; download the archives first if images are missing."""
        try:
            super().prepare_data()
        except MissingFileError:
            with _download_lock(self.data_dir, "Omniglot"):
                self._fetch(background=True)
                self._fetch(background=False)
            super().prepare_data()

    def _fetch(self, background: bool) -> None:
        """Download the archive if needed. Extract it again if images are missing, because torchvision counts none."""
        from torchvision.datasets.utils import extract_archive

        reader = self._reader(background, download=True)
        if len(reader) != self.counts[background]:
            archive = Path(reader.root) / f"{reader._get_target_folder()}.zip"
            extract_archive(str(archive), str(reader.root))

    def settings(self) -> dict[str, Any]:
        return {"filter": FILTER, "ink": "white"}

    def source(self) -> Source:
        readers = [self._reader(background) for background in (True, False)]
        sizes = [len(reader) for reader in readers]
        if sizes != list(self.counts.values()):
            raise MissingFileError(
                f"Omniglot in {self.data_dir}: expected {list(self.counts.values())} images, found {sizes}; "
                f"{_remedy(' and '.join(map(self._archive_name, self.counts)))}"
            )
        train, val = (_train_or_val_indices(sizes[0], sizes[0] // 10, split).tolist() for split in ("train", "val"))
        splits = {"train": len(train), "val": len(val), "test": sizes[1]}
        items = [(readers[0], index) for index in (*train, *val)] + [(readers[1], index) for index in range(sizes[1])]
        labels = np.array([reader._flat_character_images[index][1] for reader, index in items])

        def decode_item(item: tuple[Any, int]) -> np.ndarray:
            reader, index = item
            name, character = reader._flat_character_images[index]
            path = Path(reader.target_folder) / reader._characters[character] / name
            return 255 - decode(read_file(path), str(path), self.image_shape, "stretch")

        listings = [list_folder(Path(reader.target_folder), {".png"}).digest for reader in readers]
        return Source({"images": listings}, splits, lambda: Contents(fill_from(items, decode_item), labels))

    def _reader(self, background: bool, download: bool = False) -> Any:
        from torchvision import datasets

        try:
            return datasets.Omniglot(self.data_dir, background=background, download=download)
        except Exception as error:
            raise _missing_error("Omniglot", self.data_dir, error, self._archive_name(background)) from error

    @staticmethod
    def _archive_name(background: bool) -> str:
        return f"omniglot-py/images_{'background' if background else 'evaluation'}.zip"
