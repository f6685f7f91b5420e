"""Canvases of digits as a data set: what a batch holds, no digit in two splits, one test set for all runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from tests.helpers import write_mnist
from vae_lightning.__main__ import main
from vae_lightning.data import CIFAR10, MNIST, MultiDigits
from vae_lightning.data.base import SPLITS, ImageDataModule
from vae_lightning.data.digits import _load_digits, _stratified_split
from vae_lightning.types import UserError

SMALL = (300, 40, 60)


def everything(data: ImageDataModule) -> dict[str, Tensor]:
    """All batches of the test set."""
    batches = list(data.test_dataloader())
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def test_a_batch_holds_the_canvas_and_what_is_on_it() -> None:
    data = MultiDigits(num_images=SMALL, max_digits=3)
    batch = next(iter(data.train_dataloader()))
    assert {name: (value.dtype, tuple(value.shape)) for name, value in batch.items()} == {
        "x": (torch.float32, (128, 1, 24, 24)),
        "segmentation": (torch.uint8, (128, 24, 24)),
        "count": (torch.int64, (128,)),
        "boxes": (torch.float32, (128, 3, 4)),
    }
    assert (data.image_shape, data.num_objects) == ((1, 24, 24), 3)
    x, objects = batch["x"][:, 0], batch["segmentation"]
    assert torch.equal((x * 16).round() / 16, x)  # 17 grey levels, as in the source
    assert torch.equal(x > 0.1, objects > 0)
    assert torch.equal(objects.flatten(1).amax(1).long(), batch["count"])
    assert torch.equal((batch["boxes"] >= 0).all(2).sum(1), batch["count"])
    assert [len(data.images(split)) for split in SPLITS] == list(SMALL)
    assert data.images("train").pixels.dtype == torch.uint8


def test_no_digit_is_in_two_splits() -> None:
    """A canvas of a split shows digits of that split of the source alone, and these sets are disjoint."""
    pixels, labels = _load_digits()
    index = _stratified_split(labels)
    data = MultiDigits(num_images=SMALL)
    used = []
    for split in SPLITS:
        fields, white = data.draw(split)
        assert white == 16
        source = fields["source"][fields["source"] >= 0]
        used.append(set(index[split][source].tolist()))
        for i in (fields["count"] > 0).nonzero()[:20, 0]:
            top, left, height, width = fields["boxes"][i, 0].long().tolist()
            patch = fields["x"][i, 0, top : top + height, left : left + width]
            digit = pixels[index[split][fields["source"][i, 0]], 0]
            assert bool((digit.unfold(0, height, 1).unfold(1, width, 1) == patch).flatten(2).all(2).any())
    assert all(used)
    assert len(set().union(*used)) == sum(map(len, used))


def test_counts_are_uniform_in_every_split() -> None:
    data = MultiDigits(num_images=(6000, 3000, 3000))
    for split in SPLITS:
        counts = torch.bincount(data.examples(split).fields["count"], minlength=3)
        assert chisquare(counts).pvalue > 0.01, (split, counts)


def test_all_runs_have_one_test_set() -> None:
    """The seed of a run changes the order of training, never a canvas; `canvas_seed` does."""
    first, second, other = (MultiDigits(num_images=SMALL, seed=s, canvas_seed=c) for s, c in ((0, 0), (7, 0), (0, 1)))
    a, b, c = everything(first), everything(second), everything(other)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["x"], c["x"])
    more = everything(MultiDigits(num_images=(300, 40, 100)))  # the first 60 of 100 are the same
    assert torch.equal(more["boxes"][:60], a["boxes"])
    train, val = (first.examples(split).fields["count"] for split in ("train", "val"))  # type: ignore[arg-type]
    assert not torch.equal(train[:40], val)


def test_mnist_halved(tmp_path: Path) -> None:
    """Images of noise: means over squares of four pixels."""
    arrays = write_mnist(tmp_path / "MNIST/raw", train=60, test=12)
    source = partial(MNIST, verify=False)
    data = MultiDigits(str(tmp_path), source=source, canvas_size=40, scale=2, num_images=SMALL)
    data.prepare_data()
    fields, white = data.draw("test")
    assert white == 255
    halved = torch.from_numpy(arrays["t10k-images-idx3-ubyte"]).float().view(12, 14, 2, 14, 2).mean((2, 4))
    one = int((fields["count"] == 1).nonzero()[0, 0])
    top, left, height, width = fields["boxes"][one, 0].long().tolist()
    assert (height, width) == (14, 14)
    patch = fields["x"][one, 0, top : top + 14, left : left + 14].float()
    assert (patch - halved[fields["source"][one, 0]]).abs().max() <= 0.5


def test_options_of_images_apply() -> None:
    data = MultiDigits(num_images=SMALL, binarisation="threshold")
    assert everything(data)["x"].unique().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"canvas_size": 0}, "canvas_size is 0; it must be at least 1"),
        ({"max_digits": 0}, "max_digits is 0; it must be at least 1"),
        ({"max_digits": 256}, "max_digits is 256; it must be at most 255"),
        ({"gap": -1}, "gap is -1; it must be at least 0"),
        ({"num_images": (9, 0, 9)}, "num_images is 0; it must be at least 1"),
        ({"scale": 3}, "images of Digits are 1 x 8 x 8; they must be grey, and scale 3 must divide"),
        ({"source": CIFAR10}, "images of CIFAR10 are 3 x 32 x 32; they must be grey"),
        ({"canvas_size": 7}, "up to 8 x 7 pixels do not fit on 7 x 7; choose a larger --data.canvas_size"),
        ({"max_digits": 9}, "9 objects .* found no room on 24 x 24"),
        ({"num_images": (10**12, 1, 1)}, "1,000,000,000,000 canvases take 1,072,883.6 GiB, but only"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^MultiDigits: .*{says}"):
        MultiDigits(**settings).examples("train")


def test_the_command_line_names_the_source_by_its_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mnist(tmp_path / "MNIST/raw", train=60, test=12)
    places = ("--model=VAE", "--data=MultiDigits", f"--data.data_dir={tmp_path}", "--data.num_images=[60,10,10]")
    mnist = ("--data.source=MNIST", "--data.source.verify=false", "--data.scale=2", "--data.canvas_size=40")
    assert main(["check-data", *places, *mnist]) == 0
    assert main(["check-data", *places, "--data.source=Digits"]) == 0
    assert main(["check-data", *places, "--data.source=MNIST"]) == 1
    assert "digest" in capsys.readouterr().out
