"""The pixel cache: images decoded once into one file of bytes that can be memory-mapped, with a small header beside it.

`<folder>/pixels.u8` is uint8 [N, C, H, W], split after split; `header.json` says what the pixels are a function of;
`labels.npy` is there where the set has labels. A cache is made in `<folder>.part`, chunk by chunk, by the threads of
one process, and takes its name by one rename. A process that is killed leaves a journal of finished chunks with their
checksums, and the next one goes on from there.

Each process compares the CRC-32 of a chunk with the header's before it uses the chunk's first image: all chunks at once
where the pixels are copied to memory or to a device, else chunk by chunk as a memory map is read. A checksum finds
accidents, such as a flipped bit. It does not find a change by somebody who also writes the new checksum.
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
from vae_lightning.storage.files import read_file
from vae_lightning.storage.loader import Images
from vae_lightning.storage.progress import Progress
from vae_lightning.types import Shape, UserError

T = TypeVar("T")
Fill: TypeAlias = Callable[[int, int], np.ndarray]
"""`fill(start, stop)`: images start .. stop - 1 as uint8 [stop - start, C, H, W]. Called from several threads."""


class Contents(NamedTuple):
    """What goes into a cache: images by number, and their labels [N, ...] where they have any.

    `num_threads`: 1 where `fill` is torch's work, which takes all cores by itself.
    """

    fill: Fill
    labels: np.ndarray | None = None
    num_threads: int | None = None


_UNREADABLE = (OSError, UserError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError)
"""What an edited or broken header ends in, by where its parsing trips."""
_CHUNK_BYTES = 8 * 2**20
_CHUNK_IMAGES = 64
"""A unit of work at most: a thousand large photographs keep sixteen cores busy, and the bar moves."""


class BrokenImagesError(UserError):
    """Images that cannot be read, a line for each in `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        shown = "; ".join(self.problems[:3])
        more = f"; and {len(self.problems) - 3} more (vae-lightning check-data lists all)" if self.problems[3:] else ""
        super().__init__(f"{len(self.problems)} unusable image{'s' if self.problems[1:] else ''}: {shown}{more}")


@dataclass(frozen=True)
class Header:
    """What the pixels are a function of. `source`: a fingerprint of the files; `settings`: crop, filter and so on.

    `checksums`: CRC-32 of every `chunk_size` images, as they were written; `labels`: that of `labels.npy`, in which
    their shape and kind stand too, or None where the set has none.
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
        return math.prod(self.image_shape)

    @property
    def num_chunks(self) -> int:
        return -(-len(self) // self.chunk_size)

    def chunk(self, number: int) -> range:
        start = number * self.chunk_size
        return range(start, min(start + self.chunk_size, len(self)))

    @property
    def chunks(self) -> list[range]:
        return [self.chunk(number) for number in range(self.num_chunks)]

    def to_json(self) -> str:
        return json.dumps(asdict(self))  # in order: that of the splits is the order of the file

    @classmethod
    def from_json(cls, text: str | bytes) -> Header:
        """Raises one of `_UNREADABLE` where the text is no header."""
        fields = json.loads(text)
        header = cls(**{**fields, "image_shape": tuple(fields["image_shape"])})
        numbers = (*header.image_shape, *header.splits.values(), header.version, header.chunk_size, *header.checksums)
        if not all(type(number) is int and number >= 0 for number in numbers) or not isinstance(header.source, dict):
            raise ValueError("expected whole numbers and a fingerprint")
        return header


def read_header(folder: Path) -> Header | None:
    """The header of the cache in `folder`; None unless it is one whose pixels, checksums and labels are all there."""
    labels = folder / "labels.npy"
    try:
        header = Header.from_json(read_file(folder / "header.json"))
        whole = (folder / "pixels.u8").stat().st_size == len(header) * header.image_bytes > 0
        whole = whole and header.num_chunks == len(header.checksums)
        whole = whole and header.labels == (zlib.crc32(read_file(labels)) if labels.exists() else None)
    except _UNREADABLE:
        return None
    return header if whole else None


def open_cache(folder: Path, split: str) -> Images:
    """The images of a split, mapped from the file: nothing is read until it is used, and then its checksum first."""
    header = read_header(folder)
    if header is None or split not in header.splits:
        raise UserError(f"{folder}: no whole cache of images there; prepare_data makes it")
    names = list(header.splits)
    start = sum(header.splits[name] for name in names[: names.index(split)])
    rows = slice(start, start + header.splits[split])
    with (folder / "pixels.u8").open("rb") as file:
        # a private copy on write, which nobody writes: torch warns of memory that it could not write to
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    pixels = torch.frombuffer(mapping, dtype=torch.uint8).view(len(header), *header.image_shape)
    labels = None if header.labels is None else torch.from_numpy(np.load(folder / "labels.npy"))
    check = _Verifier(folder, header, start)
    return Images(pixels[rows], None if labels is None else labels[rows], mapping=mapping, check=check)


def broken_chunks(folder: Path) -> list[str]:
    """What is wrong with a cache: a line for each chunk whose checksum is not the header's, or one for all."""
    header = read_header(folder)
    if header is None:
        return [f"{folder}: its header, pixels or labels are not whole; the next start makes it anew"]
    with (folder / "pixels.u8").open("rb") as file:
        return _damage(folder, file.fileno(), header, range(header.num_chunks))


class _Verifier:
    """Called with the numbers of a split's images before they are read. Raises UserError where a chunk with one of them
    does not have the checksum that it was written with. Reads each chunk once."""

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
            remedy = "delete that folder, and the next start makes it anew from the image files"
            raise UserError(f"{problems[0]}{more}; {remedy}")
        self._is_verified[chunks] = True


def _damage(folder: Path, file: int, header: Header, numbers: Sequence[int]) -> list[str]:
    """A line for each of the chunks with these numbers that does not have its checksum."""
    chunks = [header.chunk(number) for number in numbers]
    try:
        with ThreadPoolExecutor(num_cores()) as pool:
            found = list(pool.map(partial(_checksum, file, header), chunks))
    except OSError as error:
        return [f"{folder}: pixels.u8 cannot be read ({error.strerror})"]
    return [
        f"{folder}: images {chunk.start} .. {chunk.stop - 1} were damaged after they were written"
        for chunk, number, checksum in zip(chunks, numbers, found, strict=True)
        if checksum != header.checksums[number]
    ]


def fill_from(items: Sequence[T], decode: Callable[[T], np.ndarray]) -> Fill:
    """A `Fill` that decodes one item after the other, and names all that cannot be decoded."""

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
    """Make the cache in `folder`, unless it is there and of this header; `read` is called only if it has to be made.

    Of several processes that prepare one folder, one does it and the others wait. Raises UserError where the folder
    cannot be written or the disk is too small, BrokenImagesError with all images that `fill` could not read.
    """
    if read_header(folder) == header:
        return
    header = replace(header, chunk_size=min(_CHUNK_IMAGES, max(1, _CHUNK_BYTES // header.image_bytes)))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder.with_name(f"{folder.name}.lock")):
            found = read_header(folder)
            if found == header:
                return  # another process has made it meanwhile
            if folder.exists():
                print(f"{folder}: {_why_stale(found, header)}; making it anew", flush=True)
            _make(folder, header, _read(folder, read))
    except OSError as error:
        raise UserError(
            f"{folder}: the cache of pixels cannot be written ({error.strerror}; it takes "
            f"{len(header) * header.image_bytes / 2**30:.2f} GiB); choose another place by --data.cache_dir"
        ) from error


def _read(folder: Path, read: Callable[[], Contents]) -> Contents:
    try:
        return read()
    except OSError as error:  # reading an image failed; elsewhere an OSError means that the cache cannot be written
        raise UserError(f"{error.filename or folder.name}: cannot be read ({error.strerror or error})") from error


def _why_stale(found: Header | None, wanted: Header) -> str:
    if found is None:
        return "damaged, or not whole"
    names = ("version", "image_shape", "splits", "settings", "source")
    changed = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    return f"stale: {', '.join(changed)} changed since it was made"


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
    whole = replace(header, checksums=[done[chunk.start] for chunk in header.chunks], labels=labels)
    write_whole(part / "header.json", whole.to_json().encode())
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    (folder / "journal").unlink()


def _write_labels(path: Path, labels: np.ndarray) -> int:
    """The checksum of the file."""
    buffer = io.BytesIO()
    np.save(buffer, labels, allow_pickle=False)
    write_whole(path, buffer.getvalue())
    return zlib.crc32(buffer.getvalue())


def _read_journal(part: Path, header: Header) -> dict[int, int]:
    """Checksums, by first image, of the chunks that an earlier process has finished and that are as it left them."""
    try:
        first, *lines = (part / "journal").read_text().splitlines()
        noted_header = Header.from_json(first)
        if noted_header != header or noted_header.chunk_size != header.chunk_size:
            return {}
        words = [line.split() for line in lines]
        noted = {int(pair[0]): int(pair[1]) for pair in words if len(pair) == 2}  # the last line may be half a line
        with (part / "pixels.u8").open("rb") as file:
            found = {c.start: _checksum(file.fileno(), header, c) for c in header.chunks if c.start in noted}
    except _UNREADABLE:
        return {}
    return {start: value for start, value in found.items() if value == noted[start]}


def _checksum(file: int, header: Header, chunk: range) -> int:
    size = header.image_bytes
    return zlib.crc32(os.pread(file, len(chunk) * size, chunk.start * size))


def _reserve(path: Path, size: int) -> None:
    """Take the space at once: a disk that is too small is found now, not after half of the images."""
    with path.open("ab") as file:
        if hasattr(os, "posix_fallocate"):  # not on a Mac
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _fill_chunks(part: Path, header: Header, contents: Contents, done: Mapping[int, int]) -> dict[int, int]:
    """Checksums of the chunks that were not done, by first image. Stops at the first error but for broken images."""
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
    """Each item with its finished future, as they finish.

    Threads, not processes: PIL decodes without the interpreter's lock, and nothing has to be imported anew.
    """
    pool = ThreadPoolExecutor(num_threads)
    try:
        futures = {pool.submit(work, item): item for item in items}
        for future in as_completed(futures):
            yield futures[future], future
    finally:
        pool.shutdown(cancel_futures=True)
