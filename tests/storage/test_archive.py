"""Zip files of images: whole members, or one line that names the archive and the member; nothing unsafe, no disk."""

from __future__ import annotations

import gc
import io
import re
import stat
import struct
import tracemalloc
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from vae_lightning.data import archive as module
from vae_lightning.storage.archive import ImageArchive
from vae_lightning.types import UserError

FILES = {f"faces/{i:06d}.jpg": np.random.default_rng(i).bytes(3000 + 97 * i) for i in range(40)}


def write(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, contents in files.items():
            archive.writestr(name, contents)
    return path


def patch(path: Path, signature: bytes, at: int, value: bytes) -> None:
    """Overwrite the field that begins `at` bytes after the start of the first `signature` in the file."""
    raw = bytearray(path.read_bytes())
    start = raw.index(signature) + at
    raw[start : start + len(value)] = value
    path.write_bytes(raw)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        ImageArchive(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{path}: ")


def unreadable(path: Path, name: str = "a.jpg") -> str:
    """The message for a member that cannot be read, in an archive that can be opened."""
    archive = ImageArchive(path)
    with pytest.raises(UserError) as caught:
        archive.read(name)
    assert str(caught.value).startswith(f"{path}: member {name}: ")
    return str(caught.value)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_members_are_read_as_they_were_written(tmp_path: Path, method: int) -> None:
    files = {**FILES, "empty.jpg": b"", "zeros.png": bytes(100_000), "ein Gesicht – ü.jpg": b"x"}
    archive = ImageArchive(write(tmp_path / "a.zip", {**files, "faces/": b""}, method))
    assert archive.names() == list(files)
    assert {name: archive.read(name) for name in archive.names()} == files


def test_members_with_long_headers_and_a_front_of_other_bytes(tmp_path: Path) -> None:
    """A local header's extra field can be 65,535 bytes; a self-extracting archive begins with a program."""
    entry = zipfile.ZipInfo("a.jpg")
    entry.extra = struct.pack("<HH", 0xCAFE, 60_000) + bytes(60_000)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(entry, b"contents")
        file.writestr("b.jpg", b"others")
    (tmp_path / "a.zip").write_bytes(b"#!/bin/sh\n" * 100 + buffer.getvalue())
    archive = ImageArchive(tmp_path / "a.zip")
    assert [archive.read(name) for name in ("a.jpg", "b.jpg")] == [b"contents", b"others"]


def test_streamed_members(tmp_path: Path) -> None:
    """The sizes of streamed members are stored after the members and in the directory, not before the members."""

    class Pipe(io.RawIOBase):
        def __init__(self) -> None:
            self.written = b""

        def writable(self) -> bool:
            return True

        def write(self, data: bytes) -> int:  # type: ignore[override]
            self.written += bytes(data)
            return len(data)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
        archive.writestr("a.jpg", b"contents")
    (tmp_path / "a.zip").write_bytes(pipe.written)
    assert ImageArchive(tmp_path / "a.zip").read("a.jpg") == b"contents"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
def test_eight_threads_read_what_one_reads(tmp_path: Path, method: int) -> None:
    archive = ImageArchive(write(tmp_path / "a.zip", FILES, method))
    names = archive.names() * 50
    with ThreadPoolExecutor(8) as pool:
        assert all(contents == FILES[name] for name, contents in zip(names, pool.map(archive.read, names), strict=True))


def test_nothing_is_written_and_the_file_is_closed(tmp_path: Path) -> None:
    """The file is closed with the last reference; a `ResourceWarning` would be an error here."""
    path = write(tmp_path / "a.zip", FILES)
    archive = ImageArchive(path)
    archive.read("faces/000000.jpg")
    file = archive._file
    assert not file.closed
    del archive
    gc.collect()
    assert file.closed
    assert list(tmp_path.iterdir()) == [path]


# Files that are no archives


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.zip") == "cannot be opened (No such file or directory)"
    assert refused(tmp_path) == "cannot be opened (Is a directory)"


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "empty, expected a zip archive; fetch it again"),
        (b"<!DOCTYPE html><html>" + b" " * 2000, r"a web page of 2,021 bytes \(such as Google Drive's notice"),
        (b"\x1f\x8b" + bytes(500), "not a zip archive: it begins with 1f 8b 00 00, expected 50 4b 03 04"),
        (b"PK", "not a zip archive"),
    ],
    ids=["empty", "html", "gzip", "two-bytes"],
)
def test_what_is_no_archive(tmp_path: Path, contents: bytes, message: str) -> None:
    (tmp_path / "a.zip").write_bytes(contents)
    assert re.match(message, refused(tmp_path / "a.zip"))


@pytest.mark.parametrize("part", [0.01, 0.5, 0.99])
def test_a_truncated_archive(tmp_path: Path, part: float) -> None:
    raw = write(tmp_path / "a.zip", FILES).read_bytes()
    raw = raw[: int(part * len(raw))]
    (tmp_path / "a.zip").write_bytes(raw)
    assert refused(tmp_path / "a.zip").startswith(f"truncated or broken zip archive of {len(raw):,} bytes")


def test_a_hole_in_the_middle(tmp_path: Path) -> None:
    """The first half is missing: a member would begin before the file, or is no member."""
    raw = write(tmp_path / "a.zip", FILES).read_bytes()
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04" + raw[len(raw) // 2 :])
    archive = ImageArchive(tmp_path / "a.zip")
    with pytest.raises(UserError, match=r"a\.zip: member faces/000000\.jpg: "):
        archive.read("faces/000000.jpg")
    assert archive.read("faces/000039.jpg") == FILES["faces/000039.jpg"]


