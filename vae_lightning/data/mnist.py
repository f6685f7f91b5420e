"""MNIST with grey pixels, and the statically binarised MNIST that papers on density estimation use."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from vae_lightning.data.base import ImageDataModule, Split
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.storage.files import BYTE_ORDER_MARK, check_digest, download, find, read_bytes, read_idx
from vae_lightning.storage.loader import Images
from vae_lightning.types import Shape, UserError

_NOT_FOUND_REMEDY = "rerun with network access to download it, or pass --data.data_dir (make train DATA_DIR=...)"


class MNIST(ImageDataModule):
    """70,000 handwritten digits of 28 x 28 grey pixels (LeCun, Cortes & Burges 1998): 50,000 / 10,000 / 10,000.

    `val` is the end of the official training images, and `test` is the official test set. The four IDX files, raw or
    `.gz`, lie in `<data_dir>/MNIST/raw` (torchvision's layout) or in `<data_dir>`; `idx_names` lists the names that
    are accepted. Missing files are downloaded to `<data_dir>/MNIST/raw`.

    Args:
        data_dir: The folder of the files.
        verify: Check the digest and the count of each file; turn this off for files of your own.
        num_val: Number of validation images; by default 10,000, or a sixth of the training images if that is less
            (Burda et al. 2016 held out 400).
        kwargs: Arguments of `ImageDataModule`, except `flip`.

    Raises:
        UserError: if `num_val` is below 1.
    """

    image_shape = (1, 28, 28)
    mirrors: ClassVar[tuple[str, ...]] = (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "http://yann.lecun.com/exdb/mnist/",
    )
    location = "MNIST/raw"
    digests: ClassVar[Mapping[str, tuple[str, str | None]]] = {  # MD5 of the .gz file and of its contents
        "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
        "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
        "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
        "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
    }

    def __init__(
        self, data_dir: str = "data", *, verify: bool = True, num_val: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(data_dir=data_dir, flip=False, **kwargs)
        if num_val is not None and num_val < 1:
            raise UserError(f"{type(self).__name__}: num_val is {num_val}; it must be at least 1")
        self.verify, self.num_val = verify, num_val

    def prepare_data(self) -> None:
        """Download the files that are missing."""
        for name, (md5, _) in self.digests.items():
            try:
                self._path(name)
            except UserError:
                urls = [mirror + name + ".gz" for mirror in self.mirrors]
                download(urls, self._folders()[0] / f"{name}.gz", md5)

    def load(self, split: Split) -> Images:
        prefix = "t10k" if split == "test" else "train"
        pixels, labels = self._read(f"{prefix}-images-idx3-ubyte"), self._read(f"{prefix}-labels-idx1-ubyte")
        if labels.shape != pixels.shape[:1]:
            path = self._path(f"{prefix}-labels-idx1-ubyte")
            found = str(len(labels)) if labels.dim() == 1 else f"numbers of shape {list(labels.shape)}"
            raise UserError(f"{path}: expected {len(pixels)} labels, one for each image, found {found}")
        if pixels.shape[1:] != self.image_shape[1:]:
            path = self._path(f"{prefix}-images-idx3-ubyte")
            raise UserError(f"{path}: expected images of {self.image_shape[1:]}, found {tuple(pixels.shape[1:])}")
        images = Images(pixels[:, None], labels.long())
        return images if split == "test" else self._train_or_val(images, split)

    def _train_or_val(self, images: Images, split: Split) -> Images:
        """The images of `train` or `val`, of all official training images."""
        assert images.labels is not None
        total = len(images.pixels)
        num_val = min(10_000, max(1, total // 6)) if self.num_val is None else self.num_val
        if num_val >= total:
            raise UserError(
                f"{type(self).__name__}: num_val is {num_val}, which leaves none of {total} images for training"
            )
        rows = slice(-num_val, None) if split == "val" else slice(0, -num_val)
        return Images(images.pixels[rows], images.labels[rows])

    def _read(self, name: str) -> Tensor:
        return read_idx(self._path(name), self.digests[name][1] if self.verify else None)

    def _path(self, name: str) -> Path:
        return find(self._folders(), idx_names(name), _NOT_FOUND_REMEDY)

    def _folders(self) -> list[Path]:
        """The folders to search.

        `data_dir` itself is searched only if the digests of the contents are known: FashionMNIST and KMNIST use the
        same file names, and only such a digest tells which data set a file belongs to.
        """
        folder = Path(self.data_dir) / self.location
        return [folder, Path(self.data_dir)] if all(contents for _, contents in self.digests.values()) else [folder]


def idx_names(name: str) -> list[str]:
    """Return the names under which an IDX file is distributed, raw names first, then those that end in `.gz`.

    The raw names of `train-images-idx3-ubyte` are that name, `train-images.idx3-ubyte`, and either of the two inside a
    folder that has one of these names (Kaggle's copy unpacks so).

    Args:
        name: The official name of the raw file.
    """
    names = [name, name.replace("-idx", ".idx")]
    names += [f"{folder}/{name}" for folder in names for name in names]
    return names + [f"{name}.gz" for name in names]


class BinarizedMNIST(ImageDataModule):
    """MNIST with fixed binary pixels (Salakhutdinov & Murray 2008; Larochelle's files): 50,000 / 10,000 / 10,000.

    Use it to compare with published likelihoods of binarised MNIST.

    The three text files `binarized_mnist_{train,valid,test}.amat` (784 values 0 or 1 in a line, no labels) lie in
    `<data_dir>/binarized_mnist`. Missing files are downloaded. Each file is parsed once; a cache of bits is written
    beside the file.

    Args:
        data_dir: The folder that holds `binarized_mnist`.
        verify: Check the count and the digest of the images; the digest does not depend on the blanks in the text.
        kwargs: Arguments of `ImageDataModule`, except `binarisation`, `flip` and `dequantise`.
    """

    image_shape = (1, 28, 28)
    location = "binarized_mnist"
    url: ClassVar[str] = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
    files: ClassVar[Mapping[Split, tuple[str, int, str]]] = {  # name, images, SHA-256 of the packed bits
        "train": ("binarized_mnist_train", 50_000, "727146c35424b019f3e350e1e69faa05644a0abaf787e3f4e1a9632220a13906"),
        "val": ("binarized_mnist_valid", 10_000, "a256ac44ae26be720fad8616a05ed6ecfd1619930d9a208379bb2a4405df5b6d"),
        "test": ("binarized_mnist_test", 10_000, "9fcd8da6f0fdf09b2ba30fe63a0bb784042a0de82563172530229b983e294ff2"),
    }

    def __init__(self, data_dir: str = "data", *, verify: bool = True, **kwargs: Any) -> None:
        super().__init__(data_dir=data_dir, binarisation="none", flip=False, dequantise=False, **kwargs)
        self.binarisation = "static"
        self.verify = verify

    def prepare_data(self) -> None:
        """Download the files that are missing."""
        for name, count, digest in self.files.values():
            text = self._folder / f"{name}.amat"
            if not text.is_file() and not text.with_suffix(".npy").is_file():
                check = partial(self._parse, text, count, digest)
                download([f"{self.url}{name}.amat"], text, check=check)

    def load(self, split: Split) -> Images:
        bits = self._read(*self.files[split])  # uint8 [N, 98]
        pixels = np.unpackbits(bits, axis=1).reshape(-1, *self.image_shape)
        return Images(torch.from_numpy(pixels), max_value=1)

    @property
    def _folder(self) -> Path:
        return Path(self.data_dir) / self.location

    def _read(self, name: str, count: int, digest: str) -> np.ndarray:
        """The packed bits of a file, from the cache if the cache belongs to this text, else parsed and then cached."""
        cache, text = self._folder / f"{name}.npy", self._folder / f"{name}.amat"
        if cache.is_file() and (not text.is_file() or cache.stat().st_mtime_ns == text.stat().st_mtime_ns):
            return self._verify(cache, _load_cache(cache), count, digest)
        bits = self._parse(text, count, digest, read_bytes(find([self._folder], [text.name], _NOT_FOUND_REMEDY)))
        _save_cache(cache, bits, text.stat().st_mtime_ns)
        return bits

    def _parse(self, path: Path, count: int, digest: str, raw: bytes) -> np.ndarray:
        """The packed bits of the text of a file; raises UserError if the count or the digest is wrong."""
        return self._verify(path, np.packbits(parse_amat(path, raw, self.image_shape[1:]), axis=1), count, digest)

    def _verify(self, path: Path, bits: np.ndarray, count: int, digest: str) -> np.ndarray:
        if self.verify and len(bits) != count:
            raise UserError(f"{path}: expected {count} images, found {len(bits)}; delete it and fetch it again")
        check_digest(path, digest if self.verify else None, hashlib.sha256(bits.tobytes()).hexdigest())
        return bits


def parse_amat(path: Path, raw: bytes, image_size: Shape) -> np.ndarray:
    """Parse a text with one image a line, values 0 or 1 between blanks. Returns uint8 [N, H * W].

    Args:
        path: The file that the text comes from, for the messages.
        raw: The bytes of the text.
        image_size: Height and width of an image, whose product is the number of values in a line.

    Raises:
        UserError: with the number of the first line that is not an image.
    """
    if raw.startswith(b"MATLAB"):
        raise UserError(f"{path}: a MATLAB file, expected text with values 0 and 1 between blanks; fetch the text file")
    size = int(np.prod(image_size))
    rows = []
    for number, line in enumerate(raw.removeprefix(BYTE_ORDER_MARK).splitlines(), start=1):
        values = line.split()
        row = b"".join(values)
        if len(values) != size or len(row) != size or row.strip(b"01"):
            raise UserError(f"{path}, line {number}: expected {size} values 0 or 1, found {len(values)} values")
        rows.append(row)
    if not rows:
        raise UserError(f"{path}: empty, expected one image a line; delete it and fetch it again")
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, size) - ord("0")


def _save_cache(path: Path, bits: np.ndarray, mtime_ns: int) -> None:
    """Write the cache beside the text, with the time of the text; write nothing if the folder is read-only.

    The mode of the folder is checked here, because the system lets root write to a read-only folder.
    """
    buffer = io.BytesIO()
    np.save(buffer, bits)
    try:
        if not path.parent.stat().st_mode & stat.S_IWUSR:
            raise PermissionError(errno.EACCES, "it is read-only")
        write_whole(path, buffer.getvalue())
        os.utime(path, ns=(mtime_ns, mtime_ns))
    except OSError as error:
        rank_zero_info(f"{path.parent}: the cache is not written ({error.strerror}); the text is parsed at every start")


def _load_cache(path: Path) -> np.ndarray:
    remedy = "delete it, and the next run makes it from the .amat file"
    try:
        bits = np.array(np.lib.format.open_memmap(path, mode="r"))  # a map: a false header cannot claim all memory
    except Exception as error:  # numpy raises exceptions of many classes for a broken header
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); {remedy}") from error
    if bits.dtype != np.uint8 or bits.shape[1:] != (-(-28 * 28 // 8),):
        raise UserError(f"{path}: cannot be read (expected bytes [N, 98], found {bits.dtype} {bits.shape}); {remedy}")
    return bits
