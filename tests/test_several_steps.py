"""Several steps in one call of `training_step` equal single steps, bit for bit: weights, schedules, log and counts."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import Logger

from tests.helpers import DIGITS, REPOSITORY
from vae_lightning.__main__ import main
from vae_lightning.callbacks import EMA, FastNetworks
from vae_lightning.data import Digits
from vae_lightning.distributions import ContinuousBernoulli
from vae_lightning.models import VAE
from vae_lightning.objectives import ELBO, LinearWarmup
from vae_lightning.types import UserError


class Memory(Logger):
    """A logger that keeps every metric with its step."""

    name, version = "memory", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[int, str], float] = {}

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        assert step is not None
        self.rows |= {(step, name): value for name, value in metrics.items() if "images_per_second" not in name}


class Saver(pl.Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")


def fit(
    steps_per_call: int, folder: Path | None = None, ckpt_path: Path | None = None, scheduler: Any = None, **flags: Any
) -> tuple[VAE, pl.Trainer, Memory]:
    """Fit for 3 epochs of 7 batches: 200 images in each batch, 66 in the last."""
    pl.seed_everything(0, verbose=False)
    step_lr = partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.7)
    model = VAE(
        (1, 8, 8),
        latent_size=3,
        likelihood=ContinuousBernoulli,
        objective=partial(ELBO, beta=LinearWarmup(7)),
        scheduler=scheduler or step_lr,
        scheduler_interval="epoch" if scheduler else flags.pop("interval", "step"),
    )
    log = Memory()
    callbacks = [
        FastNetworks(steps_per_call=steps_per_call),
        *flags.pop("also", []),
        *([Saver(folder)] if folder else []),
    ]
    options: dict[str, Any] = {"max_epochs": 3, "log_every_n_steps": 3, **flags}
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=log,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        callbacks=callbacks,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(model, datamodule=Digits(batch_size=200), ckpt_path=ckpt_path)
    return model, trainer, log


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"interval": "epoch"},
        {
            "scheduler": partial(
                ReduceLROnPlateau, monitor="val/elbo", mode="max", patience=0, threshold=1e9, threshold_mode="abs"
            )
        },
        {"accumulate_grad_batches": 4},
        {"gradient_clip_val": 0.5},
        {"max_steps": 8},
        {"limit_train_batches": 3},
        {"precision": "bf16-mixed"},
    ],
    ids=str,
)
def test_several_steps_are_the_same_steps(flags: dict[str, Any]) -> None:
    one, trainer_of_one, log_of_one = fit(1, **flags)
    several, trainer, log = fit(3, **flags)
    assert trainer.global_step == trainer_of_one.global_step
    assert all(torch.equal(value, several.state_dict()[name]) for name, value in one.state_dict().items())
    rates = [[group["lr"] for group in t.optimizers[0].param_groups] for t in (trainer_of_one, trainer)]
    assert rates[0] == rates[1] != [1e-3] or "max_steps" in flags or flags.get("limit_train_batches")
    assert log.rows == log_of_one.rows


def test_callbacks_are_asked_at_every_step() -> None:
    """Callbacks with a hook within a step are called, and afterwards the trainer has all callbacks again."""
    calls: list[str] = []

    class Listener(pl.Callback):
        def on_after_backward(self, *args: Any) -> None:
            calls.append("after backward")

    given = pl.callbacks.LambdaCallback(on_before_optimizer_step=lambda *_: calls.append("before step"))
    _, trainer, _ = fit(3, also=[Listener(), given, pl.Callback()], max_epochs=1)
    assert calls == ["after backward", "before step"] * 7
    assert [type(callback) for callback in trainer.callbacks][1:4] == [Listener, type(given), pl.Callback]  # type: ignore[attr-defined]


def test_log_of_several_intervals_in_a_call() -> None:
    """If a call has two logging steps, the later one is logged, at its own step."""
    one, several = fit(1)[2].rows, fit(6)[2].rows
    assert several.items() <= one.items()
    trained = {step for step, name in several if name.startswith("train")}
    assert trained == {5, 11, 17, 20}  # the logging steps of the calls: 2, 5; none; 8, 11; none; 14, 17; 20


def test_resume_between_calls_is_exact(tmp_path: Path) -> None:
    whole, _, _ = fit(3, tmp_path)
    (tmp_path / "resumed").mkdir()
    middle = tmp_path / "step10.ckpt"  # the 7 steps of the first epoch, and 3 of the next
    resumed, trainer, _ = fit(3, tmp_path / "resumed", middle)
    assert trainer.global_step == 21
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    with pytest.raises(UserError, match=r"steps_per_call=3; resume it with the same"):
        fit(1, None, middle)


def test_a_run_that_was_cut_within_a_call_is_not_taken_further(tmp_path: Path) -> None:
    fit(3, tmp_path, max_steps=8)
    with pytest.raises(UserError, match="max_steps ended the run within a call"):
        fit(3, None, tmp_path / "step8.ckpt")


def test_the_weights_of_a_run_are_tested_whatever_its_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run was cut within a call. `train` of the complete run and `test` alone give the same numbers."""
    monkeypatch.chdir(REPOSITORY)
    flags = ("--trainer.logger=false", "--trainer.accelerator=cpu", "--nll.num_samples=2", f"--runs_dir={tmp_path}")
    cut = ("-c", DIGITS, *flags, "--run_id=cut", "--trainer.max_steps=4", "--speed.steps_per_call=3")
    results = tmp_path / "vae" / "digits" / "cut" / "results.json"
    found = []
    for command in (
        ("fit", *cut),
        ("train", *cut),
        ("test", "-c", DIGITS, *flags, f"--ckpt_path={results.parent}"),
    ):
        assert main([*command]) == 0
        if command[0] != "fit":
            found.append(json.loads(results.read_text())["metrics"])
            results.unlink()
    assert found[0] == found[1]


