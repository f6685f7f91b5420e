"""Checkpoint files: whole or not there under their name, with a digest of their own, and the last good one kept.

A checkpoint is torch's zip file; its zip comment is `sha256:<hex>`, the digest of all that stands before the comment.
Anything that reads zip files, torch.load among them, reads it as before.
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
_LENGTH = struct.Struct("<H")  # of the zip comment: the field that ends the file where there is none


class WholeFiles(CheckpointIO):
    """Written beside its place, synced, renamed; a new `last.ckpt` leaves the one before it as `previous.ckpt`.

    Lightning's own writes to $TMPDIR and copies from there, does not sync, and passes over a folder that it may not
    write to. A damaged `last.ckpt`, from which no run went on, does not take the place of the one before it.
    """

    def __init__(self) -> None:
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises UserError where it cannot be written: at once, with what was there before left as it was."""
        path = Path(path)
        try:
            with whole_file(path, lambda: self._keep_previous(path)) as file:
                torch.save(checkpoint, file)
                _sign(file)
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
            _keep(path, path.with_name(PREVIOUS))

    def load_checkpoint(
        self, path: str | Path, map_location: Callable | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Plain data alone, of a checkpoint's form, whatever `weights_only` says: see `check_form`."""
        check_whole(path)
        return check_form(load_plain(path, map_location or "cpu"), path, needed=["pytorch-lightning_version"])

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def check_whole(path: str | Path) -> None:
    """Raise where a file is not as it was written. One that has no digest of ours is held to zip's own checksums."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            reason = _damage(file)
    except OSError as error:
        reason = str(error.strerror)
    if reason:
        raise UserError(f"{path}: not a readable checkpoint: {reason}")


def _is_damaged(path: Path) -> bool:
    with path.open("rb") as file:
        return bool(_damage(file))


def _damage(file: BinaryIO) -> str:
    size = file.seek(0, os.SEEK_END)
    if not size:
        return "the file is empty"
    file.seek(0)
    start = file.read(4)
    if start != b"PK\x03\x04":
        return f"it begins with {start!r} and not as a zip file does"
    file.seek(max(0, size - _COMMENT))
    comment = file.read()
    if comment.startswith(_LABEL):
        signed = digest(file, length=size - _COMMENT - _LENGTH.size)
        return "" if signed == comment[len(_LABEL) :].decode(errors="replace") else "damaged: its digest is another"
    try:
        broken = zipfile.ZipFile(file).testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError):
        return f"torn off after {size:,} bytes"
    return f"damaged: {broken} has a wrong checksum" if broken else ""


def _sign(file: BinaryIO) -> None:
    length = file.seek(0, os.SEEK_END) - _LENGTH.size
    comment = _LABEL + digest(file, length=length).encode()
    file.seek(length)
    file.write(_LENGTH.pack(len(comment)) + comment)


def _keep(path: Path, previous: Path) -> None:
    """By a second name, so that the first is never without a file; by a rename where links are not known."""
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
        with suppress(OSError):  # some network file systems know no sync of a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _system_error(error: BaseException | None) -> str | None:
    """The system's word for what went wrong: torch's zip writer wraps it in an error of its own."""
    while error is not None:
        if isinstance(error, OSError):
            return str(error.strerror or error)
        error = error.__cause__ or error.__context__
    return None
