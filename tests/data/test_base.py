"""Loaders serve each image once per epoch; order and noise depend only on the seed, the epoch and the image's index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from vae_lightning.data import Digits, ImageLoader, Images
from vae_lightning.storage.transforms import Binarisation, Transform
from vae_lightning.types import UserError

N = 23
PIXELS = torch.randint(256, (N, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
IMAGES = Images(PIXELS, torch.arange(N))  # the label is the index of the image


def loader(
    binarisation: Binarisation = "none",
    train: bool = True,
    epoch: int = 0,
    flip: bool = False,
    dequantise: bool = False,
    **settings: int,
) -> ImageLoader:
    transform = Transform(255, binarisation, flip, dequantise)
    batches = ImageLoader(IMAGES, **{"batch_size": 5, **settings}, train=train, transform=transform)  # type: ignore[arg-type]
    batches.set_epoch(epoch)
    return batches


def by_index(batches: ImageLoader) -> Tensor:
    """The images of one epoch, sorted by their index in the data set."""
    x, label = (torch.cat(values) for values in zip(*((b["x"], b["label"]) for b in batches), strict=True))
    return x[label.argsort()]


def order(batches: ImageLoader) -> list[int]:
    """The indices of the images of one epoch, in the order of the batches."""
    return [int(i) for b in batches for i in b["label"]]


def test_a_batch_is_float32_in_the_unit_interval() -> None:
    batch = next(iter(loader()))
    assert batch["x"].dtype == torch.float32
    assert batch["x"].shape == (5, 1, 4, 4)
    torch.testing.assert_close(batch["x"], PIXELS[batch["label"]].float() / 255)


@pytest.mark.parametrize("train", [True, False])
def test_each_image_once_and_the_last_batch_short(train: bool) -> None:
    batches = list(loader(train=train))
    assert [len(b["x"]) for b in batches] == [5, 5, 5, 5, 3]
    assert len(loader(train=train)) == 5
    assert sorted(order(loader(train=train))) == list(range(N))


def test_order_is_a_function_of_seed_and_epoch() -> None:
    """Earlier random draws and the batch size do not change the order. Evaluation keeps the order of the data set."""
    first = order(loader(epoch=3, seed=1))
    torch.rand(100)
    assert order(loader(epoch=3, seed=1)) == first
    assert order(loader(epoch=3, seed=1, batch_size=7)) == first
    assert order(loader(epoch=4, seed=1)) != first
    assert order(loader(epoch=3, seed=2)) != first
    assert order(loader(train=False, epoch=3)) == list(range(N))


def test_dynamic_binarisation_is_a_function_of_seed_epoch_and_index() -> None:
    first = by_index(loader("dynamic", epoch=2))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(by_index(loader("dynamic", epoch=2, batch_size=9)), first)
    assert not torch.equal(by_index(loader("dynamic", epoch=3)), first)
    assert not torch.equal(by_index(loader("dynamic", epoch=2, seed=1)), first)


def test_dynamic_binarisation_of_evaluation_is_drawn_once_for_all_runs() -> None:
    first = by_index(loader("dynamic", train=False))
    assert torch.equal(by_index(loader("dynamic", train=False, epoch=7, seed=5)), first)


def test_dynamic_binarisation_has_the_pixel_as_its_mean() -> None:
    """P(x = 1) = pixel / max, within 4.5 sigma over 2,000 epochs; the pixels 0 and max are never wrong."""
    few = Images(torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.uint8).view(1, 1, 2, 3))
    total = torch.zeros(6, dtype=torch.float64)
    batches = ImageLoader(few, 1, train=True, transform=Transform(255, "dynamic"))
    for epoch in range(2000):
        batches.set_epoch(epoch)
        total += next(iter(batches))["x"].flatten()
    p = torch.tensor([0, 1, 64, 128, 254, 255], dtype=torch.float64) / 255
    error = (total / 2000 - p).abs()
    assert (error <= 4.5 * (p * (1 - p) / 2000).sqrt()).all()


def test_threshold() -> None:
    levels = Images(torch.tensor([0, 127, 128, 255], dtype=torch.uint8).view(1, 1, 2, 2))
    x = next(iter(ImageLoader(levels, 1, train=False, transform=Transform(255, "threshold"))))["x"]
    assert x.flatten().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_take_disjoint_equal_slices_in_training_and_cover_everything_in_evaluation(world_size: int) -> None:
    ranks = [order(loader(epoch=1, rank=r, world_size=world_size)) for r in range(world_size)]
    assert {len(images) for images in ranks} == {N // world_size}
    together = [i for images in ranks for i in images]
    assert len(set(together)) == len(together)
    evaluated = [i for r in range(world_size) for i in order(loader(train=False, rank=r, world_size=world_size))]
    assert sorted(evaluated) == list(range(N))
    for r in range(world_size):
        assert len(list(loader(rank=r, world_size=world_size))) == len(loader(rank=r, world_size=world_size))


def test_ranks_see_the_noise_of_one_rank() -> None:
    """Two ranks binarise image i as one rank does."""
    whole = by_index(loader("dynamic", epoch=1))
    for rank in range(2):
        for batch in loader("dynamic", epoch=1, rank=rank, world_size=2):
            assert torch.equal(batch["x"], whole[batch["label"]])


@pytest.mark.parametrize("setting", [{"batch_size": 0}, {"eval_batch_size": -1}])
def test_impossible_sizes_are_refused(setting: dict[str, int]) -> None:
    with pytest.raises(UserError):
        Digits(**setting)  # type: ignore[arg-type]


def test_batches_on_the_device_are_returned_unchanged_and_others_are_moved() -> None:
    """The batches of `ImageLoader` are on the device; the loader of a subclass may yield any batch anywhere."""
    data, cpu, meta = Digits(), torch.device("cpu"), torch.device("meta")
    x = torch.zeros(2, 1, 8, 8)
    batches: list[Any] = [{"x": x, "label": x}, [{"x": x}, {"x": x}]]
    for batch in batches:
        assert data.transfer_batch_to_device(batch, cpu, 0) is batch
    single, several, tensors = (data.transfer_batch_to_device(batch, meta, 0) for batch in [*batches, [x, x]])
    for moved in (single["x"], single["label"], several[0]["x"], several[1]["x"], *tensors):
        assert moved.device == meta


class Recorder(pl.LightningModule):
    """Keeps the sums of the training images of each epoch, in the order of the batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.orders: dict[int, list[int]] = {}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        sums = self.orders.setdefault(self.current_epoch, [])
        sums += batch["x"].flatten(1).sum(1).tolist()
        return self.weight.square()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_resumed_fit_continues_with_the_order_of_its_epoch(tmp_path: Path) -> None:
    """Lightning tells the loader the epoch, for the first epoch after a resume too."""
    settings = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings |= {
        "default_root_dir": tmp_path,
        "enable_checkpointing": False,
        "log_every_n_steps": 5,
    }
    whole, beginning, rest = Recorder(), Recorder(), Recorder()
    pl.Trainer(max_epochs=3, **settings).fit(whole, Digits())  # type: ignore[arg-type]
    trainer = pl.Trainer(max_epochs=1, **settings)  # type: ignore[arg-type]
    trainer.fit(beginning, Digits())
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    pl.Trainer(max_epochs=3, **settings).fit(rest, Digits(), ckpt_path=tmp_path / "a.ckpt")  # type: ignore[arg-type]
    assert len({tuple(sums) for sums in whole.orders.values()}) == 3
    assert rest.orders == {epoch: whole.orders[epoch] for epoch in (1, 2)}


class Seen(pl.LightningModule):
    """Learns nothing, and keeps the x of each training batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[torch.Tensor] = []

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        self.batches.append(batch["x"])
        return self.weight * 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore:.*overfit.*", "ignore:.*validation_step.*", "ignore:.*val_dataloader.*")
@pytest.mark.parametrize(("overfit_batches", "same"), [(2, True), (0.0, False)])
def test_overfit_batches_are_the_same_in_each_epoch(tmp_path: Path, overfit_batches: float, same: bool) -> None:
    """The noise of binarisation is the same too, because a model can only overfit batches that do not change."""
    model = Seen()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(
        accelerator="cpu", default_root_dir=tmp_path, max_epochs=2, overfit_batches=overfit_batches, **quiet
    )
    trainer.fit(model, datamodule=Digits(batch_size=500, binarisation="dynamic"))
    first, second = torch.cat(model.batches).chunk(2)
    assert torch.equal(first, second) == same
