"""Averaged weights: every verb reads the same weights from a checkpoint; the weights w serve only to resume."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.helpers import DIGITS, REPOSITORY, only
from vae_lightning.__main__ import main
from vae_lightning.callbacks import EMA, BestAndLast
from vae_lightning.data import Digits
from vae_lightning.distributions import ContinuousBernoulli
from vae_lightning.models import VAE
from vae_lightning.networks import MLP


def test_train_tests_the_weights_that_test_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All numbers of `train`'s test and of `test` are equal to the last bit."""
    monkeypatch.chdir(REPOSITORY)
    flags = ("--trainer.logger=false", "--trainer.accelerator=cpu", "--nll.num_samples=2", f"--runs_dir={tmp_path}")
    ema = ("--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.9")
    few = ("--trainer.max_epochs=3", "--trainer.check_val_every_n_epoch=1", "--trainer.limit_test_batches=2")
    assert main(["train", "-c", DIGITS, *flags, *ema, *few]) == 0
    folder = only(tmp_path, "vae/digits/*")
    trained = json.loads((folder / "results.json").read_text())
    assert main(["test", "-c", str(folder / "config.yaml"), *flags, f"--ckpt_path={folder}"]) == 0
    tested = json.loads((folder / "results.json").read_text())
    assert trained["checkpoint"] == tested["checkpoint"] == str(folder / "checkpoints" / "best.ckpt")
    assert trained["metrics"] == tested["metrics"]
    contents = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    pairs = [(value, contents["current_model_state"][name]) for name, value in contents["state_dict"].items()]
    assert not all(torch.equal(average, current) for average, current in pairs)  # w differs


def test_images_may_lie_in_a_mapped_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMA copies the model. The copy must not reach the command line through the optimizer, and so the mapped file."""
    monkeypatch.chdir(REPOSITORY)
    (tmp_path / "photos").mkdir()
    for number in range(30):
        Image.new("RGB", (16, 16), (number, 0, 255 - number)).save(tmp_path / "photos" / f"{number}.png")
    data = ("--data=ImageFolder", f"--data.data_dir={tmp_path / 'photos'}", "--data.height=8", "--data.width=8")
    speed = ("--speed.steps_per_call=2", "--data.batch_size=4", "--data.resident=mmap", "--data.channels=1")
    flags = ("--trainer.logger=false", "--trainer.accelerator=cpu", "--trainer.max_epochs=1", f"--runs_dir={tmp_path}")
    likelihood = "--model.likelihood=ContinuousBernoulli"
    ema = ("--trainer.callbacks+=EMA", "--trainer.callbacks.update_every_n_steps=2")
    assert main(["fit", "-c", DIGITS, *data, *speed, *flags, likelihood, *ema]) == 0


def trainer_of(folder: Path, *callbacks: pl.Callback, **flags: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return pl.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[BestAndLast(), *callbacks],
        limit_train_batches=3,
        limit_val_batches=1,
        limit_test_batches=1,
        use_distributed_sampler=False,
        **{**quiet, "max_epochs": 2, **flags},
    )


def model() -> VAE:
    tiny = partial(MLP, hidden_sizes=(16,))
    return VAE((1, 8, 8), 3, likelihood=ContinuousBernoulli, encoder=tiny, decoder=tiny)


@pytest.fixture
def fitted(tmp_path: Path) -> tuple[pl.Trainer, VAE, Digits]:
    vae, data, trainer = model(), Digits(batch_size=64), trainer_of(tmp_path, EMA(decay=0.7))
    trainer.fit(vae, datamodule=data)
    return trainer, vae, data


def test_a_trainer_that_has_fitted_evaluates_what_a_new_one_does(fitted: tuple[pl.Trainer, VAE, Digits]) -> None:
    """With `ckpt_path` "best" and None. Afterwards the model keeps the weights that were evaluated."""
    trainer, vae, data = fitted
    best = Path(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    saved = torch.load(best, weights_only=True)
    others = trainer_of(best.parent.parent)
    loaded = VAE.load_from_checkpoint(best)
    for path in (None, "best"):
        for evaluate in ("validate", "test"):
            here = getattr(trainer, evaluate)(vae, datamodule=data, ckpt_path=path, verbose=False)
            there = getattr(others, evaluate)(loaded, datamodule=Digits(batch_size=64), verbose=False)
            assert here == there, (path, evaluate)
            assert all(torch.equal(value, saved["state_dict"][name]) for name, value in vae.state_dict().items())
    means = [
        torch.cat([batch["z_mean"] for batch in t.predict(m, datamodule=data, ckpt_path=path)])  # type: ignore[union-attr,misc]
        for t, m, path in ((trainer, vae, "best"), (others, loaded, None))
    ]
    assert torch.equal(*means)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_second_fit_of_one_trainer_keeps_w_and_its_average_apart(fitted: tuple[pl.Trainer, VAE, Digits]) -> None:
    """A fit after a test saves the average as the weights, and w under `current_model_state`."""
    trainer, vae, data = fitted
    trainer.test(vae, datamodule=data, ckpt_path="best", verbose=False)
    trainer.fit_loop.max_epochs = 3
    last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
    trainer.fit(vae, datamodule=data, ckpt_path=last)
    again = torch.load(last, weights_only=True)
    whole = trainer_of(Path(trainer.default_root_dir) / "whole", EMA(decay=0.7), max_epochs=3)
    torch.manual_seed(0)
    whole.fit(model(), datamodule=Digits(batch_size=64))
    expected = torch.load(Path(whole.default_root_dir) / "checkpoints" / "last.ckpt", weights_only=True)
    for part in ("state_dict", "current_model_state"):
        assert all(torch.equal(again[part][name], value) for name, value in expected[part].items()), part


class _RunningMeans(pl.Callback):
    """Keeps the running mean of the first BatchNorm after each step."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.seen.append(batch_norm(pl_module).running_mean.clone())  # type: ignore[union-attr]


