"""Steps that would spoil the weights are skipped and counted, and the run stops after too many."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from vae_lightning.callbacks import EMA, BestAndLast, FiniteSteps
from vae_lightning.callbacks.finite import _skip
from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial, Family
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.runs.checkpoint_io import WholeFiles
from vae_lightning.types import Batch, UserError

TINY = partial(MLP, hidden_sizes=(16,))


@pytest.fixture(autouse=True)
def _as_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turn off the distributions' checks, which raise an error for a NaN in tests, but are off in a run."""
    monkeypatch.setattr(Family, "validate_args", False)


class Spoiled(VAE):
    """A VAE whose loss, gradient or weights are spoiled at some steps."""

    def __init__(self, how: str, when: list[int], **slots: Any) -> None:
        likelihood = partial(Binomial, num_steps=16)
        super().__init__((1, 8, 8), 4, encoder=TINY, decoder=TINY, likelihood=likelihood, **slots)
        self.how, self.when = how, when
        self.taken: list[bool] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        spoil = self.global_step in self.when
        if spoil and self.how == "batch":
            batch = {**batch, "x": batch["x"] * torch.nan}
        self._before = torch.cat([p.detach().flatten() for p in self.parameters()])
        loss = super().training_step(batch, batch_idx)
        return loss * 1e6 if spoil and self.how == "spike" else loss

    def on_after_backward(self) -> None:
        if self.global_step in self.when and self.how == "gradient":
            next(self.parameters()).grad[0, 0] = torch.inf  # type: ignore[index]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        self.taken.append(not torch.equal(self._before, torch.cat([p.detach().flatten() for p in self.parameters()])))
        if self.global_step in self.when and self.how == "weight":
            next(self.parameters()).data[0, 0] = torch.inf


def fit(folder: Path, model: VAE, *callbacks: pl.Callback, **settings: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        **{
            "accelerator": "cpu",
            "default_root_dir": folder,
            "max_steps": 12,
            "logger": False,
            "callbacks": [*callbacks, BestAndLast()],
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "val_check_interval": 4,
            "limit_val_batches": 1,
            "log_every_n_steps": 1,
            "plugins": [WholeFiles()],
            "use_distributed_sampler": False,
            **settings,
        }
    )
    trainer.fit(model, datamodule=Digits(batch_size=64))
    return trainer


def all_finite(path: Path) -> bool:
    checkpoint = torch.load(path, weights_only=True)
    adam = [value for state in checkpoint["optimizer_states"][0]["state"].values() for value in state.values()]
    return all(bool(value.isfinite().all()) for value in [*checkpoint["state_dict"].values(), *adam])


@pytest.mark.parametrize(
    ("how", "optimizer"),
    [
        ("batch", torch.optim.Adam),
        ("gradient", partial(torch.optim.Adam, fused=True)),
        ("spike", partial(torch.optim.SGD, momentum=0.9)),
    ],
)
def test_bad_steps_are_skipped_and_counted(how: str, optimizer: Any, tmp_path: Path) -> None:
    """Gradient clipping does not spoil the weights either, although its norm is NaN for all of them."""
    model = Spoiled(how, [3, 4, 5], optimizer=partial(optimizer, lr=1e-4))
    guard = FiniteSteps(max_grad_norm=1e6)
    trainer = fit(tmp_path, model, guard, gradient_clip_val=1000.0)
    assert model.taken == [step not in model.when for step in range(12)]
    assert trainer.callback_metrics["train/skipped_steps"] == 3
    assert 0 < trainer.callback_metrics["train/grad_norm"] < 1e6
    for name in ("best", "last", "previous"):
        assert all_finite(tmp_path / "checkpoints" / f"{name}.ckpt")


def test_after_too_many_in_a_row_the_run_stops_with_its_good_checkpoints(tmp_path: Path) -> None:
    model = Spoiled("batch", [6, 7, 8, 9])
    with pytest.raises(UserError, match=r"for 3 steps in a row \(now at step 8\): stopped"):
        fit(tmp_path, model, FiniteSteps(stop_after=3))
    for name in ("best", "last"):
        path = tmp_path / "checkpoints" / f"{name}.ckpt"
        assert all_finite(path)
        # last and best hold the weights of step 6, because steps 7 and 8 were skipped
        assert torch.load(path, weights_only=True)["global_step"] == 8


def test_the_run_of_bad_steps_is_counted_across_a_resume() -> None:
    guard, again = FiniteSteps(), FiniteSteps()
    for bad in (False, True, True):
        guard._count(torch.tensor(bad))
    assert guard.state_dict() == {"skipped": 2, "in_a_row": 2}
    again.load_state_dict(guard.state_dict())
    again._count(torch.tensor(True))
    assert again.state_dict() == {"skipped": 3, "in_a_row": 3}
    again._count(torch.tensor(False))
    assert again.state_dict() == {"skipped": 3, "in_a_row": 0}


@pytest.mark.parametrize("callbacks", [(), (partial(EMA, decay=0.5),)], ids=["plain", "ema"])
def test_a_weight_that_is_not_finite_is_never_saved(callbacks: Any, tmp_path: Path) -> None:
    model = Spoiled("weight", [6])
    with pytest.raises(UserError, match=r"^[\w.]+weight is not finite at step 8: not saved; .*are from earlier steps"):
        fit(tmp_path, model, FiniteSteps(), *(make() for make in callbacks))
    assert all_finite(tmp_path / "checkpoints" / "best.ckpt")
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_fused_optimizer_is_told_where_the_gradients_are() -> None:
    """The method of a GPU, run on the CPU: the host reads no value, and weights and moments do not change."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter], fused=True)
    parameter.grad = torch.ones(3)
    optimizer.step()
    before = parameter.detach().clone()
    moments = {name: value.clone() for name, value in optimizer.state[parameter].items()}
    parameter.grad = torch.full((3,), torch.nan)
    _skip(optimizer, torch.tensor(True), waits=False)
    optimizer.step()
    assert torch.equal(parameter, before)
    assert all(torch.equal(optimizer.state[parameter][name], value) for name, value in moments.items())
    parameter.grad = torch.ones(3)
    _skip(optimizer, torch.tensor(False), waits=False)
    optimizer.step()
    assert not torch.equal(parameter, before)


@pytest.mark.parametrize("settings", [{"stop_after": 0}, {"max_grad_norm": 0.0}, {"max_grad_norm": float("nan")}])
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="must be positive"):
        FiniteSteps(**settings)
