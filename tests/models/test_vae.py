"""The VAE: what its trace holds, and that its six slots are the ones given."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from vae_lightning.distributions import Bernoulli, DiagonalNormal, StandardNormal
from vae_lightning.models import VAE
from vae_lightning.networks import MLP
from vae_lightning.objectives import ELBO
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


def test_latent_size_below_one_is_refused() -> None:
    with pytest.raises(UserError, match="latent_size is 0"):
        VAE((1, 8, 8), 0)


def test_eager_and_compiled_networks_agree() -> None:
    """Networks compiled in place: the same trace, and no change of the checkpoint's keys."""
    model = VAE((1, 8, 8), 3, encoder=partial(MLP, hidden_sizes=(8,)), decoder=partial(MLP, hidden_sizes=(8,)))
    keys, x = list(model.state_dict()), {"x": torch.zeros(2, 1, 8, 8)}
    eager = model.trace(x).latents["z"].q.mean
    model.encoder.compile(backend="eager")
    torch.testing.assert_close(model.trace(x).latents["z"].q.mean, eager)
    assert list(model.state_dict()) == keys
