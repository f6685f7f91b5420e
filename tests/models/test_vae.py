"""The VAE: the contents of its trace, and its six slots."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch

from vae_lightning.distributions import (
    Bernoulli,
    ConvIAF,
    DiagonalNormal,
    FlowPrior,
    MixtureOfNormals,
    StandardNormal,
    VampPrior,
)
from vae_lightning.models import VAE
from vae_lightning.networks import MLP, ConvDecoder, ConvEncoder
from vae_lightning.objectives import ELBO, BetaTC, DReG, FreeBits, InfoVAE
from vae_lightning.types import Shape, UserError


@pytest.mark.parametrize("image_shape", [(1, 8, 8), (3, 5, 7)])
@pytest.mark.parametrize("num_samples", [1, 4])
def test_trace_shapes(image_shape: Shape, num_samples: int) -> None:
    """z [K, B, D], q [B], p(z) [], p(x|z) [K, B] over [C, H, W]."""
    trace = VAE(image_shape, 6).trace({"x": torch.zeros(5, *image_shape)}, num_samples)
    z = trace.latents["z"]
    assert z.z.shape == (num_samples, 5, 6)
    assert (z.q.batch_shape, z.q.event_shape) == ((5,), (6,))
    assert (z.p.batch_shape, z.p.event_shape) == ((), (6,))
    assert (trace.p_x.batch_shape, trace.p_x.event_shape) == ((num_samples, 5), image_shape)
    assert trace.log_weight().shape == (num_samples, 5)


MAPS: dict[str, Mapping[str, Any]] = {
    "diagonal": {},
    "affine networks": {"encoder": MLP, "decoder": MLP},
    "flow": {"posterior": partial(ConvIAF, hidden_channels=(8,), context_size=2)},
    "mixture of pseudo-inputs": {"prior": partial(VampPrior, num_components=3)},
    "mixture": {"prior": partial(MixtureOfNormals, num_components=3)},
    "flow prior": {"prior": partial(FlowPrior, num_steps=1, hidden_sizes=(8,))},
    "total correlation": {"objective": partial(BetaTC, dataset_size=50)},
    "free bits": {"objective": partial(FreeBits, per_dimension=True)},
    "discrepancy": {"objective": InfoVAE},
    "no score, of a flow": {"objective": partial(DReG, num_samples=2), "posterior": partial(ConvIAF, num_steps=1)},
}


@pytest.mark.parametrize("name", MAPS)
def test_a_latent_of_maps(name: str) -> None:
    """z is [K, B, c, h, w]: tests a trace, gradients of all parameters, samples, and the checkpoint."""
    networks = {"encoder": partial(ConvEncoder, channels=(4, 4)), "decoder": partial(ConvDecoder, channels=(4, 4))}
    model = VAE((1, 8, 8), (3, 2, 2), **{**networks, **MAPS[name]})
    trace = model.trace({"x": torch.rand(5, 1, 8, 8).round()}, model.objective.num_samples)
    z = trace.latents["z"]
    assert z.z.shape == (model.objective.num_samples, 5, 3, 2, 2)
    assert (z.q.batch_shape, z.q.event_shape) == ((5,), (3, 2, 2))
    loss = model.objective(trace, 0)["loss"]
    assert loss.shape == (5,)
    loss.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert model.sample(4).shape == (4, 1, 8, 8)
    kept = VAE((1, 8, 8), (3, 2, 2), **{**networks, **MAPS[name]})
    kept.load_state_dict(model.state_dict())


def test_samples_differ_and_are_pixels() -> None:
    samples = VAE((1, 8, 8), 6).sample(7)
    assert samples.shape == (7, 1, 8, 8)
    assert not samples.requires_grad
    assert samples.min() >= 0
    assert samples.max() <= 1
    assert samples.std(0).min() > 0


def test_defaults_are_classes_so_two_models_share_nothing() -> None:
    a, b = VAE((1, 8, 8), 6), VAE((1, 8, 8), 6)
    assert not {id(p) for p in a.parameters()} & {id(p) for p in b.parameters()}
    kinds = (a.encoder, a.posterior, a.decoder, a.likelihood, a.prior, a.objective)
    assert [type(slot) for slot in kinds] == [MLP, DiagonalNormal, MLP, Bernoulli, StandardNormal, ELBO]


@pytest.mark.parametrize("latent_size", [0, (), (4, 0, 2), (4, 4)])
def test_an_impossible_latent_size_is_refused(latent_size: int | Shape) -> None:
    said = latent_size if latent_size == 0 else list(latent_size)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=re.escape(f"latent_size is {said}")):
        VAE((1, 8, 8), latent_size)


def test_eager_and_compiled_networks_agree() -> None:
    """Networks compiled in place give the same trace and leave the checkpoint's keys unchanged."""
    model = VAE((1, 8, 8), 3, encoder=partial(MLP, hidden_sizes=(8,)), decoder=partial(MLP, hidden_sizes=(8,)))
    keys, x = list(model.state_dict()), {"x": torch.zeros(2, 1, 8, 8)}
    eager = model.trace(x).latents["z"].q.mean
    model.encoder.compile(backend="eager")
    torch.testing.assert_close(model.trace(x).latents["z"].q.mean, eager)
    assert list(model.state_dict()) == keys
