"""The importance-sampled likelihood agrees with a model whose log p(x) is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import Mock

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from tests.models.linear_gaussian import IMAGE_SHAPE, exact_log_p, linear_gaussian, set_exact_posterior
from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial, DiagonalNormal, FamilyRecipe
from vae_lightning.metrics import MarginalLikelihood, MeanAndError, log_marginal_likelihood
from vae_lightning.metrics.likelihood import importance_estimate
from vae_lightning.models import VAE
from vae_lightning.objectives import ELBO
from vae_lightning.trace import Observed, Trace
from vae_lightning.types import Batch, UserError

X = torch.randn(6, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_converges_to_the_exact_log_p() -> None:
    """With an inexact q, 50,000 samples are within 0.02 nats, and 10 samples are too low on average."""
    model = linear_gaussian(ELBO)
    set_exact_posterior(model)
    with torch.no_grad():
        list(model.encoder.parameters())[-1].add_(0.2)  # the means and the widths of q(z|x) are off now
    exact = exact_log_p(model, X)
    many = log_marginal_likelihood(model, {"x": X}, 50_000, chunk_size=5000)
    torch.testing.assert_close(many, exact, rtol=0, atol=0.02)
    few = torch.stack([log_marginal_likelihood(model, {"x": X}, 10) for _ in range(100)]).mean()
    assert few < exact.mean()


def test_the_networks_run_in_full_precision_for_it_whatever_they_train_in() -> None:
    """Under bf16-mixed the test's ELBO uses bfloat16 networks, and the K importance weights use float32 ones."""
    model, dtypes = VAE((1, 8, 8), 2, likelihood=partial(Binomial, num_steps=16)), []
    model.decoder.register_forward_hook(lambda *call: dtypes.append((len(call[2]), call[2].dtype)))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [MarginalLikelihood(num_samples=7, chunk_size=7)]
    trainer = pl.Trainer(accelerator="cpu", precision="bf16-mixed", limit_test_batches=1, callbacks=callbacks, **quiet)  # type: ignore[arg-type]
    trainer.test(model, datamodule=Digits(), verbose=False)
    assert (1, torch.bfloat16) in dtypes
    assert {dtype for num_samples, dtype in dtypes if num_samples == 7} == {torch.float32}


@pytest.mark.parametrize(("num_samples", "chunk_size"), [(1, 20), (7, 3), (20, 20), (21, 20)])
def test_every_sample_counts_once_whatever_the_chunk(num_samples: int, chunk_size: int) -> None:
    """At the exact posterior each weight is p(x); a wrong number of samples would differ by log((K +- 1) / K)."""
    model = linear_gaussian(ELBO)
    set_exact_posterior(model)
    found = log_marginal_likelihood(model, {"x": X}, num_samples, chunk_size)
    torch.testing.assert_close(found, exact_log_p(model, X), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("num_samples", "chunk_size", "images", "samples"),
    [
        (50, 8, [6], [8, 8, 8, 8, 8, 8, 2]),
        (500, 250, [4, 2], [250, 250]),
        (3, 5000, [6], [3]),
        (1200, 5000, [1] * 6, [1200]),
    ],
)
def test_no_trace_is_larger_than_a_chunk_nor_than_a_cache(
    monkeypatch: pytest.MonkeyPatch, num_samples: int, chunk_size: int, images: list[int], samples: list[int]
) -> None:
    asked = []
    trace = VAE.trace

    def spy(self: VAE, batch: Batch, num_samples: int = 1) -> object:
        asked.append((len(batch["x"]), num_samples))
        return trace(self, batch, num_samples)

    monkeypatch.setattr(VAE, "trace", spy)
    log_marginal_likelihood(linear_gaussian(ELBO), {"x": X}, num_samples, chunk_size)
    assert asked == [(size, count) for size in images for count in samples]


@pytest.mark.parametrize("chunk_size", [50, 7])
def test_the_sums_over_samples_are_in_double_precision(chunk_size: int) -> None:
    """The sums are exact to 1e-9 for log weights of -10^5 nats, at which float32 has steps of 2^-7."""
    model, x = linear_gaussian(ELBO), 300 * X.float()
    set_exact_posterior(model)
    with torch.no_grad():
        list(model.encoder.parameters())[-1].add_(0.2)  # so that the weights differ
    model.float()
    torch.manual_seed(5)
    found = importance_estimate(model, {"x": x}, 50, chunk_size)
    torch.manual_seed(5)
    log_w = torch.cat([model.trace({"x": x}, len(part)).log_weight() for part in torch.arange(50).split(chunk_size)])
    assert log_w.dtype == torch.float32
    assert log_w.abs().max() > 1e5
    torch.testing.assert_close(found.log_p, log_w.double().logsumexp(0) - math.log(50), rtol=0, atol=1e-9)
    weights = log_w.double().softmax(0)
    torch.testing.assert_close(found.effective_samples, 1 / weights.square().sum(0), rtol=1e-9, atol=0)


