"""The pixel cache: images decoded once into one file of bytes that can be memory-mapped, with a small header beside it.

`<folder>/pixels.u8` is uint8 [N, C, H, W], split after split. `header.json` lists all that the pixels depend on.
`labels.npy` exists if the set has labels. The threads of one process make a cache in `<folder>.part`, chunk by chunk,
and one rename gives the folder its name. A killed process leaves a journal of the finished chunks with their checksums;
the next process makes the other chunks only.

Each process compares the CRC-32 of a chunk with the header before it uses the chunk: all at once if the pixels are
copied to memory or to a device, else when the memory map is first read there. A checksum detects accidents, such as a
flipped bit. It does not detect a person who also writes the new checksum.
"""

from __future__ import annotations

import io
import json
import math
import mmap
import os
import shutil
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from vae_lightning.runs.machine import num_cores
from vae_lightning.runs.whole_files import one_at_a_time, write_whole
from vae_lightning.storage.examples import Images
from vae_lightning.storage.files import read_file
from vae_lightning.storage.progress import Progress
from vae_lightning.types import Shape, UserError

T = TypeVar("T")
Fill: TypeAlias = Callable[[int, int], np.ndarray]
"""`fill(start, stop)` returns images start .. stop - 1 as uint8 [stop - start, C, H, W]. Several threads call it."""


class Contents(NamedTuple):
    """The images and labels that go into a cache."""

    fill: Fill
    labels: np.ndarray | None = None
    """[N, ...], or None if the set has no labels."""
    num_threads: int | None = None
    """The number of threads that call `fill`, None for one per core. Take 1 if `fill` uses all cores, as torch does."""


# what the parser of an edited or broken header may raise
_UNREADABLE = (OSError, UserError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)
_CHUNK_BYTES = 8 * 2**20
_CHUNK_IMAGES = 64
"""The limit of a chunk, so that even a thousand large photographs keep sixteen cores busy, and the bar moves."""


class BrokenImagesError(UserError):
    """Images that cannot be read.

    Args:
        problems: A line for each image.
        remedy: What the user can do.
    """

    def __init__(self, problems: Sequence[str], remedy: str = "delete or replace such files") -> None:
        self.problems, shown = list(problems), "; ".join(problems[:3])
        more = f"; and {len(self.problems) - 3} more (vae-lightning check-data lists all)" if self.problems[3:] else ""
        plural = "s" if self.problems[1:] else ""
        super().__init__(f"{len(self.problems)} unusable image{plural}: {shown}{more}; {remedy}")


