"""Damage of a cache after it was written, and pipes in place of files, end at the first use in one line."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers import REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.data import ImageFolder, cache
from vae_lightning.data.base import SPLITS, CachedImages, Resident, Source, Split
from vae_lightning.metrics.classifier import grey_images
from vae_lightning.storage.archive import ImageArchive
from vae_lightning.storage.cache import Contents, Header
from vae_lightning.storage.files import read_bytes, read_file
from vae_lightning.types import UserError

N = 500
COUNTS: dict[str, int] = {"train": 300, "val": 120, "test": 80}
PIXELS = np.random.default_rng(0).integers(0, 256, (N, 1, 8, 8), dtype=np.uint8)
SAID = r"cached-8x8: images {} were damaged after they were written; delete that folder, and the next start makes"


class Cached(CachedImages):
    """Random pixels in a file, in chunks of 64 images."""

    image_shape = (1, 8, 8)

    def settings(self) -> dict[str, Any]:
        return {"crop": "none"}

    def source(self) -> Source:
        return Source({"listing": "a"}, COUNTS, lambda: Contents(lambda i, j: PIXELS[i:j], np.arange(N)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Cached(str(tmp_path)).prepare_data()
    return tmp_path / "cache" / "cached-8x8"


def flip_a_bit(folder: Path, image: int) -> None:
    with (folder / "pixels.u8").open("r+b") as file:
        file.seek(image * 64 + 5)
        file.write(bytes([PIXELS[image].flat[5] ^ 1]))


@pytest.mark.parametrize(("image", "chunk"), [(0, "0 .. 63"), (255, "192 .. 255"), (299, "256 .. 319")])
@pytest.mark.parametrize("resident", ["auto", "mmap", "memory", "device"])
def test_no_flipped_bit_is_trained_on(tmp_path: Path, folder: Path, resident: Resident, image: int, chunk: str) -> None:
    """If the pixels are copied to memory, damage is found before the first step; if mapped, before the batch."""
    flip_a_bit(folder, image)
    data = Cached(str(tmp_path), batch_size=10, resident=resident)
    data.prepare_data()  # the file has its old size
    seen: list[int] = []
    with pytest.raises(UserError, match=SAID.format(chunk)):
        seen.extend(label for batch in data.train_dataloader() for label in batch["label"].tolist())
    assert image not in seen


@pytest.mark.parametrize(("split", "image"), [("val", 300), ("val", 419), ("test", 420), ("test", 499)])
def test_each_split_is_verified_at_its_own_images(tmp_path: Path, folder: Path, split: Split, image: int) -> None:
    flip_a_bit(folder, image)
    images = Cached(str(tmp_path)).images(split)
    first = sum(COUNTS[name] for name in SPLITS[: SPLITS.index(split)])
    with pytest.raises(UserError, match="were damaged after they were written"):
        images.verify(torch.tensor([image - first]))
    with pytest.raises(UserError, match="were damaged after they were written"):
        grey_images(images, torch.tensor([image - first]))  # metrics read images without a loader
    other = 419 - 300 if image == 300 else 0 if image != 420 else 79
    images.verify(torch.tensor([other]))


def test_a_copy_to_another_device_is_verified(tmp_path: Path, folder: Path) -> None:
    """`meta` stands for a GPU."""
    images = Cached(str(tmp_path)).load("train")
    assert images.to(torch.device("cpu")) is images
    assert images.to(torch.device("meta")).check is None
    flip_a_bit(folder, 150)
    with pytest.raises(UserError, match=SAID.format("128 .. 191")):
        Cached(str(tmp_path)).load("train").to(torch.device("meta"))


@pytest.mark.usefixtures("folder")
def test_a_chunk_is_read_for_its_checksum_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, checksum = Counter[int](), cache._checksum

    def counted(file: int, header: Header, chunk: range) -> int:
        read[chunk.start] += 1
        return checksum(file, header, chunk)

    monkeypatch.setattr(cache, "_checksum", counted)
    loader = Cached(str(tmp_path), batch_size=10, resident="mmap").train_dataloader()
    next(iter(loader))
    assert sum(read.values()) <= 5  # the chunks of the first batches only
    for epoch in range(3):
        loader.set_epoch(epoch)
        assert len(list(loader)) == 30
    assert read == dict.fromkeys(range(0, 300, 64), 1)


def test_a_fit_on_a_damaged_cache_ends_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    data = ["-c", "configs/vae/images.yaml", f"--data.data_dir={tmp_path / 'photos'}", "--data.resident=mmap"]
    data += [f"--data.cache_dir={tmp_path / 'cache'}", "--data.height=8", "--data.width=8", "--data.channels=1"]
    (tmp_path / "photos").mkdir()
    for number in range(40):
        Image.fromarray(PIXELS[number, 0]).save(tmp_path / "photos" / f"{number}.png")
    assert main(["check-data", *data]) == 0
    (pixels,) = (tmp_path / "cache").glob("*/pixels.u8")
    pixels.write_bytes(bytes([pixels.read_bytes()[0] ^ 1]) + pixels.read_bytes()[1:])
    small = [
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--trainer.logger=false",
        f"--runs_dir={tmp_path / 'runs'}",
    ]
    small += ["--trainer.log_every_n_steps=1"]
    small += ["--model.encoder=vae_lightning.networks.MLP", "--model.decoder=vae_lightning.networks.MLP"]
    capsys.readouterr()
    assert main(["fit", *data, *small]) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"vae-lightning: error: {pixels.parent}: images 0 .. 39 were damaged")


def test_every_changed_byte_of_a_header_is_noticed_or_harmless(tmp_path: Path, folder: Path) -> None:
    """A header with a changed byte is no header, another header, one that shows damage, or equal; nothing is raised."""
    path, data = folder / "header.json", Cached(str(tmp_path))
    whole = path.read_bytes()
    wanted = Header((1, 8, 8), COUNTS, {"crop": "none"}, {"listing": "a"})
    outcomes = Counter[str]()
    for position, byte in enumerate(whole):
        for changed in (byte ^ 1, byte ^ 0x80):
            path.write_bytes(whole[:position] + bytes([changed]) + whole[position + 1 :])
            if cache.read_header(folder) != wanted:
                outcomes["made anew"] += 1
            elif cache.broken_chunks(folder):
                outcomes["damaged"] += 1
            else:
                outcomes["the same"] += 1
                assert np.array_equal(data.load("test").pixels.numpy(), PIXELS[420:])
    assert outcomes["made anew"] > outcomes["damaged"] > 50 > 5 > outcomes["the same"]


FORGED = {
    "no object": "[]",
    "deep": "[" * 100_000,
    "no chunks": {"chunk_size": 0},
    "negative chunks": {"chunk_size": -64},
    "chunks of a fraction": {"chunk_size": 64.0},
    "a checksum less": {"checksums": [0] * 7},
    "no checksums": {"checksums": []},
    "checksums in words": {"checksums": ["a"] * 8},
    "splits as a list": {"splits": [300, 120, 80]},
    "a split less than nothing": {"splits": {"train": 700, "val": -220, "test": 20}},
    "another split": {"splits": {"train": 300, "valid": 120, "test": 80}},
    "a shape in words": {"image_shape": ["a", 8, 8]},
    "splits of nothing": {"splits": {"train": 0, "val": 0, "test": 0}, "checksums": []},
    "labels of nothing": {"labels": None},
    "labels in words": {"labels": "a"},
    "no fingerprint": {"source": 1},
    "an unknown field": {"colour": "red"},
}


@pytest.mark.parametrize("forged", list(FORGED))
def test_an_edited_header_is_no_header(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], forged: str
) -> None:
    """The cache is made anew with a message if the files exist; `load` refuses it in one line."""
    change = FORGED[forged]
    path = folder / "header.json"
    path.write_text(change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change}))
    if forged == "splits of nothing":
        (folder / "pixels.u8").write_bytes(b"")
    data = Cached(str(tmp_path))
    with pytest.raises(UserError, match=r"no (whole )?cache (of|with)"):
        data.load("val")
    data.prepare_data()
    assert "making the cache anew" in capsys.readouterr().out
    assert np.array_equal(data.load("train").pixels.numpy(), PIXELS[:300])


# -- pipes and links -----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("read", [read_file, read_bytes, ImageArchive])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    in_time(lambda: _refused(read, tmp_path / "pipe"))


def _refused(read: Any, path: Path) -> None:
    with pytest.raises(UserError, match=f"^{path}: .*a pipe, a socket or a device, expected a file"):
        read(path)


def in_time(work: Any) -> None:
    """Run `work` in another process, which is killed after 20 seconds."""
    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(20)
    process.kill()
    assert process.exitcode == 0


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_pipe_among_images_is_one_broken_image(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(PIXELS[number, 0]).save(tmp_path / "photos" / f"{number}.png")
    os.mkfifo(tmp_path / "photos" / "10.png")

    def work() -> None:
        with pytest.raises(UserError, match=r"1 unusable image: .*/10.png: a pipe, a socket or a device"):
            ImageFolder(str(tmp_path / "photos"), cache_dir=str(tmp_path / "cache")).prepare_data()

    in_time(work)


@pytest.mark.parametrize("up", ["..", "../.."])
@pytest.mark.parametrize("place", ["up", "inner/up"])
def test_a_link_to_a_parent_takes_no_other_folder_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], up: str, place: str
) -> None:
    photos = tmp_path / "deep" / "photos"
    for folder in (photos / "inner", tmp_path / "deep" / "private", tmp_path / "other"):
        folder.mkdir(parents=True)
        for number in range(10):
            Image.fromarray(PIXELS[number, 0]).save(folder / f"{number}.png")
    (photos / place).symlink_to(Path(*[".."] * place.count("/"), up))
    data = ImageFolder(str(photos), cache_dir=str(tmp_path / "cache"), height=8, width=8)
    assert sum(data.source().splits.values()) == 10
    assert f"{photos / place}: a link to a folder that contains it; not followed" in capsys.readouterr().out
