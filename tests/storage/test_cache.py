"""The pixel cache is complete or absent, the same after any number of kills, and made anew when it is stale."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import random
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vae_lightning.data import ImageLoader, cache, loader
from vae_lightning.storage.cache import (
    BrokenImagesError,
    Contents,
    Header,
    broken_chunks,
    fill_from,
    open_cache,
    prepare_cache,
    read_header,
)
from vae_lightning.types import UserError

SHAPE = (3, 64, 64)
HEADER = Header(SHAPE, {"train": 1500, "val": 300, "test": 200}, {"crop": "none"}, {"listing": "a"})
TOTAL = 2000


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, SHAPE, dtype=np.uint8)


ALL = np.stack([picture(number) for number in range(TOTAL)])
LABELS = np.arange(TOTAL)


def contents() -> Contents:
    return Contents(fill_from(range(TOTAL), picture), LABELS)


def assert_whole(folder: Path) -> None:
    parts = [open_cache(folder, split) for split in ("train", "val", "test")]
    assert torch.equal(torch.cat([part.pixels for part in parts]), torch.from_numpy(ALL))
    labels = [part.labels for part in parts if part.labels is not None]
    assert torch.cat(labels).tolist() == LABELS.tolist()
    assert broken_chunks(folder) == []
    assert sorted(path.name for path in folder.iterdir()) == ["header.json", "labels.npy", "pixels.u8"]
    assert not folder.with_name(f"{folder.name}.part").exists()


def never() -> Contents:
    raise AssertionError("the cache exists: no image has to be read")


def test_a_cache_is_made_once_and_holds_the_splits_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "cache"
    prepare_cache(folder, HEADER, contents)
    assert_whole(folder)
    prepare_cache(folder, HEADER, never)
    assert read_header(folder) == HEADER


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"settings": {"crop": "other"}}, "settings"),
        ({"source": {"listing": "b"}}, "source"),
        ({"splits": {"train": 1400, "val": 400, "test": 200}}, "splits"),
        ({"version": 1}, "version"),
    ],
)
def test_a_stale_cache_is_made_anew_aloud(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: dict[str, object], word: str
) -> None:
    prepare_cache(tmp_path / "cache", HEADER, contents)
    wanted = Header(**{**vars(HEADER), **changed})
    prepare_cache(tmp_path / "cache", wanted, contents)
    assert f"stale: {word} changed" in capsys.readouterr().out
    assert read_header(tmp_path / "cache") == wanted


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes | None]]] = {  # a file, and its new contents (None: deleted)
    "truncated pixels": ("pixels.u8", lambda raw: raw[:1000]),
    "no pixels": ("pixels.u8", lambda _: None),
    "no header": ("header.json", lambda _: None),
    "half a header": ("header.json", lambda raw: raw[:40]),
    "no labels": ("labels.npy", lambda _: None),
    "empty labels": ("labels.npy", lambda _: b""),
    "half of the labels": ("labels.npy", lambda raw: raw[: len(raw) // 2]),
    "a flipped bit of a label": ("labels.npy", lambda raw: raw[:-8] + bytes([raw[-8] ^ 1]) + raw[-7:]),
}


@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_cache_is_made_anew_aloud(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    folder = tmp_path / "cache"
    prepare_cache(folder, HEADER, contents)
    name, change = DAMAGE[damage]
    changed = change((folder / name).read_bytes())
    (folder / name).unlink()
    if changed is not None:
        (folder / name).write_bytes(changed)
    assert "not whole" in broken_chunks(folder)[0]
    with pytest.raises(UserError, match="no whole cache"):
        open_cache(folder, "train")
    prepare_cache(folder, HEADER, contents)
    assert "damaged" in capsys.readouterr().out
    assert_whole(folder)


def test_a_flipped_bit_is_found_by_its_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    prepare_cache(folder, HEADER, contents)
    with (folder / "pixels.u8").open("r+b") as file:
        file.seek(12288 * 1000)
        file.write(bytes([ALL[1000, 0, 0, 0] ^ 1]))
    (problem,) = broken_chunks(folder)
    assert "images 960 .. 1023" in problem


def test_no_chunk_is_so_large_that_cores_wait_for_it(tmp_path: Path) -> None:
    header, spans = replace(HEADER, splits={"train": 1000}), list[tuple[int, int]]()

    def fill(start: int, stop: int) -> np.ndarray:
        spans.append((start, stop))
        return ALL[start:stop]

    prepare_cache(tmp_path / "cache", header, lambda: Contents(fill))
    assert [number for span in sorted(spans) for number in range(*span)] == list(range(1000))
    assert max(stop - start for start, stop in spans) <= 64


FORK = multiprocessing.get_context("fork")  # at once; a new Python imports torch for seconds
NO_WARNING = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def prepare_slowly(folder: Path, log: Path, seconds: float) -> None:
    """Make a cache with `seconds` for each chunk. `log` gets all prints and the number of each chunk's first image."""

    def slow(start: int, stop: int) -> np.ndarray:
        print(f"{start}\n", end="", flush=True)  # one write, because several threads print
        time.sleep(seconds)
        return ALL[start:stop]

    with log.open("a") as file, contextlib.redirect_stdout(file):
        prepare_cache(folder, HEADER, lambda: Contents(slow, LABELS, num_threads=2))


