"""Faster forms of the networks change no number beyond rounding, no name in a checkpoint, and compile no size twice."""

from __future__ import annotations

from functools import partial, partialmethod
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from vae_lightning.callbacks import FastNetworks
from vae_lightning.callbacks.speed import SteadyBar
from vae_lightning.data import Digits
from vae_lightning.distributions import ContinuousBernoulli
from vae_lightning.models import VAE
from vae_lightning.networks import MLP, ConvDecoder, ConvEncoder
from vae_lightning.objectives import DReG
from vae_lightning.types import Network


def fitted(*callbacks: pl.Callback, epochs: int = 1, **settings: Any) -> VAE:
    pl.seed_everything(0, verbose=False)
    networks = {
        "encoder": partial(ConvEncoder, channels=(8, 16), hidden_size=32),
        "decoder": partial(ConvDecoder, channels=(8, 16), hidden_size=32),
    }
    model = VAE((1, 8, 8), latent_size=3, likelihood=ContinuousBernoulli, **networks)  # type: ignore[arg-type]
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


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_compiled_networks_keep_their_names_and_compile_no_size_twice() -> None:
    """4 batches of 300 and a short one of 59, and validation: after the first epoch nothing is compiled anew."""
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
        torch.testing.assert_close(compiled[name], value, rtol=1e-2, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_an_objective_may_go_back_through_a_compiled_network_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """DReG's gradient is the same with compiled networks as without, which torch refuses where buffers are donated."""
    monkeypatch.setattr(Network, "compile", partialmethod(Network.compile, backend="aot_eager"))  # quick to compile
    small = partial(MLP, hidden_sizes=(4,))
    model = VAE((1, 4, 4), 2, encoder=small, decoder=small, objective=DReG)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    slopes = []
    with torch._functorch.config.patch(donated_buffer=True):  # as it is by default, and afterwards again
        for setup in (lambda: None, lambda: FastNetworks(compile=True).setup(trainer, model, "fit")):
            setup()
            torch.manual_seed(0)
            trace = model.trace({"x": torch.ones(3, 1, 4, 4)}, model.objective.num_samples)
            loss = model.objective(trace, 0)["loss"].mean()
            slopes.append(torch.autograd.grad(loss, list(model.parameters())))
    torch.testing.assert_close(slopes[1], slopes[0])


@pytest.mark.filterwarnings("ignore")  # rich's, of a terminal that is none
def test_the_bar_reads_the_metrics_now_and_then_and_not_at_each_step() -> None:
    reads = 0

    class Counted(SteadyBar):
        def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
            nonlocal reads
            reads += 1
            return super().get_metrics(trainer, pl_module)  # type: ignore[return-value]

    fitted(Counted(seconds=1000.0), epochs=3, enable_progress_bar=True)
    assert 0 < reads <= 1 + 3 * 3 < 3 * 5  # the first batch; and of each epoch of 5 its last, its end, its validation
