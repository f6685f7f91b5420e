"""The checkpoints of a run: a resumed run keeps the best one, also after its folder was moved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from vae_lightning.callbacks import BestAndLast
from vae_lightning.types import UserError


class Scripted(pl.LightningModule):
    """A model whose validation score in each epoch is given."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.weight, self.scores = torch.nn.Parameter(torch.zeros(())), scores

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weight.square()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/elbo", self.scores[self.current_epoch], batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, scores: list[float], ckpt_path: Path | None = None, batches: int = 1, **settings: Any
) -> pl.Trainer:
    trainer = pl.Trainer(
        **{
            "default_root_dir": folder,
            "max_epochs": len(scores),
            "accelerator": "cpu",
            "logger": False,
            "callbacks": [BestAndLast()],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            **settings,
        }
    )
    trainer.fit(Scripted(scores), [0] * batches, [0], ckpt_path=ckpt_path)
    return trainer


def step_of(path: Path) -> int:
    """Return the step of a checkpoint, which is also its epoch: an epoch has one step."""
    return int(torch.load(path, weights_only=True)["global_step"])


def test_no_validation_within_a_step(tmp_path: Path) -> None:
    """A checkpoint holds no gradients, so the gradients of the batches before the validation would be lost."""
    with pytest.raises(UserError, match="validation after every 3 batches falls within a step of 2"):
        fit(tmp_path, [-1.0], accumulate_grad_batches=2, val_check_interval=3, batches=7)


def test_best_and_last(tmp_path: Path) -> None:
    fit(tmp_path, [-5.0, -2.0, -9.0])
    assert step_of(tmp_path / "checkpoints" / "best.ckpt") == 2
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 3
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("place", ["same", "relative", "moved"])
def test_a_resumed_run_that_gets_worse_keeps_its_best(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(Path("run"), [-5.0, -2.0])
    folder = {"same": tmp_path / "run", "relative": Path("run"), "moved": tmp_path / "elsewhere"}[place]
    if place == "moved":
        shutil.move("run", folder)
    trainer = fit(folder, [-5.0, -2.0, -9.0, -8.0], ckpt_path=folder / "checkpoints" / "last.ckpt")
    assert step_of(folder / "checkpoints" / "best.ckpt") == 2
    assert step_of(folder / "checkpoints" / "last.ckpt") == 4
    assert trainer.checkpoint_callback.best_model_score == -2.0  # type: ignore[union-attr]


def test_last_is_written_where_the_last_epoch_has_no_validation(tmp_path: Path) -> None:
    fit(tmp_path, [-5.0, -4.0, -3.0], check_val_every_n_epoch=2)
    assert step_of(tmp_path / "checkpoints" / "best.ckpt") == 2
    assert step_of(tmp_path / "checkpoints" / "last.ckpt") == 3


def test_a_dev_run_writes_nothing(tmp_path: Path) -> None:
    fit(tmp_path, [-5.0], fast_dev_run=True)
    assert not (tmp_path / "checkpoints").exists()
