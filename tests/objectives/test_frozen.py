"""A network that an objective looks through: neither trained, nor averaged, nor saved."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lightning.callbacks import EMA
from vae_lightning.data import Digits
from vae_lightning.distributions import ContinuousBernoulli, Family
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.objectives import ELBO, Frozen
from vae_lightning.runs.checkpoint_io import WholeFiles
from vae_lightning.trace import Trace
from vae_lightning.types import UserError


class Perceptual(ELBO):
    """The ELBO, and the distance of x and its reconstruction in the features of a fixed network."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(), nn.Conv2d(4, 4, 3))
            self.features = Frozen(nn.Sequential(*layers))

    def terms(self, trace: Trace, step: int) -> dict[str, Tensor]:
        terms = super().terms(trace, step)
        difference = self.features(trace.p_x.mean[0]) - self.features(trace.x)
        distance = difference.square().flatten(1).sum(1)
        return {**terms, "loss": terms["loss"] + distance, "distance": distance}


def model_with(objective: Any = Perceptual, **kwargs: Any) -> VAE:
    torch.manual_seed(0)
    tiny = partial(MLP, hidden_sizes=(16,))
    return VAE((1, 8, 8), 3, objective=objective, likelihood=ContinuousBernoulli, encoder=tiny, decoder=tiny, **kwargs)


def frozen(model: VAE) -> nn.Module:
    assert isinstance(model.objective, Perceptual)
    return model.objective.features.network


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def fit(model: VAE, folder: Path, *callbacks: pl.Callback) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        max_epochs=2,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        callbacks=list(callbacks),
        plugins=[WholeFiles()],
    )
    trainer.fit(model, datamodule=Digits(batch_size=500, eval_batch_size=100))
    return trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.parametrize("callbacks", [(), (EMA,)])
def test_a_fit_changes_every_weight_but_the_frozen(tmp_path: Path, callbacks: tuple[type[pl.Callback], ...]) -> None:
    """Not by the gradient, weight decay, statistics of batches or an average; no dropout. The checkpoint is without."""
    model = model_with(optimizer=partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.5))
    network, weights, before = frozen(model), state(model), state(frozen(model))
    trainer = fit(model, tmp_path, *(make() for make in callbacks))
    assert not any(module.training for module in network.modules())
    assert equal(state(network), before)
    assert not any(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert {"train/distance", "val/distance"} <= trainer.callback_metrics.keys()
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    contents = torch.load(tmp_path / "a.ckpt", weights_only=True)
    kept = [*contents["state_dict"], *contents.get("current_model_state", {})]
    assert not [name for name in kept if "features" in name]
    assert sum(len(group["params"]) for group in contents["optimizer_states"][0]["param_groups"]) == len(weights)
    loaded = VAE.load_from_checkpoint(tmp_path / "a.ckpt", trusted=["tests"])
    assert equal(state(loaded), state(model))
    assert equal(state(frozen(loaded)), before)


def test_the_gradient_passes_through_to_the_decoder() -> None:
    """The distance alone trains the decoder, and no weight of the frozen network gets a gradient."""
    model = model_with()
    batch = {"x": torch.rand(5, 1, 8, 8)}
    model.objective(model.trace(batch), 0)["distance"].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.decoder.parameters())
    assert all(p.grad is None and not p.requires_grad for p in frozen(model).parameters())


def test_a_frozen_network_moves_and_is_copied_with_the_model() -> None:
    model = model_with()
    twin = copy.deepcopy(model).double()
    assert {p.dtype for p in frozen(twin).parameters()} == {torch.float64}
    assert {p.dtype for p in frozen(model).parameters()} == {torch.float32}
    assert {p.device.type for p in frozen(twin.to("meta")).parameters()} == {"meta"}
    assert "Conv2d(1, 4" in str(model.objective)


def test_the_optimizer_gets_what_requires_a_gradient() -> None:
    """A part of the model itself may be fixed, too; a model with nothing to train is refused in one line."""
    model = model_with()
    model.encoder.requires_grad_(False)
    optimizer: Any = model.configure_optimizers()
    (group,) = optimizer.param_groups
    others = [p for name, p in model.named_parameters() if not name.startswith("encoder")]
    assert list(map(id, group["params"])) == list(map(id, others))
    assert group["fused"]
    with pytest.raises(UserError, match=r"optimizer or scheduler: .*empty parameter list"):
        model.requires_grad_(False).configure_optimizers()


@pytest.mark.filterwarnings("ignore")  # the compiler's warnings
def test_one_compiled_graph_has_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Family, "validate_args", False)  # the default outside of tests
    monkeypatch.setattr(Distribution, "_validate_args", False)
    model = model_with()
    monkeypatch.setattr(model, "_check_once", id)  # the check asks a Trainer for the stage
    torch._dynamo.reset()
    batch, found = {"x": torch.rand(5, 1, 8, 8)}, []
    compiled = torch.compile(model.loss_and_terms, backend="aot_eager", fullgraph=True)
    for function in (model.loss_and_terms, compiled):
        torch.manual_seed(3)
        loss = function(batch, 0)[0]
        found.append(torch.autograd.grad(loss, list(model.parameters())))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
