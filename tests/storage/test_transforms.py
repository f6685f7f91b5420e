"""The noise of a transform has a stream of its own and the stated probabilities."""

from __future__ import annotations

import pytest
import torch

from vae_lightning import noise
from vae_lightning.data import Digits, ImageLoader, Images, Transform, loader, transforms


def test_the_order_of_an_epoch_and_each_transform_have_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counters behind all random numbers of an epoch: no two choices have the same counters."""
    drawn: list[tuple[int, ...]] = []

    def spy(*counters: int) -> int:
        drawn.append(counters)
        return 0

    for module in (noise, loader):
        monkeypatch.setattr(module, "derive_seed", spy)
    images = Images(torch.zeros(12, 1, 4, 4, dtype=torch.uint8))
    for transform in (Transform(flip=True, binarisation="dynamic"), Transform(dequantise=True)):
        transforms._mirrored.cache_clear()
        made = ImageLoader(images, 12, train=True, seed=5, transform=transform)
        made.set_epoch(7)
        assert len(list(made)) == 1
    transforms._mirrored.cache_clear()
    kinds = set(drawn)
    assert len(drawn) == 5  # the order is drawn twice
    assert len(kinds) == 4
    assert {counters[0] for counters in kinds} == {5}
    assert {counters[2] for counters in kinds} == {7}


def test_the_binarised_test_set_is_the_one_of_all_reports() -> None:
    """The pixels are checked by their number and by the sum of their places. Other noise is another test set."""
    data = Digits(binarisation="dynamic", eval_batch_size=100)
    data.prepare_data()
    data.setup("test")
    x = torch.cat([batch["x"] for batch in data.test_dataloader()]).flatten().long()
    assert (int(x.sum()), int(x @ torch.arange(len(x)))) == (6942, 78037788)


@pytest.mark.parametrize(("drawn", "lit"), [(0, [0, 1, 1, 1]), (32767, [0, 0, 1, 1]), (65535, [0, 0, 0, 1])])
def test_a_black_pixel_never_lights_up_and_a_white_one_always(
    monkeypatch: pytest.MonkeyPatch, drawn: int, lit: list[int]
) -> None:
    """P(1) = pixel / max, which is exactly 0 for black and 1 for white, whatever was drawn from 0 .. 65,535."""

    u = torch.full((1, 4), drawn, dtype=torch.int32)
    monkeypatch.setattr(transforms, "uniform16", lambda *_: u)
    pixels = torch.tensor([0, 1, 128, 255], dtype=torch.uint8).view(1, 1, 1, 4)
    x = Transform(255, "dynamic")(pixels, torch.zeros(1, dtype=torch.long), 0, 0, 1)
    assert x.flatten().tolist() == lit
