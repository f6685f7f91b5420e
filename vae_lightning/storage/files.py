"""Reading and fetching the files of data sets: digests, whole files or none, errors in one line."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import math
import os
import struct
import urllib.request
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from vae_lightning.runs.whole_files import write_whole
from vae_lightning.types import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""With which some editors begin a text in UTF-8."""
_IDX_UINT8 = 0x08
MAX_FILE_BYTES = 2**30  # of one file of a data set, unpacked; the largest that is read whole, of EMNIST, has 547 MB


class MissingFileError(UserError):
    """A file of a data set that is in none of the places where it is looked for."""


def read_bytes(path: Path) -> bytes:
    """The contents of a file, decompressed where its name ends in `.gz`; refused above `MAX_FILE_BYTES`."""
    try:
        require_file(path)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            contents = file.read(MAX_FILE_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it and fetch it again") from error
    if len(contents) > MAX_FILE_BYTES:
        raise UserError(f"{path}: holds more than {MAX_FILE_BYTES:,} bytes; delete it and fetch it again")
    return contents


def require_file(path: Path) -> None:
    """Raise where `path` is a pipe, a socket or a device: to open a pipe that nobody writes to would wait for ever."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: a pipe, a socket or a device, expected a file")


def read_file(path: Path) -> bytes:
    """The contents of a file as they are."""
    try:
        require_file(path)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_idx(path: Path, md5: str | None = None) -> Tensor:
    """An IDX file (http://yann.lecun.com/exdb/mnist) of bytes as a uint8 tensor. `md5` is that of the raw contents."""
    raw = read_bytes(path)
    if len(raw) < 4 or raw[:3] != bytes([0, 0, _IDX_UINT8]) or not raw[3]:
        expected = "00 00 08 and a number of dimensions"
        raise UserError(f"{path}: not an IDX file of bytes: it begins with {raw[:4].hex(' ')}, expected {expected}")
    num_dims = raw[3]
    start = 4 + 4 * num_dims
    shape = struct.unpack_from(f">{num_dims}I", raw.ljust(start, b"\0"), 4)
    body = len(raw) - start
    if body < 1 or body != math.prod(shape):
        raise UserError(f"{path}: truncated or overlong: its header says shape {shape}, found {body} bytes of data")
    if md5 is not None:
        check_digest(path, md5, hashlib.md5(raw, usedforsecurity=False).hexdigest())
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=start).view(shape)


def check_digest(path: Path, expected: str | None, found: str) -> None:
    """Raise where `found` is not what was `expected`; None expects nothing."""
    if expected is not None and found != expected:
        raise UserError(f"{path}: wrong digest: expected {expected}, found {found}; delete it and fetch it again")


def find(folders: Sequence[Path], names: Sequence[str], remedy: str) -> Path:
    """The first of `names` that lies in one of `folders`; else an error that says where it was looked for."""
    for folder in folders:
        for name in names:
            if (folder / name).is_file():
                return folder / name
    places = " or ".join(str(folder) for folder in folders)
    raise MissingFileError(f"{names[0]} not found in {places}; {remedy}")


def download(
    urls: Sequence[str],
    path: Path,
    md5: str | None = None,
    timeout: float = 30.0,
    check: Callable[[bytes], object] = len,
) -> None:
    """Fetch `path` from the first of `urls` that answers with it.

    `md5` is that of the file as it is sent; `check` raises UserError where the contents are not what they should be.
    """
    failures = []
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as reply:
                contents = reply.read()
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {getattr(error, 'reason', error)}")
            continue
        if md5 is not None and (found := hashlib.md5(contents, usedforsecurity=False).hexdigest()) != md5:
            failures.append(f"{url}: wrong digest: expected {md5}, found {found} ({len(contents)} bytes)")
            continue
        try:
            check(contents)
        except UserError as error:
            failures.append(f"{url}: {error}")
            continue
        try:
            write_whole(path, contents)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written ({error.strerror}); choose --data.data_dir") from error
        return
    raise UserError(
        f"{path.name} could not be downloaded to {path.parent} ({'; '.join(failures)}); "
        f"put {path.name} there by hand, or point --data.data_dir (make train DATA_DIR=...) at a folder that has it"
    )


class Listing(NamedTuple):
    """`files` in order of name; a digest of their names, sizes and times; how many others there are, by ending."""

    files: list[Path]
    digest: str
    others: Counter[str]


def list_folder(folder: Path, suffixes: Collection[str]) -> Listing:
    """The files below `folder` that end so, hidden ones left out.

    Links are followed, but not to a folder that they lie in, `folder`'s own parents included: that would list what lies
    beside `folder` too. A link to nothing is listed: who reads it will say so. Raises UserError where a folder cannot
    be listed.
    """
    found: list[tuple[str, int, int]] = []
    others = Counter[str]()
    parents = frozenset((about.st_dev, about.st_ino) for about in map(Path.stat, folder.resolve().parents))
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(str(folder), parents)]
    while waiting:
        place, above = waiting.pop()
        identity, entries = _scan(place)
        if identity in above:
            print(f"{place}: a link to a folder that it lies in; not followed", flush=True)
            continue
        for entry in entries:
            if _is_folder(entry):
                waiting.append((entry.path, above | {identity}))
            elif (suffix := Path(entry.name).suffix.lower()) in suffixes:
                found.append((entry.path, *_size_and_time(entry)))
            else:
                others[suffix] += 1
    found.sort()
    start = len(str(folder)) + 1
    digest = hashlib.sha256()
    for path, size, mtime_ns in found:
        digest.update(f"{path[start:]}\0{size}\0{mtime_ns}\n".encode(errors="surrogateescape"))
    return Listing([Path(path) for path, _, _ in found], digest.hexdigest(), others)


def _scan(folder: str) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """Which folder it is, by whatever path, and what is in it that is not hidden."""
    try:
        about = os.stat(folder)  # noqa: PTH116 - a string, as scandir's are
        with os.scandir(folder) as entries:
            return (about.st_dev, about.st_ino), [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # of a link to itself
        return False


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        about = entry.stat()
    except OSError:  # of a link to nothing
        return -1, 0
    return about.st_size, about.st_mtime_ns
