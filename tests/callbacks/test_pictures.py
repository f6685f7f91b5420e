"""Pictures are written at the right epochs, show the right images, and do not change the training."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from PIL import Image

from tests.helpers import read_picture
from vae_lightning.callbacks import Pictures
from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.pictures import reconstruction_grid, sample_grid, save_png, to_grid
from vae_lightning.types import UserError


def vae() -> VAE:
    torch.manual_seed(0)
    tiny = partial(MLP, hidden_sizes=(16,))
    return VAE((1, 8, 8), 4, encoder=tiny, decoder=tiny, likelihood=partial(Binomial, num_steps=16))


def fit(model: VAE, folder: Path, callbacks: list[pl.Callback], **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=settings.pop("logger", False),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=5,
        **settings,
    )
    trainer.fit(model, datamodule=Digits())
    return trainer


@pytest.mark.parametrize(
    ("every", "epochs", "expected"),
    [(2, 4, [2, 4]), (2, 5, [2, 4, 5]), (0, 3, [3]), (10, 3, [3])],
)
def test_drawn_every_n_epochs_and_at_the_end(every: int, epochs: int, expected: list[int], tmp_path: Path) -> None:
    """The sanity check draws none; its pictures would be of epoch 0 or 1."""
    fit(vae(), tmp_path, [Pictures(every, num_images=4)], max_epochs=epochs, num_sanity_val_steps=2)
    names = {f"{name}-{epoch:04d}.png" for name in ("samples", "reconstructions") for epoch in expected}
    assert {path.name for path in (tmp_path / "images").iterdir()} == names
    for path in (tmp_path / "images").iterdir():
        assert np.asarray(Image.open(path)).std() > 1


def test_training_goes_on_as_if_nothing_had_been_drawn(tmp_path: Path) -> None:
    with_pictures, without = vae(), vae()
    fit(with_pictures, tmp_path, [Pictures(1, num_images=4)], max_epochs=2)
    fit(without, tmp_path, [], max_epochs=2)
    for a, b in zip(with_pictures.parameters(), without.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_same_noise_each_time() -> None:
    model = vae()
    assert torch.equal(sample_grid(model, 6, seed=1), sample_grid(model, 6, seed=1))
    assert not torch.equal(sample_grid(model, 6, seed=1), sample_grid(model, 6, seed=2))


def test_grid_holds_the_pixels_enlarged_and_clamped() -> None:
    """An 8 x 8 image becomes 56 x 56; values outside [0, 1] are clamped, not wrapped around."""
    images = torch.tensor([-0.2, 0.0, 0.5, 1.0, 1.3]).view(5, 1, 1, 1).expand(5, 1, 8, 8)
    grid = to_grid(images)
    assert grid.dtype == torch.uint8
    assert grid.shape == (3, 2 + 58, 2 + 5 * 58)
    centres = grid[0, 30, 30::58].tolist()
    assert centres == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("n", [3, 10, 23])
def test_originals_stand_above_their_reconstructions(n: int) -> None:
    """The first row of each pair holds the pixels of the originals, whatever the encoder is."""
    x = torch.rand(n, 1, 8, 8)
    grid = reconstruction_grid(vae(), {"x": (x * 16).round() / 16}, seed=0)
    expected = to_grid(((x * 16).round() / 16)[:10])
    assert torch.equal(grid[:, :60, : expected.shape[-1]], expected)
    assert grid.shape[-2] == -(-n // 10) * (2 * 60 + 6)


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_any_number_of_channels_makes_a_picture(channels: int, tmp_path: Path) -> None:
    save_png(to_grid(torch.rand(4, channels, 8, 8)), tmp_path / "a" / "b.png")
    assert np.asarray(Image.open(tmp_path / "a" / "b.png")).shape[2] == 3


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError):
        Pictures(num_images=0)


class Quiet(Logger):
    """A logger that keeps only pictures, because the packages of Lightning's loggers are not installed here."""

    name, version, save_dir, log_dir = "quiet", "0", None, None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.kept: list[tuple[Any, ...]] = []

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_graph(self, *args: Any, **kwargs: Any) -> None: ...

    def save(self) -> None: ...

    def finalize(self, *args: Any, **kwargs: Any) -> None: ...


class Board(Quiet, TensorBoardLogger):
    @property
    def experiment(self) -> Any:
        return SimpleNamespace(add_image=lambda tag, image, step: self.kept.append((tag, tuple(image.shape), step)))


class Tracking(Quiet, MLFlowLogger):
    run_id = "run"  # type: ignore[assignment]

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(log_image=lambda run, image, file: self.kept.append((run, image.shape, file)))


def test_tensorboard_and_mlflow_get_the_pictures(tmp_path: Path) -> None:
    """TensorBoard gets [3, H, W]; MLflow gets [H, W, 3] and the name of a file."""
    board, tracking = Board(), Tracking()
    trainer = fit(vae(), tmp_path, [Pictures(1, num_images=4)], max_epochs=2, logger=[board, tracking])
    names, step = ("reconstructions", "samples"), trainer.global_step
    sizes = {name: read_picture(tmp_path / "images" / f"{name}-0002.png").shape[1:] for name in names}
    expected = [(name, (3, *sizes[name]), at) for at in (step // 2, step) for name in names]
    assert board.kept == expected
    assert tracking.kept == [("run", (*shape[1:], 3), f"{name}/{at:08d}.png") for name, shape, at in expected]
