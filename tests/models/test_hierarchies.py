"""HVAE and DLGM: the contents of their traces, and their bounds against the exact log p(x).

To add a hierarchy, add one row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from tests.models.linear_hierarchy import IMAGE_SHAPE, SIGMA, SIZES, bottom_up, dlgm, exact_log_p, ladder
from vae_lightning.data import Digits
from vae_lightning.distributions import Binomial, DiagonalNormal
from vae_lightning.metrics import log_marginal_likelihood
from vae_lightning.models import DLGM, HVAE, VAE, BottomUp, Ladder, LatentVariableModel
from vae_lightning.models.loading import load_model
from vae_lightning.networks import MLP, LadderMLP, ResidualMLP
from vae_lightning.objectives import ELBO, IWAE, log_mean_exp
from vae_lightning.types import UserError

LINEAR: dict[str, Callable[[], DLGM | HVAE]] = {"bottom-up": bottom_up, "ladder": ladder, "DLGM": dlgm}
TINY = partial(MLP, hidden_sizes=(16,))
MODELS: dict[str, Callable[..., LatentVariableModel]] = {
    "bottom-up": partial(HVAE, inference=partial(BottomUp, encoder=TINY, upward=TINY)),
    "ladder": partial(HVAE, inference=partial(Ladder, encoder=TINY, upward=ResidualMLP, feature_size=12)),
    "DLGM": partial(
        DLGM, encoder=TINY, transition=TINY, decoder=TINY, posterior=partial(DiagonalNormal, min_sigma=0.01)
    ),
}
X = 0.7 * torch.randn(4, *IMAGE_SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
linear = pytest.mark.parametrize("name", LINEAR)
all_models = pytest.mark.parametrize("name", MODELS)


@all_models
@pytest.mark.parametrize("num_samples", [1, 4])
@pytest.mark.parametrize("sizes", [(5,), (5, 3), (6, 4, 2)])
def test_trace_shapes(name: str, num_samples: int, sizes: tuple[int, ...]) -> None:
    """Every latent z1 .. zL is [K, B, D_l], its q and p have batch shape [], [B] or [K, B], and p(x|z) has [K, B]."""
    trace = MODELS[name]((1, 4, 5), latent_sizes=sizes).trace({"x": torch.zeros(3, 1, 4, 5)}, num_samples)
    assert list(trace.latents) == [f"z{i + 1}" for i in range(len(sizes))]
    for size, latent in zip(sizes, trace.latents.values(), strict=True):
        assert latent.z.shape == (num_samples, 3, size)
        assert latent.q.event_shape == latent.p.event_shape == (size,)
        assert latent.q.batch_shape in ((3,), (num_samples, 3))
        assert latent.p.batch_shape in ((), (num_samples, 3))
        assert latent.log_ratio().shape == (num_samples, 3)
    assert (trace.p_x.batch_shape, trace.p_x.event_shape) == ((num_samples, 3), (1, 4, 5))
    assert {kl.shape for kl in trace.kl().values()} == {(3,)}


@all_models
def test_samples_are_pixels_that_differ(name: str) -> None:
    samples = MODELS[name]((1, 4, 5), latent_sizes=(6, 4)).sample(7)
    assert samples.shape == (7, 1, 4, 5)
    assert not samples.requires_grad
    assert 0 <= samples.min() < samples.max() <= 1
    assert samples.std(0).min() > 0


@all_models
@pytest.mark.parametrize("objective", [ELBO, partial(IWAE, num_samples=3)])
def test_gradient_reaches_every_parameter(name: str, objective: Callable[[], ELBO | IWAE]) -> None:
    model = MODELS[name]((1, 4, 5), latent_sizes=(6, 4, 3), objective=objective)
    trace = model.trace({"x": torch.rand(3, 1, 4, 5).round()}, model.objective.num_samples)
    model.objective(trace, 0)["loss"].mean().backward()
    for label, parameter in model.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().sum() > 0, label


@linear
def test_the_mean_weight_is_p_of_x(name: str) -> None:
    """E_q[p(x, z) / q(z|x)] = p(x): the mean of 20,000 weights, divided by p(x), is 1 within five standard errors."""
    model = LINEAR[name]()
    with torch.no_grad():
        w = (model.trace({"x": X}, 20_000).log_weight() - exact_log_p(model, X)).exp()  # [K, B]
    error = w.std(0) / len(w) ** 0.5
    assert (error < 0.05).all()
    assert ((w.mean(0) - 1).abs() < 5 * error).all()


@linear
def test_bounds_are_ordered(name: str) -> None:
    """ELBO <= IWAE_5 <= IWAE_50 <= log p(x), averaged over draws, and IWAE_2000 is log p(x) within 0.02."""
    model = LINEAR[name]()
    exact = exact_log_p(model, X).mean()
    with torch.no_grad():
        log_w = model.trace({"x": X}, 20_000).log_weight()  # [20000, B]
    gaps = [(exact - log_mean_exp(log_w.unflatten(0, (k, -1))).mean()).item() for k in (1, 5, 50, 2000)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.05
    assert abs(gaps[-1]) < 0.02


@linear
def test_the_elbo_of_closed_forms_is_the_mean_log_weight(name: str) -> None:
    """E[log p(x|z) - sum of KLs] = E[log w].

    A closed-form KL of a latent that a later sample depends on would break this.
    """
    model = LINEAR[name]()
    with torch.no_grad():
        trace = model.trace({"x": X}, 20_000)
        elbo, log_w = ELBO()(trace, 0)["elbo"], trace.log_weight()
    assert ((elbo - log_w.mean(0)).abs() < 5 * log_w.std(0) / len(log_w) ** 0.5).all()


def test_a_closed_form_below_a_later_sample_would_be_another_number() -> None:
    """The negative control of the test above: bottom-up, the closed-form KL(q(z1|x) || p(z1|z2)) misses E[log w]."""
    with torch.no_grad():
        trace = bottom_up().trace({"x": X}, 20_000)
    z1 = trace.latents["z1"]
    assert z1.kl_estimator == "sampled"
    assert trace.latents["z2"].kl_estimator == "closed form"
    wrong = replace(z1, p_depends_on_z=False).kl().mean(0)
    error = z1.kl().std(0) / 20_000**0.5
    assert ((wrong - z1.kl().mean(0)).abs() > 5 * error).all()


@linear
def test_the_streamed_marginal_likelihood_is_the_exact_one(name: str) -> None:
    """Computed in chunks, as in `test`."""
    model = LINEAR[name]()
    found = log_marginal_likelihood(model, {"x": X}, 20_000, chunk_size=5_000)
    torch.testing.assert_close(found, exact_log_p(model, X), rtol=0, atol=0.05)


def test_samples_follow_the_model() -> None:
    """For all three hierarchies, E[x|z] at ancestral draws has the mean and covariance of W z1 + b."""
    for make in LINEAR.values():
        model = make()
        x = model.sample(100_000).flatten(1)
        expected = torch.distributions.MultivariateNormal(
            x.mean(0), x.T.cov() + SIGMA**2 * torch.eye(6, dtype=torch.float64)
        )
        torch.testing.assert_close(expected.log_prob(X.flatten(1)), exact_log_p(model, X), rtol=0, atol=0.1)


def test_a_ladder_of_one_layer_is_a_vae_with_one_posterior() -> None:
    """With L = 1 there is only q(z1|x) against p(z1) = N(0, I), with a closed-form KL."""
    trace = HVAE((1, 4, 5), (3,), partial(Ladder, encoder=TINY)).trace({"x": torch.zeros(2, 1, 4, 5)}, 3)
    assert trace.latents["z1"].q.batch_shape == (2,)
    assert trace.latents["z1"].kl_estimator == "closed form"


def test_a_dlgm_of_one_layer_is_a_vae_whose_decoder_begins_with_g() -> None:
    """h_1 = G_1 xi_1. With G_1 = I and equal weights, the trace is the VAE's."""
    deep, flat = (cls((1, 4, 5), size, encoder=TINY, decoder=TINY) for cls, size in ((DLGM, (3,)), (VAE, 3)))
    assert isinstance(deep, DLGM)
    assert isinstance(flat, VAE)
    torch.nn.init.eye_(deep.noise_maps[0].weight)
    flat.encoder.load_state_dict(deep.encoder.state_dict())
    flat.decoder.load_state_dict(deep.decoder.state_dict())
    log_w = []
    for model in (deep, flat):
        torch.manual_seed(0)
        log_w.append(model.trace({"x": torch.ones(2, 1, 4, 5)}, 4).log_weight())
    torch.testing.assert_close(*log_w)