def first_numbers(path: Path) -> set[int]:
    """The numbers at the start of the lines of a journal or of a log."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {int(line.split()[0]) for line in lines if line[:1].isdigit()}


@NO_WARNING
def test_a_killed_preparation_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After kills at ten random moments, finished chunks are not made again unless they were damaged."""
    monkeypatch.setattr(cache, "_CHUNK_IMAGES", 20)
    folder, part, rng = tmp_path / "cache", tmp_path / "cache.part", random.Random(0)
    finished: set[int] = set()
    for kill in range(10):
        process = FORK.Process(target=prepare_slowly, args=(folder, log := tmp_path / f"log{kill}", 0.03))
        process.start()
        time.sleep(rng.uniform(0.0, 0.2))
        process.kill()
        process.join()
        assert read_header(folder) is None, "the preparation ended before it was killed"
        assert not first_numbers(log) & finished
        assert finished <= (finished := first_numbers(part / "journal"))
    assert 0 in finished
    assert len(finished) < 100
    with (part / "journal").open("a") as journal:
        journal.write("1974")  # half a line, as after a power cut
    with (part / "pixels.u8").open("r+b") as file:
        file.write(b"\0" * 100)  # the first chunk no longer has its checksum
    prepare_slowly(folder, tmp_path / "last", 0.0)
    assert first_numbers(tmp_path / "last") == set(range(0, TOTAL, 20)) - finished | {0}
    assert_whole(folder)


@NO_WARNING
def test_of_two_processes_one_prepares_and_both_succeed(tmp_path: Path) -> None:
    logs = [tmp_path / "one", tmp_path / "two"]
    processes = [FORK.Process(target=prepare_slowly, args=(tmp_path / "cache", log, 0.06)) for log in logs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(len(first_numbers(log)) for log in logs) == [0, 32]
    assert sum("waiting for it" in log.read_text() for log in logs) == 1
    assert_whole(tmp_path / "cache")


def test_all_broken_images_are_named_and_no_cache_is_left(tmp_path: Path) -> None:
    def read(number: int) -> np.ndarray:
        if number % 500 == 7:
            raise UserError(f"{number}.jpg: broken")
        return picture(number)

    with pytest.raises(BrokenImagesError, match=r"4 unusable images: .* and 1 more") as caught:
        prepare_cache(tmp_path / "cache", HEADER, lambda: Contents(fill_from(range(TOTAL), read)))
    assert sorted(caught.value.problems) == sorted(f"{number}.jpg: broken" for number in (7, 507, 1007, 1507))
    assert read_header(tmp_path / "cache") is None


def test_an_error_of_reading_is_not_called_one_of_writing(tmp_path: Path) -> None:
    def fail(*_: int) -> Any:
        raise OSError("image file is truncated")

    with pytest.raises(BrokenImagesError, match=r"among 0 .. 63: cannot be read \(image file is truncated\)"):
        prepare_cache(tmp_path / "cache", HEADER, lambda: Contents(fail))
    with pytest.raises(UserError, match=r"^cache: cannot be read \(image file is truncated\)"):
        prepare_cache(tmp_path / "cache", HEADER, fail)


@NO_WARNING
def test_a_disk_that_is_too_small_is_found_before_any_image_is_read(tmp_path: Path) -> None:
    message = r"\(File too large; the cache takes 0.02 GiB\); choose another folder by --data.cache_dir"

    def fill(*_: int) -> np.ndarray:
        raise AssertionError("an image was read")

    def prepare() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        with pytest.raises(UserError, match=message):
            prepare_cache(tmp_path / "cache", HEADER, lambda: Contents(fill))

    process = FORK.Process(target=prepare)
    process.start()
    process.join()
    assert process.exitcode == 0


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/cache: the cache of pixels cannot be written \(.*--data.cache_dir"):
        prepare_cache(tmp_path / "file" / "cache", HEADER, contents)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads resident memory from /proc")
@pytest.mark.parametrize(("batch_size", "batches_per_call"), [(5, 1), (50, 16)])
def test_a_mapped_cache_gives_its_pages_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int, batches_per_call: int
) -> None:
    """Resident memory stays bounded however much is read at a time, and the batches are right."""
    prepare_cache(tmp_path / "cache", HEADER, contents)
    images = open_cache(tmp_path / "cache", "train")
    resident, seen = loader._resident_file_bytes, list[int]()

    def recorded() -> int:
        seen.append(resident())
        return seen[-1]

    def peak() -> int:
        """The most over three passes: pages that one pass left must not add to the limit of the next."""
        seen[:] = [before := resident()]
        batches = ImageLoader(images, batch_size, train=True)
        batches.batches_per_call = batches_per_call
        for _ in range(3):
            for _ in batches:
                recorded()
        return max(seen) - before

    monkeypatch.setattr(loader, "_resident_file_bytes", recorded)
    monkeypatch.setattr(loader, "_MAPPED_ROWS_AT_ONCE", 5)
    monkeypatch.setattr(loader, "_MAX_MAPPED_BYTES", 4 * 2**20)
    bounded = peak()
    monkeypatch.setattr(loader, "_MAX_MAPPED_BYTES", 2**40)
    assert bounded < 2**24 < images.pixels.nbytes <= peak()
    for batch in ImageLoader(images, 50, train=True):
        assert batch["label"] is not None
        torch.testing.assert_close(batch["x"] * 255, torch.from_numpy(ALL[batch["label"].numpy()]).float())


def test_the_header_is_small_and_plain(tmp_path: Path) -> None:
    prepare_cache(tmp_path / "cache", HEADER, contents)
    header = json.loads((tmp_path / "cache" / "header.json").read_text())
    assert header["image_shape"] == list(SHAPE)
    assert list(header["splits"]) == ["train", "val", "test"]
    assert header["settings"] == {"crop": "none"}
