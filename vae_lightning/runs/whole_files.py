"""Files that are whole under their name or not there at all; the lock and the digest that everybody uses."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

_PART = ".vae_lightning.part"  # the end of the name of a file that is being written
_CHUNK_BYTES = 2**20


def write_whole(path: Path, contents: bytes) -> None:
    """Write `contents` to `path` through `whole_file`.

    Raises:
        OSError: if the file cannot be written; a file of that name is then left as it was.
    """
    with whole_file(path) as file:
        file.write(contents)


@contextmanager
def whole_file(path: Path, before_rename: Callable[[], None] | None = None) -> Iterator[BinaryIO]:
    """A new file beside `path`, to write and to read, which is synced and renamed to `path` at the end.

    A process that is killed on the way leaves its part behind; the next call in the same folder removes the part.

    Args:
        path: the name that the file takes once it is whole.
        before_rename: called after the file has been synced and before it takes its name.
    """
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
    """Remove the unfinished files of `whole_file` in `folder` that no running process holds locked."""
    for part in folder.glob(f".*{_PART}"):
        with suppress(OSError), part.open("rb") as file:  # another process may have removed it
            if try_lock(file):
                part.unlink()


def _open_part(path: Path) -> tuple[Path, BinaryIO]:
    """A new file beside `path`, locked until it is closed."""
    while True:
        # a random name, because two processes in two containers may have the same id
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_PART}")
        file = part.open("x+b")
        try_lock(file)
        if os.fstat(file.fileno()).st_nlink:  # else another process removed the file before it was locked
            return part, file
        file.close()


def try_lock(file: IO[Any]) -> bool | None:
    """Lock an open file until it is closed; the system also lets go of the lock when its process ends.

    True if the lock is ours, False if another process holds it, None if the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process at a time run the block; the others wait for the lock on `path`.

    `path` is a file that is made for the lock and stays. A process that has to wait says so.
    """
    with path.open("w") as file:
        if try_lock(file) is False:
            print(f"{path}: another process is preparing this data; waiting for it", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file of any size."""
    with path.open("rb") as file:
        return digest(file, algorithm)


def digest(file: BinaryIO, algorithm: str = "sha256", length: int | None = None) -> str:
    """The hexadecimal digest of an open file's first `length` bytes, or of all of it."""
    found = hashlib.new(algorithm, usedforsecurity=False)
    file.seek(0)
    left = os.fstat(file.fileno()).st_size if length is None else length
    while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
        found.update(chunk)
        left -= len(chunk)
    return found.hexdigest()