def test_damage_ends_in_the_member_or_in_one_line(tmp_path: Path) -> None:
    random, path = np.random.default_rng(0), tmp_path / "a.zip"
    files = dict(list(FILES.items())[:3])
    raw = write(path, files, zipfile.ZIP_DEFLATED).read_bytes()
    num_refused = 0
    for number in range(300):
        broken = bytearray(raw if number % 4 else raw[: random.integers(len(raw))])
        for _ in range(random.integers(1, 4)):
            where = random.integers(len(broken)) if number % 2 else -random.integers(1, min(250, len(broken)) + 1)
            broken[where] = random.integers(256)
        path.write_bytes(broken)
        try:
            archive = ImageArchive(path)
            for name in archive.names():
                assert archive.read(name) in files.values()
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017
            num_refused += 1
    assert 150 < num_refused < 300


# Archives that are not trusted


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("/etc/passwd", "an absolute path"),
        ("C:\\a.jpg", "an absolute path"),
        ("\\\\host\\a.jpg", "an absolute path"),
        ("../a.jpg", "outside of the archive's folder"),
        ("faces/../../a.jpg", "outside of the archive's folder"),
        ("faces\\..\\..\\a.jpg", "outside of the archive's folder"),
    ],
)
def test_paths_that_lead_outside(tmp_path: Path, name: str, fault: str) -> None:
    text = refused(write(tmp_path / "a.zip", {"good.jpg": b"x", name: b"x"}))
    assert f"member {name!r} is {fault}" in text


def test_dots_in_names_are_no_harm(tmp_path: Path) -> None:
    files = {"a..b.jpg": b"x", "..jpg/...jpg": b"y", "./c.jpg": b"z"}
    assert ImageArchive(write(tmp_path / "a.zip", files)).names() == list(files)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_devices(tmp_path: Path, kind: int) -> None:
    entry = zipfile.ZipInfo("a.jpg")
    entry.external_attr = (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(entry, "/etc/passwd")
    assert "member 'a.jpg' is a link or a device" in refused(tmp_path / "a.zip")


def test_too_many_members_are_not_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(module, "MAX_MEMBERS", len(FILES))
    assert len(ImageArchive(path).names()) == len(FILES)
    monkeypatch.setattr(module, "MAX_MEMBERS", len(FILES) - 1)
    monkeypatch.setattr(zipfile.ZipInfo, "__init__", None)  # called if an entry were parsed
    assert "40 members, expected at most 39" in refused(path)


def test_an_endless_directory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.zip", FILES)
    monkeypatch.setattr(module, "_MAX_DIRECTORY_BYTES", 1000)
    assert re.search("a directory of [0-9,]+ bytes, expected at most 1,000", refused(path))


# Members that are refused


def test_a_wrong_crc(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.jpg": b"contents", "b.jpg": b"others"})
    patch(path, b"contents", 0, b"C")
    expected, found = zlib.crc32(b"contents"), zlib.crc32(b"Contents")
    assert f"wrong CRC-32: expected {expected:08x}, found {found:08x}" in unreadable(path)
    assert ImageArchive(path).read("b.jpg") == b"others"


def test_a_broken_deflate_stream(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.jpg": b"contents" * 100}, zipfile.ZIP_DEFLATED)
    patch(path, b"a.jpg", len("a.jpg"), b"\xff")
    assert "Error -3 while decompressing data" in unreadable(path)


def test_a_directory_that_points_elsewhere(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", {"a.jpg": b"contents"})
    patch(path, b"PK\x03\x04", 0, b"KP")
    assert "its header is not where the directory says" in unreadable(path)


def test_a_member_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", FILES)
    with pytest.raises(UserError, match=f"^{path}: has no member faces/x.jpg$"):
        ImageArchive(path).read("faces/x.jpg")


@pytest.mark.parametrize("flag", [0x01, 0x20, 0x40])
def test_an_encrypted_member(tmp_path: Path, flag: int) -> None:
    path = write(tmp_path / "a.zip", {"a.jpg": b"contents"})
    patch(path, b"PK\x01\x02", 8, struct.pack("<H", flag))
    assert "encrypted, expected a plain one" in unreadable(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, 99])
def test_another_compression(tmp_path: Path, method: int) -> None:
    path = write(tmp_path / "a.zip", {"a.jpg": b"contents"}, method if method != 99 else zipfile.ZIP_STORED)
    if method == 99:
        patch(path, b"PK\x01\x02", 10, struct.pack("<H", 99))
    assert f"compressed by method {method}, expected 0 (stored) or 8 (deflated)" in unreadable(path)


def test_a_member_that_says_it_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gigabyte of zeros takes a megabyte in a zip. Such a member is refused by its stated size, and not inflated."""
    path = write(tmp_path / "a.zip", {"a.jpg": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)
    assert len(ImageArchive(path).read("a.jpg")) == 10_000_000
    patch(path, b"PK\x01\x02", 24, struct.pack("<I", 100_000_001))
    monkeypatch.setattr(module, "_inflated", None)
    assert "100,000,001 bytes, expected at most 100,000,000" in unreadable(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize(("states", "relation"), [(1000, "more"), (100_000, "less")])
def test_a_member_of_another_size_than_it_states(tmp_path: Path, method: int, states: int, relation: str) -> None:
    path = write(tmp_path / "a.zip", {"a.jpg": bytes(50_000)}, method)
    patch(path, b"PK\x01\x02", 24, struct.pack("<I", states))
    assert f"holds {relation} than the {states:,} bytes it states" in unreadable(path)


def test_a_lie_about_the_size_does_not_cost_memory() -> None:
    compress = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    raw = compress.compress(bytes(50_000_000)) + compress.flush()
    tracemalloc.start()
    with pytest.raises(ValueError, match="holds more than the 1,000 bytes"):
        module._inflated(raw, module._Member(0, len(raw), 1000, 0, zipfile.ZIP_DEFLATED, 0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