@all_models
def test_a_checkpoint_rebuilds_the_model(name: str, tmp_path: Path) -> None:
    likelihood = partial(Binomial, num_steps=16)
    model = MODELS[name]((1, 8, 8), latent_sizes=(5, 3), likelihood=likelihood)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    trainer = pl.Trainer(accelerator="cpu", max_steps=2, enable_checkpointing=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(model, datamodule=Digits())
    assert {"train/kl/z1", "train/kl/z2", "train/elbo"} <= trainer.callback_metrics.keys()
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    x = torch.rand(2, 1, 8, 8)
    for loaded in (type(model).load_from_checkpoint(tmp_path / "a.ckpt"), load_model(tmp_path / "a.ckpt")):
        assert str(loaded) == str(model)
        log_w = []
        for one in (loaded, model):
            torch.manual_seed(0)
            log_w.append(one.trace({"x": (x * 16).round() / 16}, 3).log_weight())
        torch.testing.assert_close(*log_w)


@pytest.mark.parametrize("sizes", [(), (4, 0)])
@pytest.mark.parametrize("cls", [DLGM, HVAE])
def test_impossible_sizes_are_refused(cls: type[DLGM] | type[HVAE], sizes: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=f"{cls.__name__}: latent_sizes"):
        cls((1, 4, 5), sizes)


def test_a_ladder_without_features_is_refused() -> None:
    with pytest.raises(UserError, match="feature_size is 0"):
        HVAE((1, 4, 5), SIZES, partial(Ladder, feature_size=0))


def test_each_layer_of_a_ladder_can_have_its_own_size() -> None:
    """With latents of 8 and 4 dimensions: 20 pixels - 16 - 16, 16 - 8 - 8 upwards; 4 - 12 - 12 - 16 downwards."""
    upward, downward = partial(LadderMLP, width=1, num_layers=1), partial(LadderMLP, width=3)
    inference = partial(Ladder, encoder=upward, upward=upward, feature_size=[16, 8])
    model = HVAE((1, 4, 5), (8, 4), inference, transition=downward, decoder=downward)
    assert isinstance(model.inference, Ladder)
    networks = (*model.inference.upward, *model.transitions)
    shapes = [[tuple(weight.shape) for weight in network.parameters() if weight.ndim == 2] for network in networks]
    assert shapes == [[(8, 16), (8, 8)], [(12, 4), (12, 12), (16, 12)]]
    assert [head.in_features for head in model.inference.heads] == [16, 8]
    trace = model.trace({"x": torch.zeros(3, 1, 4, 5)}, 2)
    assert [latent.z.shape for latent in trace.latents.values()] == [(2, 3, 8), (2, 3, 4)]


def test_a_ladder_with_sizes_for_other_layers_is_refused() -> None:
    with pytest.raises(UserError, match="3 sizes, but there are 2 layers"):
        HVAE((1, 4, 5), SIZES, partial(Ladder, feature_size=[8, 4, 2]))


def test_the_features_of_a_ladder_can_be_normalised_over_the_batch() -> None:
    """q then does not change if an affine map is put behind a network that makes d_l; without it q does."""
    x = torch.randn(6, 1, 4, 5)
    changes = {}
    for norm in (None, nn.BatchNorm1d):
        model = HVAE((1, 4, 5), SIZES, partial(Ladder, feature_size=8, normalisation=norm))
        assert isinstance(model.inference, Ladder)
        top = model.inference(x, model.p_z, 1)[f"z{len(SIZES)}"].q.mean
        with torch.no_grad():
            for network in (model.inference.encoder, *model.inference.upward):
                network.layers[-1].weight.mul_(100)
                network.layers[-1].bias.mul_(100).add_(3)
        changes[norm] = (model.inference(x, model.p_z, 1)[f"z{len(SIZES)}"].q.mean - top).abs().max().item()
    assert changes[nn.BatchNorm1d] < 0.02 < changes[None]


def test_each_d_of_a_ladder_is_made_of_the_one_below() -> None:
    model = HVAE((1, 4, 5), (4, 3, 2), partial(Ladder, feature_size=[8, 6, 5]))
    latents = model.inference(torch.randn(6, 1, 4, 5), model.p_z, 1)
    assert [latents[f"z{i}"].q.mean.shape[-1] for i in (1, 2, 3)] == [4, 3, 2]
