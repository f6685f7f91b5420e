"""MNIST with its grey pixels, and the statically binarised MNIST of the density-estimation literature."""

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


class MNIST(ImageDataModule):
    """70,000 handwritten digits of 28 x 28 grey pixels (LeCun, Cortes & Burges 1998): 50,000 / 10,000 / 10,000.

    `val` is the end of the official training images, and `test` is the official test set. The four IDX files, raw or
    `.gz`, lie in `<data_dir>/MNIST/raw` (torchvision's layout) or in `<data_dir>`, also under the other names of
    `idx_names`. Missing files are downloaded to the first.

    Args:
        data_dir: The folder of the files.
        verify: Check the digest and the count of each file; turn this off for files of your own.
        num_val: Number of validation images; by default 10,000, or a sixth of a smaller set of your own (Burda et al.
            2016 held out 400).
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
        for name, (md5, _) in self.digests.items():
            try:
                self._path(name)
            except UserError:
                urls = [mirror + name + ".gz" for mirror in self.mirrors]
                download(urls, self._folders()[0] / f"{name}.gz", md5)

    def load(self, split: Split) -> Images:
        part = "t10k" if split == "test" else "train"
        pixels, labels = self._read(f"{part}-images-idx3-ubyte"), self._read(f"{part}-labels-idx1-ubyte")
        if labels.shape != pixels.shape[:1]:
            path = self._path(f"{part}-labels-idx1-ubyte")
            found = str(len(labels)) if labels.dim() == 1 else f"numbers of shape {list(labels.shape)}"
            raise UserError(f"{path}: expected {len(pixels)} labels, one for each image, found {found}")
        if pixels.shape[1:] != self.image_shape[1:]:
            path = self._path(f"{part}-images-idx3-ubyte")
            raise UserError(f"{path}: expected images of {self.image_shape[1:]}, found {tuple(pixels.shape[1:])}")
        images = Images(pixels[:, None], labels.long())
        return images if split == "test" else self._part_of_training(images, split)

    def _part_of_training(self, images: Images, split: Split) -> Images:
        assert images.labels is not None
        total = len(images.pixels)
        num_val = min(10_000, max(1, total // 6)) if self.num_val is None else self.num_val
        if num_val >= total:
            raise UserError(f"{type(self).__name__}: num_val is {num_val}; of {total} images none is left to train")
        part = slice(-num_val, None) if split == "val" else slice(0, -num_val)
        return Images(images.pixels[part], images.labels[part])

    def _read(self, name: str) -> Tensor:
        return read_idx(self._path(name), self.digests[name][1] if self.verify else None)

    def _path(self, name: str) -> Path:
        remedy = "download it (any command does, given a network) or pass --data.data_dir (make train DATA_DIR=...)"
        return find(self._folders(), idx_names(name), remedy)

    def _folders(self) -> list[Path]:
        """Its own; and `data_dir` itself where digests tell whose a file is: the look-alikes' have the same names."""
        own = Path(self.data_dir) / self.location
        return [own, Path(self.data_dir)] if all(contents for _, contents in self.digests.values()) else [own]


def idx_names(name: str) -> list[str]:
    """By what names a file is in circulation: `train-images-idx3-ubyte`, `train-images.idx3-ubyte`, either of them in a
    folder of such a name (as Kaggle's copy unpacks); raw, or else as `.gz`."""
    names = [name, name.replace("-idx", ".idx")]
    names += [f"{folder}/{name}" for folder in names for name in names]
    return names + [f"{name}.gz" for name in names]


class BinarizedMNIST(ImageDataModule):
    """MNIST binarised once and for all (Salakhutdinov & Murray 2008; Larochelle's files): 50,000 / 10,000 / 10,000.

    The three text files `binarized_mnist_{train,valid,test}.amat` (784 values 0 or 1 in a line, no labels) lie in
    `<data_dir>/binarized_mnist`. Missing files are downloaded. Each file is parsed once, into a file of bits beside it.

    Args:
        data_dir: The folder that holds `binarized_mnist`.
        verify: Check the digest of the images; the digest does not depend on the spaces of the text.
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
        for name, count, digest in self.files.values():
            text = self._folder / f"{name}.amat"
            if not text.is_file() and not text.with_suffix(".npy").is_file():
                check = partial(self._parsed, text, count, digest)
                download([f"{self.url}{name}.amat"], text, check=check)

    def load(self, split: Split) -> Images:
        bits = self._read(*self.files[split])  # uint8 [N, 98]
        pixels = np.unpackbits(bits, axis=1).reshape(-1, *self.image_shape)
        return Images(torch.from_numpy(pixels), max_value=1)

    @property
    def _folder(self) -> Path:
        return Path(self.data_dir) / self.location

    def _read(self, name: str, count: int, digest: str) -> np.ndarray:
        """The packed bits of a file: from the cache where it is of this text, else parsed, and cached once verified."""
        cache, text = self._folder / f"{name}.npy", self._folder / f"{name}.amat"
        if cache.is_file() and (not text.is_file() or cache.stat().st_mtime_ns == text.stat().st_mtime_ns):
            return self._verified(cache, _load_cache(cache), count, digest)
        remedy = "download it (any command does, given a network) or pass --data.data_dir (make train DATA_DIR=...)"
        bits = self._parsed(text, count, digest, read_bytes(find([self._folder], [text.name], remedy)))
        _save_cache(cache, bits, text.stat().st_mtime_ns)
        return bits

    def _parsed(self, path: Path, count: int, digest: str, raw: bytes) -> np.ndarray:
        """The packed bits of a file's text."""
        return self._verified(path, np.packbits(parse_amat(path, raw, self.image_shape[1:]), axis=1), count, digest)

    def _verified(self, path: Path, bits: np.ndarray, count: int, digest: str) -> np.ndarray:
        if self.verify and len(bits) != count:
            raise UserError(f"{path}: expected {count} images, found {len(bits)}; delete it and fetch it again")
        check_digest(path, digest if self.verify else None, hashlib.sha256(bits.tobytes()).hexdigest())
        return bits


def parse_amat(path: Path, raw: bytes, image_size: Shape) -> np.ndarray:
    """The text form, read from `path`: one image a line, values 0 or 1 between blanks. Returns uint8 [N, H * W]."""
    if raw.startswith(b"MATLAB"):
        raise UserError(f"{path}: a MATLAB file, expected text with values 0 and 1 between blanks; fetch that form")
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
    """Beside the text and with its time, unless the folder is read-only (for root too, whom no file mode stops)."""
    buffer = io.BytesIO()
    np.save(buffer, bits)
    try:
        if not path.parent.stat().st_mode & stat.S_IWUSR:
            raise PermissionError(errno.EACCES, "it is read-only")
        write_whole(path, buffer.getvalue())
        os.utime(path, ns=(mtime_ns, mtime_ns))
    except OSError as error:
        rank_zero_info(f"{path.parent}: no cache kept ({error.strerror}); its text files are parsed at every start")


def _load_cache(path: Path) -> np.ndarray:
    remedy = "delete it: it is made anew from the .amat file"
    try:
        bits = np.array(np.lib.format.open_memmap(path, mode="r"))  # mapped: no memory for rows that are not there
    except Exception as error:  # numpy ends a broken header in whatever it trips over
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); {remedy}") from error
    if bits.dtype != np.uint8 or bits.shape[1:] != (-(-28 * 28 // 8),):
        raise UserError(f"{path}: cannot be read (expected bytes [N, 98], found {bits.dtype} {bits.shape}); {remedy}")
    return bits
