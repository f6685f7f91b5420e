"""Read and write checkpoint files: written whole or not at all, with a digest, and with the last good file kept.

A checkpoint is the zip file that torch writes. Its zip comment is `sha256:<hex>`, the digest of all bytes before the
comment. Programs that read zip files, such as torch.load, ignore the comment.
"""

from __future__ import annotations

import errno
import os
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO

from vae_lightning.runs.checkpoint_form import check_form, load_plain
from vae_lightning.runs.whole_files import digest, whole_file
from vae_lightning.types import UserError

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

_LABEL = b"sha256:"
_COMMENT = len(_LABEL) + 64
_LENGTH = struct.Struct("<H")  # the length of the zip comment; this field ends a file without a comment


class WholeFiles(CheckpointIO):
    """Write each checkpoint to a temporary file beside its place, sync the file, and rename it.

    A new `last.ckpt` keeps the one before it as `previous.ckpt`, unless the old `last.ckpt` is damaged. Lightning's
    plugin writes to $TMPDIR and copies from there, does not sync, and silently skips a folder without write permission.
    """

    def __init__(self) -> None:
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint. If writing fails, the file that was there before stays unchanged.

        Args:
            checkpoint: the contents.
            path: the name of the file.
            storage_options: ignored; Lightning passes it.

        Raises:
            UserError: if the file cannot be written.
        """
        path = Path(path)
        try:
            with whole_file(path, lambda: self._keep_previous(path)) as file:
                torch.save(checkpoint, file)
                _append_digest(file)
            self._written.add(path)
            _sync_folder(path.parent)
        except (OSError, RuntimeError) as error:
            reason = _system_error(error)
            if reason is None:
                raise
            kept = f"; {path.name} is still the one written before" if path.exists() else ""
            raise UserError(f"{path}: the checkpoint cannot be written ({reason}){kept}") from error

    def _keep_previous(self, path: Path) -> None:
        if path.name == LAST and path.exists() and (path in self._written or not _is_damaged(path)):
            _link_or_rename(path, path.with_name(PREVIOUS))

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load plain data of a checkpoint's form (see `check_form`).

        Args:
            path: the file.
            map_location: the device that the tensors are loaded to.
            weights_only: ignored; plain data alone is loaded in any case.

        Raises:
            UserError: if the file is damaged or not a checkpoint.
        """
        check_whole(path)
        return check_form(load_plain(path, map_location or "cpu"), path, needed=["pytorch-lightning_version"])

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def check_whole(path: str | Path) -> None:
    """Raise if a file differs from what was written. A file without our digest is checked by the checksums of zip.

    Args:
        path: the checkpoint.

    Raises:
        UserError: with the damage that was found.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            reason = _find_damage(file)
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise UserError(f"{path}: not a readable checkpoint: {reason}")


def _is_damaged(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(_find_damage(file))


def _find_damage(file: BinaryIO) -> str:
    size = file.seek(0, os.SEEK_END)
    if not size:
        return "the file is empty"
    file.seek(0)
    start = file.read(4)
    if start != b"PK\x03\x04":
        return f"the first bytes are {start!r}, expected a zip file"
    file.seek(max(0, size - _COMMENT))
    comment = file.read()
    if comment.startswith(_LABEL):
        signed = digest(file, length=size - _COMMENT - _LENGTH.size)
        return "" if signed == comment[len(_LABEL) :].decode(errors="replace") else "damaged: its digest is wrong"
    try:
        broken = zipfile.ZipFile(file).testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError):
        return f"torn off after {size:,} bytes"
    return f"damaged: {broken} has a wrong checksum, or lies over another member" if broken else ""


def _append_digest(file: BinaryIO) -> None:
    length = file.seek(0, os.SEEK_END) - _LENGTH.size
    comment = _LABEL + digest(file, length=length).encode()
    file.seek(length)
    file.write(_LENGTH.pack(len(comment)) + comment)


def _link_or_rename(path: Path, previous: Path) -> None:
    """Give the file at `path` the second name `previous`, so that `path` always exists; rename if links are unknown."""
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise
        path.replace(previous)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot sync a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: BaseException | None) -> str | None:
    """The message of the operating system; torch's zip writer wraps the OSError in an error of another type."""
    while error is not None:
        if isinstance(error, OSError):
            return str(error.strerror or error)
        error = error.__cause__ or error.__context__
    return None
