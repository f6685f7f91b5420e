"""The collapse report on models that are collapsed by construction, and on one that is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal
from torch.utils.data import DataLoader

from tests.models.linear_gaussian import IMAGE_SHAPE, linear_gaussian, set_exact_posterior
from vae_lightning.__main__ import main
from vae_lightning.distributions import Given
from vae_lightning.metrics import CollapseReport
from vae_lightning.metrics.collapse import diagnose, use_of_latents
from vae_lightning.models import VAE
from vae_lightning.objectives import ELBO
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import UserError

X = torch.randn(40, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def healthy() -> VAE:
    """The exact posterior of a decoder that reads both of its dimensions."""
    model = linear_gaussian(ELBO)
    with torch.no_grad():
        last(model.decoder).weight.mul_(3)
    set_exact_posterior(model)
    return model


def last(network: nn.Module) -> nn.Linear:
    layer = list(network.modules())[-1]
    assert isinstance(layer, nn.Linear)
    return layer


def raw(sigma: float) -> Tensor:
    return torch.log(torch.expm1(torch.tensor(sigma, dtype=torch.float64)))


def prior_for_posterior(model: VAE) -> None:
    """q(z|x) = N(0, I)."""
    last(model.encoder).weight.zero_()
    last(model.encoder).bias.copy_(torch.stack([0 * raw(1.0), 0 * raw(1.0), raw(1.0), raw(1.0)]))


def deaf_decoder(model: VAE) -> None:
    last(model.decoder).weight.zero_()


def one_dead_dimension(model: VAE) -> None:
    last(model.encoder).weight[[1, 3]] = 0
    last(model.encoder).bias[[1, 3]] = torch.stack([0 * raw(1.0), raw(1.0)])


def no_width(model: VAE) -> None:
    last(model.encoder).weight[2:] = 0
    last(model.encoder).bias[2:] = raw(1e-4)


def great_width(model: VAE) -> None:
    last(model.encoder).weight[2:] = 0
    last(model.encoder).bias[2:] = raw(50.0)


def leave_it(model: VAE) -> None: ...


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (prior_for_posterior, ["z is not used", "the decoder ignores its latents"]),
        (deaf_decoder, ["the decoder ignores its latents"]),
        (one_dead_dimension, ["1 of 2 dimensions of z are dead"]),
        (no_width, ["2 of 2 dimensions of z are all but deterministic"]),
        (great_width, ["2 of 2 dimensions of z have a q(z|x) more than 10 times as wide"]),
        (leave_it, []),
    ],
)
def test_each_sickness_by_its_name(break_it: Callable[[VAE], None], said: list[str]) -> None:
    """What is broken is found, with a remedy, in one line each; what is not is not."""
    model = healthy()
    with torch.no_grad():
        break_it(model)
    torch.manual_seed(0)
    means = {name: values.mean(0) for name, values in use_of_latents(model.trace({"x": X}, 20)).items()}
    findings = diagnose(means)
    assert [line[: len(start)] for line, start in zip(findings, said, strict=True)] == said
    assert all("Remedy" in line and "\n" not in line for line in findings)


def test_a_decoder_that_ignores_z_costs_exactly_nothing() -> None:
    """The same image under two equal distributions: a difference of 0, not a small one, however unlike the images."""
    model = healthy()
    with torch.no_grad():
        deaf_decoder(model)
    assert torch.equal(use_of_latents(model.trace({"x": 100 * X}))["swap_cost"], torch.zeros(40).double())


def test_the_swap_is_of_z_between_examples() -> None:
    """log p(x_b|z_b) - log p(x_b|z_(b-1)), against the decoder run on the z of the neighbour."""
    model = healthy()
    trace = model.trace({"x": X}, 3)
    swapped = model.likelihood(model.decoder(trace.latents["z"].z.roll(1, 1))).log_prob(X)
    expected = (trace.log_likelihood() - swapped).mean(0)
    torch.testing.assert_close(use_of_latents(trace)["swap_cost"], expected)


def test_a_posterior_of_no_known_width_is_judged_by_the_rest() -> None:
    """A full covariance has no KL by dimension: nothing is said of dimensions, and the total still counts."""
    q = MultivariateNormal(torch.zeros(5, 2), torch.eye(2))
    p = Independent(Normal(torch.zeros(2), torch.ones(2)), 1)
    trace = Trace(
        torch.zeros(5, 1), Independent(Normal(torch.zeros(1, 5, 1), 1.0), 1), {"u": Latent(q.sample((1,)), q, p)}
    )
    use = use_of_latents(trace)
    assert "kl_by_dimension/u" not in use
    assert diagnose({name: value.mean(0) for name, value in use.items()})[0].startswith("u is not used")


def silent_trainer(*callbacks: pl.Callback) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(accelerator="cpu", callbacks=list(callbacks), enable_checkpointing=False, **quiet)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")  # Lightning's, of loaders without workers
def test_the_callback_counts_each_image_once_up_to_its_number() -> None:
    """Batches of 16, 16 and 8, of which 16 + 16 are read where 20 are asked for; sums over batches, not of means."""
    model, report = healthy().float(), CollapseReport(num_images=20)
    batches = DataLoader([{"x": part} for part in X.float().split(16)], batch_size=None)  # type: ignore[arg-type]
    silent_trainer(report).test(model, batches, verbose=False)
    assert report._count == 32
    assert report.findings == []
    everything = CollapseReport()
    trainer = silent_trainer(everything)
    trainer.test(model, batches, verbose=False)
    assert everything._count == 40
    assert trainer.callback_metrics["test/swap_cost"] > 1
    assert trainer.callback_metrics["test/dead_dimensions/z"] == 0
    nothing = CollapseReport(num_images=0)
    trainer = silent_trainer(nothing)
    trainer.test(model, batches, verbose=False)
    assert "test/swap_cost" not in trainer.callback_metrics


def test_a_negative_number_is_refused() -> None:
    with pytest.raises(UserError, match="num_images is -1"):
        CollapseReport(num_images=-1)


@pytest.mark.filterwarnings("ignore")  # as on the command line
def test_a_run_ends_with_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A huge beta collapses q(z|x): the last lines and results.json say so."""
    monkeypatch.chdir(Path(__file__).parents[2])
    args = ["train", "-c", "configs/vae/digits.yaml", f"--runs_dir={tmp_path}", "--trainer.logger=false"]
    args += ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--nll.num_samples=2"]
    args += ["--trainer.accelerator=cpu", "--model.objective.beta=1000", "--trainer.enable_progress_bar=false"]
    assert main(args) == 0
    (results,) = tmp_path.rglob("results.json")
    findings = json.loads(results.read_text())["collapse"]
    assert findings[0].startswith("z is not used")
    assert findings[0] in capsys.readouterr().out


def test_a_model_that_is_given_pixels_is_asked_for_the_others_alone() -> None:
    """The neighbour's own known pixels are no surprise: the cost stays finite."""
    x = (torch.rand(6, 1, 4, 4) < 0.5).float()
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[..., 1] = True
    p_x = Independent(Bernoulli(logits=torch.zeros(1, 6, 1, 4, 4)), 3)
    q = Independent(Normal(torch.zeros(6, 2), torch.ones(6, 2)), 1)
    latent = Latent(q.sample((1,)), q, Independent(Normal(torch.zeros(2), torch.ones(2)), 1))
    cost = use_of_latents(Trace(x, Given(p_x, mask, x), {"z": latent}))["swap_cost"]
    torch.testing.assert_close(cost, torch.zeros(6))
