"""Files of data sets are whole or absent, their digests are checked, and errors are one line that names the file."""

from __future__ import annotations

import gzip
import hashlib
import re
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests.helpers import idx_bytes
from vae_lightning.data import files
from vae_lightning.runs.whole_files import write_whole
from vae_lightning.storage.files import download, find, read_bytes, read_idx
from vae_lightning.types import UserError

CUBE = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def md5(contents: bytes) -> str:
    return hashlib.md5(contents, usedforsecurity=False).hexdigest()


@pytest.mark.parametrize("array", [CUBE, np.array([7], np.uint8)])
@pytest.mark.parametrize("gz", [False, True])
def test_idx_round_trip(tmp_path: Path, array: np.ndarray, gz: bool) -> None:
    path = tmp_path / ("a.gz" if gz else "a")
    raw = idx_bytes(array)
    path.write_bytes(gzip.compress(raw) if gz else raw)
    assert np.array_equal(read_idx(path, md5(raw)).numpy(), array)  # the digest of the decompressed contents


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not an IDX file"),
        (b"\x00\x00\x08", "not an IDX file"),
        (b"\x00\x00\x0d\x01" + idx_bytes(CUBE)[4:], "begins with 00 00 0d 01, expected 00 00 08"),
        (b"\x00\x00\x08\x00\x07", "begins with 00 00 08 00, expected 00 00 08 and a number of dimensions"),
        (b"<html>Not Found</html>", "begins with 3c 68 74 6d"),
        (idx_bytes(CUBE)[:-1], r"shape \(2, 3, 4\), found 23 bytes"),
        (idx_bytes(CUBE) + b"\x00", r"shape \(2, 3, 4\), found 25 bytes"),
        (idx_bytes(CUBE)[:10], "truncated"),
        (b"\x00\x00\x08\x03" + b"\xff\xff\xff\xff" * 3, "truncated"),
        (idx_bytes(np.zeros((0, 28, 28))), r"shape \(0, 28, 28\)"),
    ],
    ids=["empty", "three-bytes", "floats", "no-dims", "html", "short", "long", "half-a-header", "huge", "no-images"],
)
def test_broken_idx_is_named(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "broken"
    path.write_bytes(raw)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{message}"):
        read_idx(path)


def test_wrong_digest_says_expected_and_found(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(idx_bytes(CUBE))
    with pytest.raises(UserError, match=f"{path}: wrong digest: expected 0123, found {md5(idx_bytes(CUBE))}"):
        read_idx(path, "0123")


@pytest.mark.parametrize("cut", [5, 20, -1])
def test_truncated_gz_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx_bytes(CUBE))[:cut])
    with pytest.raises(UserError, match=f"{path}: cannot be read"):
        read_bytes(path)


def test_a_gz_that_unpacks_to_more_than_any_data_set_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 MB of zeros in 64 kB; no more than the limit is unpacked."""
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(bytes(2**26), 1))
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 2**20)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a\.gz: holds more than 1,048,576 bytes"):
        read_bytes(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


def test_two_processes_of_one_number_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In containers that share a folder every process may have number 1. No process takes a part of another."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    path, sizes = tmp_path / "file", [10_000 + n for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda size: write_whole(path, b"a" * size), sizes))
    assert len(path.read_bytes()) in sizes
    assert list(tmp_path.iterdir()) == [path]


def test_no_gz_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(idx_bytes(CUBE))
    with pytest.raises(UserError, match=f"{path}: cannot be read"):
        read_bytes(path)


def test_find_takes_the_first_folder_and_names_all_of_them(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    with pytest.raises(UserError, match=f"a not found in {first} or {second}; fetch it"):
        find([first, second], ["a", "a.gz"], "fetch it")
    (second / "a").touch()
    assert find([first, second], ["a", "a.gz"], "") == second / "a"
    (first / "a.gz").touch()
    assert find([first, second], ["a", "a.gz"], "") == first / "a.gz"


def test_write_whole_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file"
    for contents in (b"first, and longer", b"second"):
        write_whole(path, contents)
        assert path.read_bytes() == contents
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("fails_at", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(fails_at, no_space)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, b"new")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"file": b"old"}


class Mirror(BaseHTTPRequestHandler):
    """Serves `files`, and 404 for other paths. Files below /cut are announced longer than they are, and break off."""

    files: ClassVar[dict[str, bytes]] = {"/good/a": b"contents", "/bad/a": b"other contents", "/cut/a": b"contents"}

    def do_GET(self) -> None:
        contents = self.files.get(self.path)
        self.send_response(404 if contents is None else 200)
        extra = 10 if self.path.startswith("/cut/") else 0
        self.send_header("Content-Length", str(len(contents or b"") + extra))
        self.end_headers()
        self.wfile.write(contents or b"")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def mirror() -> Iterator[str]:
    """The address of a server on this computer."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


DIGEST = md5(b"contents")


@pytest.mark.parametrize("first", ["none", "bad", "cut"])
def test_download_falls_over_to_the_next_mirror(tmp_path: Path, mirror: str, first: str) -> None:
    """The first mirror has no such file, has another file, or breaks off."""
    path = tmp_path / "folder" / "a"
    download([f"{mirror}/{first}/a", f"{mirror}/good/a"], path, DIGEST)
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == {"a": b"contents"}


@pytest.mark.parametrize("folders", [["none"], ["bad"], ["cut"], ["none", "bad"]])
def test_a_failed_download_leaves_no_file_and_names_every_address(
    tmp_path: Path, mirror: str, folders: list[str]
) -> None:
    path = tmp_path / "a"
    with pytest.raises(UserError) as caught:
        download([f"{mirror}/{folder}/a" for folder in folders], path, DIGEST)
    text = str(caught.value)
    assert all(f"{mirror}/{folder}/a" in text for folder in folders)
    assert str(tmp_path) in text
    assert "--data.data_dir" in text
    assert "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_a_broken_off_download_is_noticed_without_a_digest(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(UserError, match="a could not be downloaded"):
        download([f"{mirror}/cut/a"], tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_connection_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"http://127.0.0.1:1/a: .*refused"):
        download(["http://127.0.0.1:1/a"], tmp_path / "a")


def test_download_into_an_unwritable_place_says_which(tmp_path: Path, mirror: str) -> None:
    (tmp_path / "folder").write_bytes(b"a file in the way")
    with pytest.raises(UserError, match=r"folder: cannot be written .*--data\.data_dir"):
        download([f"{mirror}/good/a"], tmp_path / "folder" / "a", DIGEST)
