"""Read a zip of images in place: no member is written to the disk, and each is checked before it is used."""

from __future__ import annotations

import io
import os
import stat
import struct
import weakref
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

from vae_lightning.storage.decode import is_web_page
from vae_lightning.storage.files import require_file
from vae_lightning.types import UserError

MAX_MEMBERS = 1_000_000
MAX_MEMBER_BYTES = 100_000_000
_MAX_DIRECTORY_BYTES = 256_000_000  # a million members with long names
_ENTRY = b"PK\x01\x02"  # the first bytes of each entry of the directory
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field that follow
_SLACK = 512  # bytes read beyond a member, for its name and extra field, so that one read is enough
_ENCRYPTED_OR_PATCHED = 0x01 | 0x20 | 0x40


class _Member(NamedTuple):
    offset: int  # where its local header begins
    compressed_size: int
    size: int
    crc: int
    method: int
    flags: int


class ImageArchive:
    """The members of a zip file, read by name. Several threads and forked processes may read one archive.

    zipfile reads the directory. This class reads the members at their offsets, without a lock and in less Python than
    zipfile. The file is closed with the last reference to the archive.

    Args:
        path: The zip file.

    Raises:
        UserError: if the file is no zip file, if a member lies outside of the folder (`..`, absolute) or is a link, or
            if there are more than `MAX_MEMBERS` members.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            require_file(path)
            self._file = _Directory(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be opened ({error.strerror})") from error
        try:
            self._members = _members(self._file, path)
        finally:
            weakref.finalize(self, self._file.close)  # a broken archive is closed at once

    def names(self) -> list[str]:
        """The names of the members that are files, in the archive's order."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """Read a member and check its size and its CRC-32.

        Args:
            name: The member's name in the archive.

        Raises:
            UserError: if there is no such member, or if the member is larger than `MAX_MEMBER_BYTES` or than the
                directory says, broken, encrypted, or compressed by another method than deflate.
        """
        member = self._members.get(name)
        if member is None:
            raise UserError(f"{self.path}: has no member {name}")
        try:
            contents = _inflated(self._raw(member), member)
        except (OSError, ValueError, zlib.error) as error:
            raise UserError(f"{self.path}: member {name}: {error}; fetch the archive again") from error
        return contents

    def _raw(self, member: _Member) -> bytes:
        """Read the bytes of a member as they are stored, compressed or not."""
        if member.flags & _ENCRYPTED_OR_PATCHED:
            raise ValueError("encrypted, expected a plain one")
        if max(member.size, member.compressed_size) > MAX_MEMBER_BYTES:
            raise ValueError(f"{member.size:,} bytes, expected at most {MAX_MEMBER_BYTES:,}")
        record = self._read_at(member.offset, _LOCAL_HEADER.size + member.compressed_size + _SLACK)
        if len(record) < _LOCAL_HEADER.size or not record.startswith(b"PK\x03\x04"):
            raise ValueError("broken: its header is not where the directory says")
        _, name_length, extra_length = _LOCAL_HEADER.unpack_from(record)
        start = _LOCAL_HEADER.size + name_length + extra_length
        end = start + member.compressed_size
        if end > len(record):
            record += self._read_at(member.offset + len(record), end - len(record))
        if end > len(record):
            raise ValueError("truncated")
        return record[start:end]

    def _read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, offset)  # no seek: threads would share the position


class _Directory(io.FileIO):
    """A file for zipfile that refuses a directory of too many entries before zipfile parses it into memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise ValueError(f"a directory of {size:,} bytes, expected at most {_MAX_DIRECTORY_BYTES:,}")
        contents = super().read(size) or b""
        if (count := contents.count(_ENTRY)) > MAX_MEMBERS:
            raise ValueError(f"{count:,} members, expected at most {MAX_MEMBERS:,}")
        return contents


def _members(file: _Directory, path: Path) -> dict[str, _Member]:
    """Read the directory at the end of the file: the members that are files, by name."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:  # a broken directory can raise any exception in zipfile
        raise UserError(f"{path}: {_reason(file, error)}; fetch it again") from error
    members = {}
    for entry in entries:
        if fault := _fault(entry):
            raise UserError(f"{path}: member {entry.filename!r} is {fault}; do not trust this archive")
        if not entry.is_dir():
            members[entry.filename] = _Member(
                entry.header_offset,
                entry.compress_size,
                entry.file_size,
                entry.CRC,
                entry.compress_type,
                entry.flag_bits,
            )
    return members


def _fault(entry: zipfile.ZipInfo) -> str | None:
    """Why a member must not be in an archive of images; None if it may."""
    parts = entry.filename.replace("\\", "/").split("/")
    if ".." in parts:
        return "outside of the archive's folder (`..`)"
    if not parts[0] or parts[0][1:2] == ":":
        return "an absolute path"
    if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a device"
    return None


def _reason(file: _Directory, error: Exception) -> str:
    """Why a file is no zip file, judged by its first bytes."""
    size = os.fstat(file.fileno()).st_size
    start = os.pread(file.fileno(), 1024, 0)
    if not size:
        return "empty, expected a zip archive"
    if is_web_page(start):
        return f"a web page of {size:,} bytes (such as Google Drive's notice of a used-up quota), not a zip archive"
    if start.startswith(b"PK\x03\x04"):
        kind = "truncated or broken" if isinstance(error, zipfile.BadZipFile) else "unusable"
        return f"{kind} zip archive of {size:,} bytes ({' '.join(str(error).split())})"
    return f"not a zip archive: it begins with {start[:4].hex(' ')}, expected 50 4b 03 04"


def _inflated(raw: bytes, member: _Member) -> bytes:
    """Decompress a member; stop one byte after the size that the directory states."""
    if member.method == zipfile.ZIP_STORED:
        contents = raw
    elif member.method == zipfile.ZIP_DEFLATED:
        contents = zlib.decompressobj(-zlib.MAX_WBITS).decompress(raw, member.size + 1)
    else:
        raise ValueError(f"compressed by method {member.method}, expected 0 (stored) or 8 (deflated)")
    if len(contents) != member.size:
        relation = "more" if len(contents) > member.size else "less"
        raise ValueError(f"holds {relation} than the {member.size:,} bytes it states")
    if zlib.crc32(contents) != member.crc:
        raise ValueError(f"wrong CRC-32: expected {member.crc:08x}, found {zlib.crc32(contents):08x}")
    return contents
