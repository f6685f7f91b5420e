"""Write files whole or not at all; the file lock and the file digest of the whole package."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

_PART = ".vae_lightning.part"  # the suffix of a file that is being written
_CHUNK_BYTES = 2**20


def write_whole(path: Path, contents: bytes) -> None:
    """Write `contents` to `path` through `whole_file`.

    Args:
        path: the name of the file.
        contents: the bytes of the whole file.

    Raises:
        OSError: if the file cannot be written; an older file of that name stays unchanged.
    """
    with whole_file(path) as file:
        file.write(contents)


@contextmanager
def whole_file(path: Path, before_rename: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """Open a new file beside `path`, to write and to read. At the end the file is synced and renamed to `path`.

    A process that is killed before the end leaves an unfinished file; the next call in the same folder removes it.

    Args:
        path: the final name of the file.
        before_rename: called between the sync and the rename.
    """
    if not path.name:  # of an empty path or of "."
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(path.parent)
    part, file = _open_part(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if before_rename is not None:
                before_rename()
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_stale_parts(folder: Path) -> None:
    """Remove the unfinished files of `whole_file` that no running process has locked.

    Args:
        folder: the folder to clean; its subfolders are left alone.
    """
    for part in folder.glob(f".*{_PART}"):
        with suppress(OSError), part.open("rb") as file:  # another process may have removed the file
            if try_lock(file):
                part.unlink()


def _open_part(path: Path) -> tuple[Path, BinaryIO]:
    """Open a new file beside `path`, locked until the file is closed."""
    while True:
        # a random name, because two processes in two containers may have the same id
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
        file = part.open("x+b")
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)  # waits for a process that took the new file for a stale one
        if os.fstat(file.fileno()).st_nlink:  # else another process removed the file before it was locked
            return part, file
        file.close()


def try_lock(file: IO[Any], shared: bool = False) -> bool | None:
    """Try to lock an open file without waiting. The lock lasts until the file is closed or the process ends.

    Returns True if the lock is ours, False if another process holds the lock, None if the file system has no locks.

    Args:
        file: the open file.
        shared: whether others may hold such a lock, too; this suits a process that only looks.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process at a time run the block. The others print a line and wait.

    Args:
        path: the file of the lock; made if it does not exist, and left there.
    """
    with path.open("w") as file:
        if try_lock(file) is False:
            print(f"{path}: another process is preparing this data; waiting for it to end", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file of any size.

    Args:
        path: the file.
        algorithm: a name that `hashlib.new` knows.
    """
    with path.open("rb") as file:
        return digest(file, algorithm)


def digest(file: BinaryIO, algorithm: str = "sha256", length: int | None = None) -> str:
    """The hexadecimal digest of an open file.

    Args:
        file: the file, open for reading; its position changes.
        algorithm: a name that `hashlib.new` knows.
        length: the number of bytes from the start; None for the whole file.
    """
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    file.seek(0)
    left = os.fstat(file.fileno()).st_size if length is None else length
    while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
        hasher.update(chunk)
        left -= len(chunk)
    return hasher.hexdigest()
