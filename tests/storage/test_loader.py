"""The place of the bytes does not change the batches, and prefetched batches keep their order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from vae_lightning.data import Digits, ImageLoader, Images, Transform
from vae_lightning.data.base import CachedImages, Resident, Source
from vae_lightning.storage.cache import Contents
from vae_lightning.storage.loader import prefetch
from vae_lightning.types import UserError

N = 60
PIXELS = torch.randint(256, (N, 3, 6, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def gathering() -> list[threading.Thread]:
    """Threads of `prefetch` that are still alive."""
    return [thread for thread in threading.enumerate() if thread.name == "gather"]


class Cached(CachedImages):
    """Random pixels in a file."""

    image_shape = (3, 6, 5)

    def settings(self) -> dict[str, str]:
        return {}

    def source(self) -> Source:
        labels = np.arange(N)
        return Source(
            {}, {"train": 40, "val": 11, "test": 9}, lambda: Contents(lambda i, j: PIXELS[i:j].numpy(), labels)
        )


def batches(folder: Path, resident: Resident) -> list[dict[str, torch.Tensor]]:
    data = Cached(str(folder), batch_size=7, flip=True, dequantise=True, resident=resident)
    data.prepare_data()
    loader = data.train_dataloader()
    loader.set_epoch(3)
    return [*loader, *data.val_dataloader(), *data.test_dataloader()]


@pytest.mark.parametrize("resident", ["device", "memory", "mmap"])
def test_where_the_bytes_live_changes_no_batch(tmp_path: Path, resident: Resident) -> None:
    expected, actual = batches(tmp_path, "auto"), batches(tmp_path, resident)
    assert len(expected) == len(actual) == 6 + 11 + 9  # of so few images, each is a batch
    for one, other in zip(expected, actual, strict=True):
        assert torch.equal(one["x"], other["x"])
        assert torch.equal(one["label"], other["label"])


def test_only_the_settings_auto_and_mmap_map_the_file(tmp_path: Path) -> None:
    for resident, mapped in (("auto", True), ("mmap", True), ("memory", False), ("device", False)):
        data = Cached(str(tmp_path), resident=resident)  # type: ignore[arg-type]
        data.prepare_data()
        assert (data.images("train").mapping is not None) == mapped


def test_images_without_a_file_cannot_be_mapped() -> None:
    with pytest.raises(UserError, match=r"choose --data\.resident=auto, memory or device"):
        Digits(resident="mmap").images("train")


def test_a_thread_gathers_batches_for_another_device() -> None:
    """`meta` stands for a GPU: the bytes are in memory, and the batches on another device."""
    images = Images(PIXELS, torch.arange(N))
    elsewhere = ImageLoader(images, 7, train=True, device=torch.device("meta"), transform=Transform())
    assert [tuple(batch["x"].shape) for batch in elsewhere] == [(7, 3, 6, 5)] * 8 + [(4, 3, 6, 5)]
    assert {batch["x"].device.type for batch in elsewhere} == {"meta"}
    assert not gathering()


def test_the_position_is_asked_for_when_the_first_batch_is() -> None:
    """Lightning makes the iterator before it knows at which batch the fit goes on."""
    position = 0
    images = Images(PIXELS, torch.arange(N))
    loader = ImageLoader(images, 7, train=True, position=lambda: position)
    whole = [batch["label"] for batch in loader]
    iterator = iter(loader)
    position = 5
    rest = [batch["label"] for batch in iterator]
    assert len(whole) == len(loader) == 9
    assert [r.tolist() for r in rest] == [w.tolist() for w in whole[5:]]


def test_prefetch_keeps_order_and_stays_within_its_depth() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    iterator = prefetch(items(), depth=2)
    for number in range(20):
        assert next(iterator) == number
        assert len(made) <= number + 1 + 2 + 1  # two items wait, and the thread holds one
    assert list(iterator) == []
    assert not gathering()


def test_prefetch_passes_an_error_at_its_place_and_ends_its_thread() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise UserError("the disk is gone")

    iterator = prefetch(items(), depth=2)
    assert next(iterator) == 1
    with pytest.raises(UserError, match="the disk is gone"):
        next(iterator)
    assert not gathering()


def test_prefetch_ends_its_thread_when_it_is_closed() -> None:
    iterator = prefetch(iter(range(10**9)), depth=2)
    assert next(iterator) == 0
    iterator.close()  # type: ignore[attr-defined]
    assert not gathering()


def test_dequantised_pixels_lie_within_their_level() -> None:
    """floor(256 x) is the pixel, and the noise is uniform: mean 1/2, variance 1/12, within 4.5 standard errors."""
    x = next(iter(ImageLoader(Images(PIXELS), N, train=False, transform=Transform(dequantise=True))))["x"] * 256
    assert torch.equal(x.floor(), PIXELS.float())
    u = (x - x.floor()).double().flatten()
    assert abs(u.mean() - 0.5) < 4.5 * (1 / 12 / len(u)) ** 0.5
    assert abs(u.var() - 1 / 12) < 4.5 * (1 / 180 / len(u)) ** 0.5
    assert x.max() < 256


def test_half_of_the_images_are_mirrored_as_a_function_of_seed_epoch_and_index() -> None:
    transform, index = Transform(flip=True), torch.arange(4000)
    pixels = torch.zeros(4000, 1, 1, 2, dtype=torch.uint8)
    pixels[..., 0] = 255

    def mirrored(seed: int, epoch: int) -> torch.Tensor:
        return transform(pixels.clone(), index, seed, epoch, 4000)[:, 0, 0, 1] == 1

    first = mirrored(0, 0)
    assert abs(int(first.sum()) - 2000) < 4.5 * 1000**0.5
    assert torch.equal(mirrored(0, 0), first)
    for other in (mirrored(1, 0), mirrored(0, 1)):
        assert 1800 < int((other ^ first).sum()) < 2200
    # whatever the batch is, and however many images there are
    nine = transform(pixels[:9].clone(), index[100:109], 0, 0, 4001)
    assert torch.equal(nine[:, 0, 0, 1] == 1, first[100:109])


def test_a_flip_is_the_mirror_image_bit_for_bit() -> None:
    x = Transform(flip=True)(PIXELS.clone(), torch.arange(N), 0, 0, N) * 255
    for image, original in zip(x.round().to(torch.uint8), PIXELS, strict=True):
        assert torch.equal(image, original) or torch.equal(image, original.flip(-1))


@pytest.mark.parametrize("batches_per_call", [1, 3])
def test_mirroring_a_batch_leaves_the_set_as_it_was(batches_per_call: int) -> None:
    pixels = PIXELS.clone()
    loader = ImageLoader(Images(pixels), 4, train=True, transform=Transform(flip=True))
    loader.batches_per_call = batches_per_call
    assert list(loader)
    assert torch.equal(pixels, PIXELS)


def test_binarised_and_dequantised_at_once_is_refused() -> None:
    with pytest.raises(UserError, match="choose one"):
        Transform(binarisation="dynamic", dequantise=True)