def batch_norm(module: nn.Module) -> nn.BatchNorm1d:
    return next(one for one in module.modules() if isinstance(one, nn.BatchNorm1d))


def test_the_running_means_of_a_batch_norm_are_averaged_and_its_counter_copied(tmp_path: Path) -> None:
    """The first update of an average copies."""
    tiny, means = partial(MLP, hidden_sizes=(16,), normalisation=nn.BatchNorm1d), _RunningMeans()
    vae = VAE((1, 8, 8), 3, likelihood=ContinuousBernoulli, encoder=tiny, decoder=tiny)
    trainer_of(tmp_path, EMA(decay=0.75), means, max_epochs=1).fit(vae, datamodule=Digits(batch_size=64))
    first, second, third = means.seen
    expected = 0.75 * (0.75 * first + 0.25 * second) + 0.25 * third
    assert not torch.allclose(expected, third)
    torch.testing.assert_close(batch_norm(vae).running_mean, expected)
    assert batch_norm(vae).num_batches_tracked == 3


def test_a_mask_of_infinite_numbers_stays_and_complex_numbers_are_averaged(tmp_path: Path) -> None:
    """lerp gives NaN between -inf and -inf; the model would compute NaN after the first validation."""
    tiny, mask = partial(MLP, hidden_sizes=(16,)), torch.full((3, 3), -torch.inf).triu(1)
    vae = VAE((1, 8, 8), 3, likelihood=ContinuousBernoulli, encoder=tiny, decoder=tiny)
    vae.register_buffer("mask", mask.clone(), persistent=False)
    vae.register_buffer("turns", torch.zeros(2, dtype=torch.complex64))
    trainer_of(tmp_path, EMA(decay=0.75), _Turns(), max_epochs=1).fit(vae, datamodule=Digits(batch_size=64))
    assert torch.equal(vae.get_buffer("mask"), mask)
    expected = 0.75 * (0.75 * 1j + 0.25 * 2j) + 0.25 * 3j
    torch.testing.assert_close(vae.get_buffer("turns"), torch.full((2,), expected, dtype=torch.complex64))


class _Turns(pl.Callback):
    """Adds i to the buffer `turns` before each step."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        pl_module.get_buffer("turns").add_(1j)