def test_averages_of_weights_are_the_same_averages(tmp_path: Path) -> None:
    """The average is taken after every 3rd step, with calls of one step or three, and after a resume in mid-epoch."""

    def run(steps_per_call: int, folder: Path | None = None, ckpt_path: Path | None = None) -> tuple[VAE, VAE]:
        ema = EMA(decay=0.7, update_every_n_steps=3)
        model, _, _ = fit(steps_per_call, folder, ckpt_path, also=[ema], limit_train_batches=6)
        assert ema._average_model is not None
        return model, ema._average_model.module

    one, several = run(1), run(3, tmp_path)
    (tmp_path / "resumed").mkdir()
    resumed = run(3, tmp_path / "resumed", tmp_path / "step9.ckpt")
    for expected, *found in zip(one, several, resumed, strict=True):
        for model in found:
            assert all(torch.equal(v, model.state_dict()[name]) for name, v in expected.state_dict().items())
    assert not all(torch.equal(a, b) for a, b in zip(one[0].parameters(), one[1].parameters(), strict=True))


def test_an_average_after_a_short_call_is_taken_where_a_multiple_was_passed() -> None:
    """An epoch of 7 steps in calls of 3, 3 and 1.

    No call ends at steps 9, 12, 15 and 18; the call that passes such a step averages.
    """
    weights: dict[int, list[torch.Tensor]] = {}

    class Record(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
            weights[trainer.global_step] = [p.detach().clone() for p in pl_module.parameters()]

    ema = EMA(decay=0.7, update_every_n_steps=3)
    model, _, _ = fit(3, also=[Record(), ema])  # after a fit the model holds the average
    assert list(weights) == [3, 6, 7, 10, 13, 14, 17, 20, 21]
    average = weights[3]
    for step in (6, 10, 13, 17, 20, 21):
        average = [0.7 * old + 0.3 * new for old, new in zip(average, weights[step], strict=True)]
    for expected, found in zip(average, model.parameters(), strict=True):
        torch.testing.assert_close(found.detach(), expected)
    assert not all(torch.equal(p, last) for p, last in zip(model.parameters(), weights[21], strict=True))


def test_an_average_that_no_call_ends_at_is_refused() -> None:
    with pytest.raises(UserError, match=r"update_every_n_steps is 4; with --speed.steps_per_call=3 .* a multiple"):
        fit(3, also=[EMA(update_every_n_steps=4)])


@pytest.mark.parametrize("flags", [{"limit_train_batches": 4}, {"val_check_interval": 2}], ids=str)
def test_batches_that_do_not_fill_calls_are_refused(flags: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"not a multiple of 3; choose one, such as [36]"):
        fit(3, **flags)


def test_a_fraction_of_the_epochs_batches_is_refused() -> None:
    """Lightning would apply the fraction to calls: half of 3 calls is 1 call with 3 batches, where 3.5 were meant."""
    with pytest.raises(UserError, match=r"limit_train_batches is 0\.5, a fraction .* a multiple of 3, such as 30"):
        fit(3, limit_train_batches=0.5)


def test_no_steps_are_refused() -> None:
    with pytest.raises(UserError, match="steps_per_call is 0; it must be at least 1"):
        FastNetworks(steps_per_call=0)


def test_a_model_is_free_of_its_trainer_afterwards() -> None:
    """Otherwise a copy of the model would include the trainer and the data that the trainer holds."""
    model, _, _ = fit(2)
    assert model.multi_step is None
    assert torch.equal(copy.deepcopy(model).encoder.layers[1].weight, model.encoder.layers[1].weight)
