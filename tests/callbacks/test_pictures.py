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
from torch import Tensor

from tests.helpers import read_picture
from vae_lightning.callbacks import Pictures
from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.pictures import reconstruction_grid, sample_grid, save_png, to_grid
from vae_lightning.trace import Trace
from vae_lightning.types import UserError


def vae(kind: type[VAE] = VAE) -> VAE:
    torch.manual_seed(0)
    tiny = partial(MLP, hidden_sizes=(16,))
    return kind((1, 8, 8), 4, encoder=tiny, decoder=tiny, likelihood=partial(Binomial, num_steps=16))


def fit(model: VAE, folder: Path, callbacks: list[pl.Callback], **settings: Any) -> pl.Trainer:
    data = settings.pop("data", None) or Digits()
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
    trainer.fit(model, datamodule=data)
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


@pytest.mark.parametrize("settings", [{"num_images": -1}, {"every_n_epochs": -1}])
def test_impossible_settings_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(UserError, match="num_images=0 turns pictures off"):
        Pictures(**settings)


def test_no_pictures_if_they_are_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(vae(), tmp_path, [Pictures(1, num_images=0)], max_epochs=1)
    assert not (tmp_path / "images").exists()
    assert "pictures" not in capsys.readouterr().out


class Unseen(Digits):
    """Digits that say that they have no picture."""

    def show(self, x: Tensor) -> None:
        return None


class Broken(Digits):
    def show(self, x: Tensor) -> Tensor:
        torch.rand(3)  # takes numbers of the generator, which training must not miss
        raise RuntimeError("a fault\nof the user's own")


class BrokenModel(VAE):
    def panes(self, trace: Trace) -> dict[str, Tensor]:
        return {"mask": trace.x[0, 0]}

    def scenes(self, data: object) -> dict[str, Tensor]:
        raise NotImplementedError

    def sample(self, n: int) -> Tensor:
        torch.rand(n)
        return 1 / (n - n) * super().sample(n)


def test_what_has_no_picture_says_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(vae(), tmp_path, [Pictures(1, num_images=4)], max_epochs=2, data=Unseen())
    said = [line for line in capsys.readouterr().out.splitlines() if "pictures" in line]
    assert said == ["pictures: x of shape [1, 8, 8] has no picture; give the data module a show(x)"]


def test_an_exception_ends_no_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each fault is one line, once; the weights are those of a fit without pictures."""
    faulty, plain = vae(BrokenModel), vae()
    fit(faulty, tmp_path, [Pictures(1, num_images=4)], max_epochs=2)
    said = [line for line in capsys.readouterr().out.splitlines() if "pictures" in line]
    assert [line[:54] for line in said] == [
        "pictures: not drawn: BrokenModel.panes(trace), mask re",
        "pictures: not drawn: ZeroDivisionError: division by ze",
        "pictures: not drawn: NotImplementedError",
    ]
    fit(plain, tmp_path, [], max_epochs=2)
    shown = vae()
    fit(shown, tmp_path, [Pictures(1, num_images=4)], max_epochs=2, data=Broken())
    out = capsys.readouterr().out
    assert out.count("pictures: not drawn: RuntimeError: a fault of the user's own\n") == 1
    for model in (faulty, shown):
        assert model.training
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_full_disk_ends_no_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").write_text("a file where the folder should be")
    fit(vae(), tmp_path, [Pictures(1, num_images=4)], max_epochs=1)
    assert "pictures: not drawn: FileExistsError" in capsys.readouterr().out


class Telling(VAE):
    def scenes(self, data: object) -> dict[str, Tensor | list[str]]:
        assert isinstance(data, Digits)
        return {"a/dream": torch.rand(2, 3, 1, 8, 8), "story": ["once", "twice"]}


def test_the_scenes_of_a_model_are_written(tmp_path: Path) -> None:
    """The name of a scene makes the name of a file; clips make a GIF, texts a table."""
    board, tracking = Board(), Tracking()
    fit(vae(Telling), tmp_path, [Pictures(1, num_images=4)], max_epochs=1, logger=[board, tracking])
    names = ("a_dream-0001.gif", "a_dream-0001.png", "reconstructions-0001.png", "samples-0001.png", "story-0001.txt")
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == list(names)
    assert (tmp_path / "images" / "story-0001.txt").read_text().startswith("story, epoch 1\n")
    assert board.kept[-1][:2] == ("story", "```\nstory, epoch 1\n\n1    once\n2    twice\n```")
    assert ("run", str(tmp_path / "images" / "a_dream-0001.gif"), "a_dream") in tracking.kept


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
        return SimpleNamespace(
            add_image=lambda tag, image, step: self.kept.append((tag, tuple(image.shape), step)),
            add_text=lambda *args: self.kept.append(args),
        )


class Tracking(Quiet, MLFlowLogger):
    run_id = "run"  # type: ignore[assignment]

    @property
    def experiment(self) -> Any:
        return SimpleNamespace(
            log_image=lambda run, image, file: self.kept.append((run, image.shape, file)),
            log_artifact=lambda *args: self.kept.append(args),
            log_text=lambda *args: self.kept.append(args),
        )


def test_tensorboard_and_mlflow_get_the_pictures(tmp_path: Path) -> None:
    """TensorBoard gets [3, H, W]; MLflow gets [H, W, 3] and the name of a file."""
    board, tracking = Board(), Tracking()
    trainer = fit(vae(), tmp_path, [Pictures(1, num_images=4)], max_epochs=2, logger=[board, tracking])
    names, step = ("reconstructions", "samples"), trainer.global_step
    sizes = {name: read_picture(tmp_path / "images" / f"{name}-0002.png").shape[1:] for name in names}
    expected = [(name, (3, *sizes[name]), at) for at in (step // 2, step) for name in names]
    assert board.kept == expected
    assert tracking.kept == [("run", (*shape[1:], 3), f"{name}/{at:08d}.png") for name, shape, at in expected]
