"""A model of padded sequences, with masked latents and a masked likelihood: padding changes no number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vae_lightning.distributions import Bernoulli, DiagonalNormal, FamilyRecipe, Masked, Repeated, StandardNormal
from vae_lightning.metrics import CollapseReport, Evaluation, Information, MarginalLikelihood
from vae_lightning.metrics.collapse import use_of_latents
from vae_lightning.models import LatentVariableModel
from vae_lightning.objectives import ELBO, IWAE, STL, BetaTC, DReG, InfoVAE, Objective
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import Batch, UserError

T = 4
STEPS = partial(Repeated, family=Bernoulli)


class Steps(LatentVariableModel):
    """z_t ~ N(0, 1) for each step t of a sequence, p(x_t|z_t) Bernoulli; `length` says how many steps x has."""

    def __init__(self, latent_size: int = 2, likelihood: FamilyRecipe = STEPS, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters()
        self.posterior, self.likelihood = Repeated((latent_size,), DiagonalNormal), likelihood((1, 3))
        self.encoder, self.decoder = nn.Linear(3, 2 * latent_size), nn.Linear(latent_size, 3)
        self.prior = StandardNormal((T, latent_size))

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x = batch["x"]  # [B, T, 1, 3]
        mask = torch.arange(T, device=x.device) < batch["length"][:, None]  # [B, T]
        q = Masked(self.posterior(self.encoder(x.flatten(2))), mask)
        z = q.rsample((num_samples,))  # [K, B, T, D]
        p_x = Masked(self.likelihood(self.decoder(z).unflatten(-1, (1, 3))), mask)
        return Trace(x, p_x, {"z": Latent(z, q, Masked(self.prior(), mask))})

    def sample(self, n: int) -> Tensor:
        return self.likelihood(self.decoder(self.prior().sample((n,))).unflatten(-1, (1, 3))).mean


def batch_of(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    length = torch.randint(1, T + 1, (count,), generator=generator)
    x = (torch.rand(count, T, 1, 3, generator=generator) < 0.3).float()
    x[torch.arange(T) >= length[:, None]] = -1  # no value of a Bernoulli
    return {"x": x, "length": length}


def without_padding(trace: Trace, row: int, length: int, model: Steps) -> Trace:
    """The trace of one sequence alone, at the same z."""
    x, latent = trace.x[row : row + 1, :length], trace.latents["z"]
    z = latent.z[:, row : row + 1, :length]
    q = model.posterior(model.encoder(x.flatten(2)))
    p_x = model.likelihood(model.decoder(z).unflatten(-1, (1, 3)))
    return Trace(x, p_x, {"z": replace(latent, z=z, q=q, p=StandardNormal((length, z.shape[-1]))())})


@pytest.mark.parametrize("objective", [ELBO, IWAE, STL, DReG])
def test_padding_changes_no_term(objective: Callable[[], Objective]) -> None:
    """Every term of a padded batch is that of the sequences one by one, and none is NaN."""
    torch.manual_seed(0)
    model, batch, loss = Steps(), batch_of(6), objective()
    trace = model.trace(batch, loss.num_samples)
    together = loss(trace, 3)
    for row, length in enumerate(batch["length"].tolist()):
        alone = loss(without_padding(trace, row, length, model), 3)
        assert alone.keys() == together.keys()
        for name, value in alone.items():
            torch.testing.assert_close(together[name][row], value[0], msg=name)


def test_padding_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model, batch = Steps(), batch_of(6)
    trace = model.trace(batch)
    lengths = batch["length"].tolist()
    alone = [without_padding(trace, row, length, model) for row, length in enumerate(lengths)]
    parameters = [*model.decoder.parameters()]
    found = torch.autograd.grad(ELBO()(trace, 0)["loss"].sum(), parameters, retain_graph=True)
    expected = torch.autograd.grad(sum(ELBO()(one, 0)["loss"].sum() for one in alone), parameters)  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("objective", [BetaTC, InfoVAE])
def test_what_compares_z_of_several_examples_refuses_hidden_positions(objective: Callable[..., Objective]) -> None:
    loss = objective(dataset_size=100) if objective is BetaTC else objective()
    trace = Steps().trace(batch_of(6), loss.num_samples)
    with pytest.raises(UserError, match="compares the z of different examples, and latent z hides other positions"):
        loss(trace, 0)
    assert "latent z: z has other positions in each example" in str(Information().why_not_applicable(trace, None))


def test_the_swap_cost_is_of_the_positions_that_both_sequences_have() -> None:
    """log p(x_b|z_b) - log p(x_b|z_(b-1)), over the first steps, as many as the shorter of the two has."""
    torch.manual_seed(0)
    model, batch = Steps(), batch_of(6)
    trace, lengths = model.trace(batch), batch["length"].tolist()
    probs = model.likelihood(model.decoder(trace.latents["z"].z[0]).unflatten(-1, (1, 3))).base_dist  # [B, T, 1, 3]
    found = use_of_latents(trace)["swap_cost"]
    for b, before in enumerate([5, 0, 1, 2, 3, 4]):
        shared = min(lengths[b], lengths[before])
        x = batch["x"][b, :shared]
        logits = [probs.logits[row, :shared] for row in (b, before)]
        own, other = (-nn.functional.binary_cross_entropy_with_logits(each, x, reduction="sum") for each in logits)
        torch.testing.assert_close(found[b], (own - other).detach())


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_padded_sequences_train_and_are_tested(tmp_path: Any) -> None:
    """The checks of the first batch take a padding of -1; the metrics and the collapse report are finite."""
    torch.manual_seed(0)
    rows = batch_of(32)
    loader = DataLoader([{name: value[i] for name, value in rows.items()} for i in range(32)], batch_size=8)  # type: ignore[arg-type]
    evaluation, collapse = Evaluation(), CollapseReport()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        max_epochs=2,
        default_root_dir=tmp_path,
        callbacks=[evaluation, MarginalLikelihood(10), collapse],
    )
    model = Steps()
    trainer.fit(model, loader, loader)
    trainer.test(model, loader, verbose=False)
    metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
    assert metrics["test/nll"] > 0
    numbers = 3 * rows["length"].double().mean().item()  # of a sequence, over the whole set
    assert metrics["test/nll_bpd"] == pytest.approx(metrics["test/nll"] / numbers / math.log(2), rel=1e-5)
    assert metrics["test/nll"] < -metrics["test/elbo"] + 0.1
    assert metrics["test/rate"] == pytest.approx(metrics["test/kl"], rel=1e-3)
    assert all(torch.isfinite(torch.tensor(value)) for value in metrics.values())
    assert "other positions" in evaluation.left_out["Information"]
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = Steps.load_from_checkpoint(tmp_path / "a.ckpt", trusted=["tests"]).eval()
    assert str(loaded) == str(model)
    samples = []
    for one in (loaded, model):
        torch.manual_seed(1)
        samples.append(one.sample(2))
    assert torch.equal(*samples)