def test_weights_that_underflow_do_not() -> None:
    """The estimate is exact for log p(x) below -2,000 nats, at which e^(log w) is 0 in every float type."""
    model = linear_gaussian(ELBO)
    set_exact_posterior(model)
    far = 200 * X
    exact = exact_log_p(model, far)
    assert exact.max() < -2000
    torch.testing.assert_close(log_marginal_likelihood(model, {"x": far}, 30), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("sizes", [(12,), (5, 5, 2), (1,) * 12])
def test_mean_and_standard_error(sizes: tuple[int, ...]) -> None:
    """The result is that of all values together for all batch sizes; a large offset loses no digits."""
    values: Tensor = 1e4 + torch.randn(12, dtype=torch.float64)
    metric = MeanAndError()
    for part in values.split(list(sizes)):
        metric.update(part)
    mean, error = metric.compute()
    assert mean.item() == pytest.approx(values.mean().item(), rel=1e-12)
    assert error.item() == pytest.approx(values.std().item() / math.sqrt(12), rel=1e-6)


def test_states_stay_in_double_precision() -> None:
    assert MeanAndError().float().total.dtype == torch.float64


@pytest.mark.parametrize(
    ("likelihood", "dequantise", "offset"),
    [
        (partial(Binomial, num_steps=16), False, 0.0),
        (DiagonalNormal, True, math.log2(17)),
        (DiagonalNormal, False, None),
    ],
)
def test_bits_per_dimension_where_they_mean_something(
    likelihood: FamilyRecipe, dequantise: bool, offset: float | None
) -> None:
    """The number is nll / (D log 2) for a mass; dequantised data add log2 of the levels; a density has none."""
    model = VAE((1, 8, 8), 2, likelihood=likelihood)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[MarginalLikelihood(num_samples=2)],
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.test(model, Digits(dequantise=dequantise), verbose=False)
    found = trainer.callback_metrics
    if offset is None:
        assert "test/nll_bpd" not in found
    else:
        expected = found["test/nll"].item() / 64 / math.log(2) + offset
        assert found["test/nll_bpd"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "settings", [{"num_samples": -1}, {"chunk_size": 0}, {"num_samples": 0, "bits_per_dimension": True}]
)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        MarginalLikelihood(**settings)


def test_no_samples_are_no_estimate_and_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one test batch the model makes one trace, the test step's; the callback adds neither a trace nor a number."""
    model, trace = VAE((1, 8, 8), 2, likelihood=partial(Binomial, num_steps=16)), Mock(wraps=VAE.trace)
    monkeypatch.setattr(VAE, "trace", lambda *args: trace(*args))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    callbacks = [MarginalLikelihood(num_samples=0)]
    trainer = pl.Trainer(accelerator="cpu", limit_test_batches=1, callbacks=callbacks, **quiet)  # type: ignore[arg-type]
    trainer.test(model, datamodule=Digits(), verbose=False)
    assert trace.call_count == 1
    assert "test/elbo" in trainer.callback_metrics
    assert not [name for name in trainer.callback_metrics if name.startswith("test/nll")]


class WithLabel(VAE):
    """Explains the label, too."""

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        p = Categorical(logits=torch.zeros(len(batch["x"]), 10))
        return replace(super().trace(batch, num_samples, step), observed={"label": Observed(batch["label"], p)})


def test_bits_a_dimension_are_of_x_alone() -> None:
    """The nll of x and a label is no number of bits of x."""
    model = WithLabel((1, 8, 8), 2, likelihood=partial(Binomial, num_steps=16))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}

    def test(**settings: bool) -> Mapping[str, float]:
        callbacks = [MarginalLikelihood(num_samples=2, **settings)]
        trainer = pl.Trainer(accelerator="cpu", limit_test_batches=1, callbacks=callbacks, **quiet)  # type: ignore[arg-type]
        return trainer.test(model, datamodule=Digits(), verbose=False)[0]

    found = test()
    assert "test/nll" in found
    assert "test/nll_bpd" not in found
    with pytest.raises(UserError, match="bits_per_dimension are of x alone, and nll is of x, label; leave"):
        test(bits_per_dimension=True)
