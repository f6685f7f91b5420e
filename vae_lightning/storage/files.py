"""Read, list and download the files of data sets: whole files or none, and errors of one line that name the file."""

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

from vae_lightning.runs.suggestions import nearest
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.types import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""The bytes that some editors write at the start of a text in UTF-8."""
_IDX_UINT8 = 0x08
MAX_FILE_BYTES = 2**30
"""The limit of one file, unpacked. The largest file that is read at once (EMNIST) has 547 MB."""


class MissingFileError(UserError):
    """A file of a data set is in none of the folders where it was searched."""


def read_bytes(path: Path) -> bytes:
    """Read a file; decompress it if its name ends in `.gz`.

    Args:
        path: The file.

    Raises:
        UserError: if the file cannot be read, or holds more than `MAX_FILE_BYTES` bytes after decompression.
    """
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
    """Refuse a pipe, a socket or a device, because opening a pipe without a writer would wait for ever.

    Args:
        path: The path to check. A folder or a missing file passes.

    Raises:
        UserError: if `path` is a pipe, a socket or a device.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path}: a pipe, a socket or a device, expected a file")


def read_file(path: Path) -> bytes:
    """Read a file without decompression and without a limit of size.

    Args:
        path: The file.

    Raises:
        UserError: if the file cannot be read.
    """
    try:
        require_file(path)
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_idx(path: Path, md5: str | None = None) -> Tensor:
    """Read an IDX file (http://yann.lecun.com/exdb/mnist) of bytes as a uint8 tensor.

    Args:
        path: The file; decompressed if its name ends in `.gz`.
        md5: The expected MD5 of the decompressed contents; None to skip the check.

    Raises:
        UserError: if the file is no IDX file of bytes, is truncated or overlong, or has another digest.
    """
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
    """Compare two digests.

    Args:
        path: The file, for the message.
        expected: The expected digest; None to skip the check.
        found: The digest of the file.

    Raises:
        UserError: if the digests differ.
    """
    if expected is not None and found != expected:
        raise UserError(f"{path}: wrong digest: expected {expected}, found {found}; delete it and fetch it again")


def find(folders: Sequence[Path], names: Sequence[str], remedy: str) -> Path:
    """Search the folders one after the other and return the first file with one of the names.

    Args:
        folders: Where to search.
        names: The names of the file, the preferred one first.
        remedy: What the user can do if there is no such file; the end of the message.

    Raises:
        MissingFileError: if no folder holds the file. The message lists the folders.
    """
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
    """Download a file from the first address that sends the right contents, and write it whole.

    Args:
        urls: Addresses of the same file, tried in this order.
        path: Where the file is written.
        md5: The expected MD5 of the file as it is sent; None to skip the check.
        timeout: Seconds without an answer after which an address is given up.
        check: Called with the contents; raises UserError if they are wrong.

    Raises:
        UserError: if no address sends the right contents, or if the file cannot be written.
    """
    failures = []
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=timeout) as reply:
                contents = reply.read()
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{url}: {getattr(error, 'reason', error)}")
            continue
        if md5 is not None and (digest := hashlib.md5(contents, usedforsecurity=False).hexdigest()) != md5:
            failures.append(f"{url}: wrong digest: expected {md5}, found {digest} ({len(contents)} bytes)")
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
    """The files of a folder, as `list_folder` returns them."""

    files: list[Path]
    """In the order of their names."""
    digest: str
    """Changes if a name, a size or a time of change does."""
    others: Counter[str]
    """The number of other files, by their ending."""


def no_folder(folder: Path) -> str:
    """Return in words that a folder does not exist, with a folder of nearly its name, else the nearest one above it.

    Args:
        folder: The folder, or a file that stands in its place.
    """
    if folder.exists():
        return f"{folder} is a file, not a folder"
    above = next(parent for parent in folder.absolute().parents if parent.is_dir())
    missing = folder.absolute().relative_to(above).parts[0]
    try:
        near = nearest(missing, [entry.name for entry in above.iterdir() if entry.is_dir()])
    except OSError:
        near = None
    place = above if near is None else above / near
    shown = place if folder.is_absolute() else Path(os.path.relpath(place))
    found = f"did you mean {shown}?" if near else f"the nearest folder that exists is {shown.absolute()}"
    return f"{folder}: there is no such folder ({found})"


def list_folder(folder: Path, suffixes: Collection[str]) -> Listing:
    """List the files below a folder that have one of the endings. Hidden files and folders are left out.

    Links are followed, except a link to a folder that contains the link. This includes the parents of `folder`: such a
    link would add files from outside of `folder`. A link to nothing is listed; reading it will fail with its name.

    Args:
        folder: The folder, searched with all folders below it.
        suffixes: The endings in lower case, with the dot.

    Raises:
        UserError: if a folder cannot be listed.
    """
    listed: list[tuple[str, int, int]] = []  # path, size, time
    others = Counter[str]()
    parents = frozenset((status.st_dev, status.st_ino) for status in map(Path.stat, folder.resolve().parents))
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(str(folder), parents)]  # each with the folders above it
    while waiting:
        subfolder, above = waiting.pop()
        identity, entries = _scan(subfolder)
        if identity in above:
            print(f"{subfolder}: a link to a folder that contains it; not followed", flush=True)
            continue
        for entry in entries:
            if _is_folder(entry):
                waiting.append((entry.path, above | {identity}))
            elif (suffix := Path(entry.name).suffix.lower()) in suffixes:
                listed.append((entry.path, *_size_and_time(entry)))
            else:
                others[suffix] += 1
    listed.sort()
    start = len(str(folder)) + 1
    digest = hashlib.sha256()
    for path, size, mtime_ns in listed:
        digest.update(f"{path[start:]}\0{size}\0{mtime_ns}\n".encode(errors="surrogateescape"))
    return Listing([Path(path) for path, _, _ in listed], digest.hexdigest(), others)


def _scan(folder: str) -> tuple[tuple[int, int], list[os.DirEntry[str]]]:
    """The identity of a folder (device and inode, the same by every path), and its entries that are not hidden."""
    try:
        status = os.stat(folder)  # noqa: PTH116 - the path is a string from scandir
        with os.scandir(folder) as entries:
            return (status.st_dev, status.st_ino), [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:  # a link to nothing
        return -1, 0
    return status.st_size, status.st_mtime_ns
