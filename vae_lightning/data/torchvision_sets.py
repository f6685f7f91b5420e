"""The usual small data sets: MNIST's look-alikes in its own files, the others through torchvision's readers."""

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
"""Torchvision's words, whose advice is for another program."""


def _remedy(what: str) -> str:
    place = "point --data.data_dir (make train DATA_DIR=...) at a folder that has it"
    return f"delete what is left of {what} and fetch it again, or {place}"


class _LookAlike(MNIST):
    """A set in files of MNIST's names and counts. The digests that are known of it are those of the packed files."""

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
    """70,000 grey pictures of clothes, 28 x 28 (Xiao et al. 2017, https://arxiv.org/abs/1708.07747), split as MNIST."""

    mirrors = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)
    location = "FashionMNIST/raw"
    digests: ClassVar[Mapping[str, tuple[str, str | None]]] = {
        "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", None),
        "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", None),
        "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", None),
        "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", None),
    }


class KMNIST(_LookAlike):
    """70,000 cursive Japanese characters (Clanuwat et al. 2018, https://arxiv.org/abs/1812.01718), split as MNIST."""

    mirrors = ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",)
    location = "KMNIST/raw"
    digests: ClassVar[Mapping[str, tuple[str, str | None]]] = {
        "train-images-idx3-ubyte": ("bdb82020997e1d708af4cf47b453dcf7", None),
        "train-labels-idx1-ubyte": ("e144d726b3acfaa3e44228e80efcd344", None),
        "t10k-images-idx3-ubyte": ("5c965bf0a639b31b8f53240b1b52f4d7", None),
        "t10k-labels-idx1-ubyte": ("7320c461ea6c1c855c0b718fb2a4b134", None),
    }


class TorchvisionImages(ImageDataModule):
    """A data set that torchvision reads as one array. Its test images are `test`; `num_val` of the rest are `val`.

    A subclass says which reader. What torchvision does not check (half a file) is found by its own reader's complaint.
    Where something is missing, one process fetches it and the others wait; archives are extracted by torchvision, once
    they have the digest that it knows.
    """

    num_val: ClassVar[int]

    @abstractmethod
    def reader(self, train: bool, download: bool) -> Any:
        """torchvision's data set of the training or the test images."""

    @abstractmethod
    def files(self, train: bool) -> str:
        """The names of the files that `reader` looks for, as a message says them."""

    def discard(self, train: bool) -> None:
        """Remove what an interrupted extraction left, where torchvision does not compare each file's digest."""

    def prepare_data(self) -> None:
        for train in (True, False):
            if self._fault(train) is None:
                continue
            with _alone(self.data_dir, type(self).__name__):
                if self._fault(train) is not None:  # another process may have fetched it meanwhile
                    self.discard(train)
                    self._try(train, download=True)

    def _fault(self, train: bool) -> MissingFileError | None:
        try:
            self._try(train, download=False)
        except MissingFileError as error:
            return error
        return None

    def load(self, split: Split) -> Images:
        dataset = self._try(split != "test", download=False)
        pixels = self.pixels(torch.as_tensor(dataset.data))
        labels = torch.as_tensor(getattr(dataset, "targets", getattr(dataset, "labels", ())), dtype=torch.int64)
        if len(labels) != len(pixels):
            raise UserError(
                f"{self.data_dir}: {type(self).__name__} has {len(pixels)} images, {len(labels)} labels; "
                f"{_remedy(self.files(split != 'test'))}"
            )
        index = torch.arange(len(pixels)) if split == "test" else _part(len(pixels), self.num_val, split)
        return Images(pixels[index], labels[index])

    def pixels(self, data: Tensor) -> Tensor:
        """The reader's array as uint8 [N, C, H, W]."""
        return data

    def _try(self, train: bool, download: bool) -> Any:
        try:
            return self.reader(train, download)
        except Exception as error:  # of the network, of unpickling, of the archive: torchvision names no class for them
            raise _missing(type(self).__name__, self.data_dir, error, self.files(train)) from error


def _missing(name: str, data_dir: str, error: Exception, files: str) -> MissingFileError:
    """In one line: whose reader has found what, and the files that it looked for."""
    text = " ".join(str(error).split())[:200]
    text = "not found, or not as published" if text.startswith(_NOT_FOUND) else text
    return MissingFileError(f"{name} in {Path(data_dir)}: {text}; {_remedy(files)}")


@contextlib.contextmanager
def _alone(data_dir: str, name: str) -> Iterator[None]:
    """Of the processes that fetch the data set `name`, one at a time."""
    with contextlib.ExitStack() as stack:
        try:
            Path(data_dir).mkdir(parents=True, exist_ok=True)
            stack.enter_context(one_at_a_time(Path(data_dir) / f".{name}.lock"))
        except OSError as error:
            raise UserError(f"{data_dir}: cannot be written ({error.strerror}); choose --data.data_dir") from error
        yield