@dataclass(frozen=True)
class Header:
    """All that the pixels of a cache depend on, and their checksums. Equal headers have equal pixels.

    Args:
        image_shape: (C, H, W).
        splits: The number of images of each split, in the order of the file.
        settings: Crop, filter and so on.
        source: A fingerprint of the image files.
        version: The version of the cache's form.
        chunk_size: Images in a chunk.
        checksums: The CRC-32 of each chunk when it was written.
        labels: The CRC-32 of `labels.npy`, which also holds the labels' shape and type; None without labels.
    """

    image_shape: Shape
    splits: Mapping[str, int]
    settings: Mapping[str, Any]
    source: Mapping[str, Any]
    version: int = 2
    chunk_size: int = field(default=0, compare=False)
    checksums: Sequence[int] = field(default=(), compare=False)
    labels: int | None = field(default=None, compare=False)

    def __len__(self) -> int:
        return sum(self.splits.values())

    @property
    def image_bytes(self) -> int:
        """The size of one image in bytes."""
        return math.prod(self.image_shape)

    @property
    def num_chunks(self) -> int:
        """The number of chunks; the last one may be smaller."""
        return -(-len(self) // self.chunk_size)

    def chunk(self, number: int) -> range:
        """The images of a chunk."""
        start = number * self.chunk_size
        return range(start, min(start + self.chunk_size, len(self)))

    @property
    def chunks(self) -> list[range]:
        """The images of each chunk."""
        return [self.chunk(number) for number in range(self.num_chunks)]

    def to_json(self) -> str:
        """The header as a line of JSON, in which the splits keep their order."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Header:
        """Parse what `to_json` wrote. Raises one of `_UNREADABLE` if the text is no header."""
        fields = json.loads(text)
        header = cls(**{**fields, "image_shape": tuple(fields["image_shape"])})
        numbers = (*header.image_shape, *header.splits.values(), header.version, header.chunk_size, *header.checksums)
        if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(header.source, dict):
            raise ValueError("expected whole numbers and a fingerprint")
        return header


def read_header(folder: Path) -> Header | None:
    """Read the header of a cache; None unless its pixels, checksums and labels are complete.

    Args:
        folder: The folder of the cache.
    """
    labels = folder / "labels.npy"
    try:
        header = Header.from_json(read_file(folder / "header.json"))
        is_whole = (folder / "pixels.u8").stat().st_size == len(header) * header.image_bytes > 0
        is_whole = is_whole and header.num_chunks == len(header.checksums)
        is_whole = is_whole and header.labels == (zlib.crc32(read_file(labels)) if labels.exists() else None)
    except _UNREADABLE:
        return None
    return header if is_whole else None


def open_cache(folder: Path, split: str) -> Images:
    """Map the images of a split from the file. Pixels are read when they are used, after the check of their chunk.

    Args:
        folder: The folder of the cache.
        split: The name of the split.

    Raises:
        UserError: if there is no complete cache with this split.
    """
    header = read_header(folder)
    if header is None or split not in header.splits:
        raise UserError(f"{folder}: no whole cache of images there; prepare_data makes it")
    names = list(header.splits)
    start = sum(header.splits[name] for name in names[: names.index(split)])
    rows = slice(start, start + header.splits[split])
    with (folder / "pixels.u8").open("rb") as file:
        # torch warns of memory that it cannot write to, so the map is copied on write; nothing writes to it
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    pixels = torch.frombuffer(mapping, dtype=torch.uint8).view(len(header), *header.image_shape)
    labels = None if header.labels is None else torch.from_numpy(np.load(folder / "labels.npy"))
    check = _Verifier(folder, header, start)
    return Images(pixels[rows], None if labels is None else labels[rows], mapping=mapping, check=check)


def broken_chunks(folder: Path) -> list[str]:
    """Check all of a cache: one line for each chunk with another checksum than the header's, or one line for all.

    Args:
        folder: The folder of the cache.
    """
    header = read_header(folder)
    if header is None:
        return [f"{folder}: its header, pixels or labels are not whole; the next start makes the cache anew"]
    with (folder / "pixels.u8").open("rb") as file:
        return _damage(folder, file.fileno(), header, range(header.num_chunks))


class _Verifier:
    """Takes the numbers of images before they are read; raises UserError if a chunk has changed. Reads a chunk once."""

    def __init__(self, folder: Path, header: Header, start: int) -> None:
        self._folder, self._header, self._start = folder, header, start
        self._file = (folder / "pixels.u8").open("rb")
        weakref.finalize(self, self._file.close)
        self._is_verified = np.zeros(len(header.checksums), dtype=bool)

    def __call__(self, index: Tensor) -> None:
        chunks = (index.numpy() + self._start) // self._header.chunk_size
        chunks = np.unique(chunks[~self._is_verified[chunks]])
        if not len(chunks):
            return
        if problems := _damage(self._folder, self._file.fileno(), self._header, chunks.tolist()):
            more = f" (and {len(problems) - 1} more places)" if problems[1:] else ""
            remedy = "delete that folder, and the next start makes the cache anew from the image files"
            raise UserError(f"{problems[0]}{more}; {remedy}")
        self._is_verified[chunks] = True


def _damage(folder: Path, file: int, header: Header, numbers: Sequence[int]) -> list[str]:
    """Compare chunks with their checksums: one line for each that differs."""
    chunks = [header.chunk(number) for number in numbers]
    try:
        with ThreadPoolExecutor(num_cores()) as pool:
            checksums = list(pool.map(partial(_checksum, file, header), chunks))
    except OSError as error:
        return [f"{folder}: pixels.u8 cannot be read ({error.strerror})"]
    return [
        f"{folder}: images {chunk.start} .. {chunk.stop - 1} were damaged after they were written"
        for chunk, number, checksum in zip(chunks, numbers, checksums, strict=True)
        if checksum != header.checksums[number]
    ]


def fill_from(items: Sequence[T], decode: Callable[[T], np.ndarray]) -> Fill:
    """A `Fill` that decodes one item after the other.

    Args:
        items: Where each image comes from: a path, a name, a number.
        decode: An item to uint8 [C, H, W]. The `Fill` collects its UserErrors and raises them as BrokenImagesError.
    """

    def fill(start: int, stop: int) -> np.ndarray:
        images, problems = [], []
        for item in items[start:stop]:
            try:
                images.append(decode(item))
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise BrokenImagesError(problems)
        return np.stack(images)

    return fill


def prepare_cache(folder: Path, header: Header, read: Callable[[], Contents]) -> None:
    """Make a cache unless the folder holds a complete one with this header.

    If several processes prepare one folder, one of them makes the cache and the others wait.

    Args:
        folder: The folder of the cache.
        header: What the pixels depend on; without chunks and checksums, which this function adds.
        read: Returns the images; called only if the cache has to be made.

    Raises:
        UserError: if the folder cannot be written, or the disk is too small.
        BrokenImagesError: with all images that `fill` could not read.
    """
    if read_header(folder) == header:
        return
    header = replace(header, chunk_size=min(_CHUNK_IMAGES, max(1, _CHUNK_BYTES // header.image_bytes)))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder.with_name(f"{folder.name}.lock")):
            old_header = read_header(folder)
            if old_header == header:
                return  # another process made the cache while this one waited
            if folder.exists():
                print(f"{folder}: {_why_stale(old_header, header)}; making the cache anew", flush=True)
            _make(folder, header, _read(folder, read))
    except OSError as error:
        raise UserError(
            f"{folder}: the cache of pixels cannot be written ({error.strerror}; the cache takes "
            f"{len(header) * header.image_bytes / 2**30:.2f} GiB); choose another folder by --data.cache_dir"
        ) from error


def _read(folder: Path, read: Callable[[], Contents]) -> Contents:
    try:
        return read()
    except OSError as error:  # otherwise `prepare_cache` would blame the cache's folder
        raise UserError(f"{error.filename or folder.name}: cannot be read ({error.strerror or error})") from error


def _why_stale(old: Header | None, wanted: Header) -> str:
    if old is None:
        return "damaged, or not whole"
    names = ("version", "image_shape", "splits", "settings", "source")
    changed = [name for name in names if getattr(old, name) != getattr(wanted, name)]
    return f"stale: {', '.join(changed)} changed since the cache was made"


def _make(folder: Path, header: Header, contents: Contents) -> None:
    part = folder.with_name(f"{folder.name}.part")
    done = _read_journal(part, header)
    if not done:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        (part / "journal").write_text(header.to_json() + "\n")
    _reserve(part / "pixels.u8", len(header) * header.image_bytes)
    done |= _fill_chunks(part, header, contents, done)
    labels = None if contents.labels is None else _write_labels(part / "labels.npy", contents.labels)
    full_header = replace(header, checksums=[done[chunk.start] for chunk in header.chunks], labels=labels)
    write_whole(part / "header.json", full_header.to_json().encode())
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    (folder / "journal").unlink()


def _write_labels(path: Path, labels: np.ndarray) -> int:
    """Write `labels.npy` and return its CRC-32."""
    buffer = io.BytesIO()
    np.save(buffer, labels, allow_pickle=False)
    write_whole(path, buffer.getvalue())
    return zlib.crc32(buffer.getvalue())


def _read_journal(part: Path, header: Header) -> dict[int, int]:
    """The chunks that an earlier process finished and that are unchanged: their checksums by first image."""
    try:
        first, *lines = (part / "journal").read_text().splitlines()
        old_header = Header.from_json(first)
        if old_header != header or old_header.chunk_size != header.chunk_size:
            return {}
        pairs = [line.split() for line in lines]
        noted_checksums = {int(pair[0]): int(pair[1]) for pair in pairs if len(pair) == 2}  # the last may be cut
        with (part / "pixels.u8").open("rb") as file:
            chunks = [chunk for chunk in header.chunks if chunk.start in noted_checksums]
            checksums = {chunk.start: _checksum(file.fileno(), header, chunk) for chunk in chunks}
    except _UNREADABLE:
        return {}
    return {start: value for start, value in checksums.items() if value == noted_checksums[start]}


def _checksum(file: int, header: Header, chunk: range) -> int:
    size = header.image_bytes
    return zlib.crc32(os.pread(file, len(chunk) * size, chunk.start * size))


def _reserve(path: Path, size: int) -> None:
    """Reserve the space, so that a disk that is too small is found now and not after half of the images."""
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):  # absent on macOS
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _fill_chunks(part: Path, header: Header, contents: Contents, done: Mapping[int, int]) -> dict[int, int]:
    """Write the missing chunks and return their checksums by first image. Broken images are collected, then raised."""
    todo = [chunk for chunk in header.chunks if chunk.start not in done]
    finished, problems = {}, []
    with (part / "pixels.u8").open("r+b") as pixels, (part / "journal").open("a") as journal:
        progress = Progress(f"preparing {part.stem}", len(header), len(header) - sum(map(len, todo)))
        work = partial(_write_chunk, pixels.fileno(), header, contents.fill)
        with progress:
            for chunk, future in _in_parallel(todo, work, contents.num_threads or num_cores()):
                try:
                    finished[chunk.start] = future.result()
                except BrokenImagesError as error:
                    problems += error.problems
                else:
                    journal.write(f"{chunk.start} {finished[chunk.start]}\n")
                    journal.flush()
                progress.advance(len(chunk))
        os.fsync(pixels.fileno())
    if problems:
        raise BrokenImagesError(problems)
    return finished


def _write_chunk(file: int, header: Header, fill: Fill, chunk: range) -> int:
    try:
        images = fill(chunk.start, chunk.stop)
    except OSError as error:
        raise BrokenImagesError([f"among {chunk.start} .. {chunk.stop - 1}: cannot be read ({error})"]) from error
    assert images.shape == (len(chunk), *header.image_shape), images.shape
    assert images.dtype == np.uint8, images.dtype
    contents = images.tobytes()
    os.pwrite(file, contents, chunk.start * header.image_bytes)
    return zlib.crc32(contents)


def _in_parallel(items: Sequence[T], work: Callable[[T], int], num_threads: int) -> Iterator[tuple[T, Future[int]]]:
    """Yield each item with its future, in the order in which they finish."""
    pool = ThreadPoolExecutor(num_threads)  # PIL decodes without the GIL, and a new process would import torch again
    try:
        futures = {pool.submit(work, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future
    finally:
        pool.shutdown(cancel_futures=True)
