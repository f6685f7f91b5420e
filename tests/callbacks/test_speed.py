"""Faster networks change numbers only by rounding, change no name in a checkpoint, and compile each size once."""

from __future__ import annotations

from functools import partial, partialmethod
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from vae_lightning.callbacks import FastNetworks
from vae_lightning.callbacks.speed import SteadyBar
from vae_lightning.data import Digits
from vae_lightning.distributions import Bernoulli, ContinuousBernoulli
from vae_lightning.models import VAE
from vae_lightning.networks import MLP, ConvDecoder, ConvEncoder
from vae_lightning.objectives import DReG
from vae_lightning.types import Network, Shape, UserError


class Normalised(MLP):
    """A network with batch normalisation, which keeps a running mean and variance of its inputs."""

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__(in_shape, out_shape)
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, out_shape[0]))


def _uncompiled(function: Any, **_: Any) -> Any:
    return function


def fitted(*callbacks: pl.Callback, epochs: int = 1, **settings: Any) -> VAE:
    pl.seed_everything(0, verbose=False)
    slots = {
        "encoder": partial(ConvEncoder, channels=(8, 16), hidden_size=32),
        "decoder": partial(ConvDecoder, channels=(8, 16), hidden_size=32),
        "likelihood": ContinuousBernoulli,
    }
    slots |= {name: settings.pop(name) for name in list(settings) if name in slots}
    model = VAE((1, 8, 8), latent_size=3, **slots)  # type: ignore[arg-type]
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, **settings}
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=epochs, enable_model_summary=False, callbacks=list(callbacks), **quiet
    )
    trainer.fit(model, datamodule=Digits(batch_size=300))
    return model


def test_channels_last_changes_nothing_but_the_memory_format() -> None:
    plain, fast = fitted().state_dict(), fitted(FastNetworks(channels_last=True)).state_dict()
    assert list(plain) == list(fast)
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-3, atol=1e-5)
    weight = fast["encoder.layers.2.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("device", "setting", "expected"),
    [("cpu", None, False), ("cuda", None, True), ("cpu", True, True), ("cuda", False, False)],
)
def test_the_memory_format_is_the_devices_unless_one_is_named(
    monkeypatch: pytest.MonkeyPatch, device: str, setting: bool | None, expected: bool
) -> None:
    model = VAE((1, 8, 8), 2, encoder=partial(ConvEncoder, channels=(8, 16)), decoder=ConvDecoder)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    monkeypatch.setattr(type(trainer.strategy), "root_device", torch.device(device))
    FastNetworks(channels_last=setting).setup(trainer, model, "fit")
    weight = model.state_dict()["encoder.layers.2.weight"]
    assert weight.is_contiguous(memory_format=torch.channels_last) == expected


@pytest.mark.slow  # a minute if the compiler's cache is empty
@pytest.mark.filterwarnings("ignore")  # the compiler's warnings
def test_a_compiled_step_is_the_same_step_and_compiles_no_size_twice() -> None:
    """Two epochs of 4 batches of 300 and one of 59, with the same noise: the second epoch compiles nothing."""
    counts: list[int] = []

    class Count(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = fitted(FastNetworks(compile=True, channels_last=False), Count(), epochs=2).state_dict()
    plain = fitted(epochs=2).state_dict()
    assert list(compiled) == list(plain)
    assert counts[0] > 0
    assert counts[1] == counts[0]
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # the compiler's warnings
def test_a_compiled_step_checks_the_data_and_moves_no_statistic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data are checked as without compilation, and the batch of that check does not enter a running mean."""
    monkeypatch.setattr(torch, "compile", _uncompiled)
    with pytest.raises(UserError, match="gives no probability to a pixel"):
        fitted(FastNetworks(compile=True), likelihood=Bernoulli)

    plain, compiled = (
        fitted(*fast, encoder=Normalised) for fast in ([], [FastNetworks(compile=True, channels_last=False)])
    )
    assert all(torch.equal(value, compiled.state_dict()[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("named", [None, "no-such-compiler"])
def test_without_a_compiler_it_says_so(named: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    if named:
        monkeypatch.setenv("CXX", named)
    with pytest.raises(UserError, match=rf"found no ({named or 'g[+][+]|clang[+][+]'}); install one"):
        FastNetworks(compile=True).setup(pl.Trainer(accelerator="cpu", logger=False), VAE((1, 4, 4), 2), "fit")


@pytest.mark.filterwarnings("ignore")  # the compiler's warnings
def test_an_objective_may_go_back_through_a_compiled_network_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """DReG has the same gradient with compiled networks; with donated buffers torch would refuse the second pass."""
    monkeypatch.setattr(Network, "compile", partialmethod(Network.compile, backend="aot_eager"))  # quick to compile
    small = partial(MLP, hidden_sizes=(4,))
    model = VAE((1, 4, 4), 2, encoder=small, decoder=small, objective=DReG)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    slopes = []
    with torch._functorch.config.patch(donated_buffer=True):  # the default, which the package changes while it compiles
        for setup in (lambda: None, lambda: FastNetworks(compile=True).setup(trainer, model, "fit")):
            setup()
            torch.manual_seed(0)
            trace = model.trace({"x": torch.ones(3, 1, 4, 4)}, model.objective.num_samples)
            loss = model.objective(trace, 0)["loss"].mean()
            slopes.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(slopes[1], slopes[0])


@pytest.mark.filterwarnings("ignore")  # rich warns that the output is no terminal
def test_the_bar_reads_the_metrics_now_and_then_and_not_at_each_step() -> None:
    reads = 0

    class Counted(SteadyBar):
        def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
            nonlocal reads
            reads += 1
            return super().get_metrics(trainer, pl_module)  # type: ignore[return-value]

    fitted(Counted(seconds=1000.0), epochs=3, enable_progress_bar=True)
    # the first batch, and three in each epoch: the last batch, the end, the validation
    assert 0 < reads <= 1 + 3 * 3 < 3 * 5