def _part(total: int, num_val: int, split: Split) -> Tensor:
    """Indices of `train` or `val`: ordered by a hash of the index, for no library's version to change."""
    shuffled = sorted(range(total), key=derive_seed)
    num_val = min(num_val, max(1, total // 6))
    return torch.tensor(sorted(shuffled[:num_val] if split == "val" else shuffled[num_val:]))


class _Arrays(NamedTuple):
    """What a reader returns, under torchvision's names."""

    data: Tensor  # uint8 [N, H, W]
    targets: Tensor  # uint8 [N]


class EMNIST(TorchvisionImages):
    """Handwritten letters and digits, 28 x 28 (Cohen et al. 2017, https://arxiv.org/abs/1702.05373).

    The four files of a subset, raw or `.gz`, lie in `<data_dir>/EMNIST/raw`, in `gzip` below it, in `<data_dir>` or in
    `<data_dir>/gzip`, under any of `idx_names`. If they are missing, NIST's archive is downloaded and unpacked.

    Args:
        data_dir: The folder of the files.
        subset: balanced (47 classes, 112,800 + 18,800), letters, digits, byclass, bymerge or mnist.
        verify: Check the counts (NIST publishes no digest of single files); turn this off for files of your own.
    """

    image_shape = (1, 28, 28)
    location = "EMNIST/raw"
    num_val = 10_000
    counts: ClassVar[Mapping[str, tuple[int, int]]] = {  # of the training images, of the test images
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
            from torchvision import datasets  # here and below: seconds of imports

            datasets.EMNIST(self.data_dir, split=self.subset, train=train, download=True)
        own = Path(self.data_dir) / self.location
        folders = [own, own / "gzip", Path(self.data_dir), Path(self.data_dir) / "gzip"]
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
        """Of the images and of the labels."""
        part = "train" if train else "test"
        return [f"emnist-{self.subset}-{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]

    def discard(self, train: bool) -> None:
        part = "train" if train else "test"
        for path in (Path(self.data_dir) / self.location).glob(f"emnist-{self.subset}-{part}-*-ubyte"):
            try:
                read_idx(path)
            except UserError:
                path.unlink()

    def pixels(self, data: Tensor) -> Tensor:
        return data.transpose(1, 2).contiguous()[:, None]  # the files hold each image transposed


class CIFAR10(TorchvisionImages):
    """60,000 colour pictures of 10 classes, 32 x 32 (Krizhevsky 2009): 45,000 / 5,000 / 10,000."""

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
    """Digits of house numbers in colour, 32 x 32 (Netzer et al. 2011): 73,257 + 26,032, the "extra" images left out."""

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

    `train` and `val`: the 30 alphabets of the background set, a tenth of the images `val`; `test`: the other 20. Not
    the static binarisation in which densities of Omniglot are often reported (Burda et al. 2016): figures do not
    compare.
    """

    image_shape = (1, 28, 28)
    location = "omniglot-py"
    counts: ClassVar[Mapping[bool, int]] = {True: 19_280, False: 13_180}  # of the background set, of the other

    def prepare_data(self) -> None:
        try:
            super().prepare_data()
        except MissingFileError:
            with _alone(self.data_dir, "Omniglot"):
                self._fetch(background=True)
                self._fetch(background=False)
            super().prepare_data()

    def _fetch(self, background: bool) -> None:
        """The archive, and its images where an interrupted extraction left some of them: torchvision counts none."""
        from torchvision.datasets.utils import extract_archive

        reader = self._reader(background, download=True)
        if len(reader) != self.counts[background]:
            archive = Path(reader.root) / f"{reader._get_target_folder()}.zip"
            extract_archive(str(archive), str(reader.root))

    def settings(self) -> dict[str, Any]:
        return {"filter": FILTER, "ink": "white"}

    def source(self) -> Source:
        parts = [self._reader(background) for background in (True, False)]
        sizes = [len(part) for part in parts]
        if sizes != list(self.counts.values()):
            raise MissingFileError(
                f"Omniglot in {self.data_dir}: expected {list(self.counts.values())} images, found {sizes}; "
                f"{_remedy(' and '.join(map(self._archive_name, self.counts)))}"
            )
        index = [_part(sizes[0], sizes[0] // 10, split).tolist() for split in ("train", "val")]
        items = [(0, i) for i in (*index[0], *index[1])] + [(1, i) for i in range(sizes[1])]
        splits = {"train": len(index[0]), "val": len(index[1]), "test": sizes[1]}
        labels = np.array([parts[p]._flat_character_images[i][1] for p, i in items])

        def draw(item: tuple[int, int]) -> np.ndarray:
            part = parts[item[0]]
            name, character = part._flat_character_images[item[1]]
            path = Path(part.target_folder) / part._characters[character] / name
            return 255 - decode(read_file(path), str(path), self.image_shape, "stretch")

        listings = [list_folder(Path(part.target_folder), {".png"}).digest for part in parts]
        return Source({"images": listings}, splits, lambda: Contents(fill_from(items, draw), labels))

    def _reader(self, background: bool, download: bool = False) -> Any:
        from torchvision import datasets

        try:
            return datasets.Omniglot(self.data_dir, background=background, download=download)
        except Exception as error:
            raise _missing("Omniglot", self.data_dir, error, self._archive_name(background)) from error

    @staticmethod
    def _archive_name(background: bool) -> str:
        return f"omniglot-py/images_{'background' if background else 'evaluation'}.zip"
