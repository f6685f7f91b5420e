"""How much each dimension of a latent is used: the KL, and what stands in for it where there is none."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from vae_lightning.distributions import (
    FlowPrior,
    FullNormal,
    LearnedNormal,
    MixtureOfFullNormals,
    MixtureOfNormals,
    Prior,
    StandardNormal,
    UniformSphere,
    VonMisesFisher,
)
from vae_lightning.distributions.families import inverse_softplus
from vae_lightning.models import AIR, CVAE, VAE, ClassLabel, MONet
from vae_lightning.models.dimensions import DEAD, Dimension, dimensions, moment_kl
from vae_lightning.models.temperature import at_temperature, tempered
from vae_lightning.networks import MLP, ConvEncoder, SpatialBroadcast, UNet
from vae_lightning.types import UserError

SHAPE = (1, 6, 6)


@pytest.fixture
def model() -> VAE:
    """A VAE whose second dimension of three is dead: q(z_1|x) is the prior."""
    model = VAE(SHAPE, latent_size=3, encoder=partial(MLP, hidden_sizes=[]))
    weight, bias = model.encoder.layers[-1].weight, model.encoder.layers[-1].bias  # type: ignore[index, union-attr]
    with torch.no_grad():
        weight.mul_(3)
        weight[[1, 4]] = 0  # of the mean and of the raw scale
        bias[1], bias[4] = 0.0, inverse_softplus(1 - model.posterior.min_scale)  # type: ignore[operator]
    return model.eval()


def test_dimensions_come_in_the_order_of_their_kl(model: VAE) -> None:
    x = torch.rand(250, *SHAPE)
    found = dimensions(model, {"x": x})
    exact = model.checked_trace({"x": x}).kl_by_dimension()["z"].mean(0)
    assert [one.kl for one in found] == pytest.approx(sorted(exact.tolist(), reverse=True), rel=1e-4, abs=1e-6)
    assert found[-1].number == 1
    assert [one.is_dead for one in found] == [False, False, True]
    assert found[-1].kl < DEAD
    assert all(one.is_exact for one in found)
    q = model.encode(x)
    largest = found[0]
    mean, variance = q.mean[:, largest.number], q.variance[:, largest.number]
    std = (variance.mean() + mean.var(correction=0)).sqrt().item()
    assert largest.mean == pytest.approx(mean.mean().item(), abs=0.2 * std)
    assert largest.std == pytest.approx(std, rel=0.15)


def test_values_reach_as_far_as_the_space_does() -> None:
    free, bounded = Dimension("z", 0, 1, "closed form", 0.5, 2.0), Dimension("z", 0, 1, "closed form", 0.5, 2.0, -1, 1)
    assert free.values(3, 2).tolist() == [-3.5, 0.5, 4.5]
    assert bounded.values(3, 2).tolist() == [-1, 0.5, 1]


def test_the_substitute_is_the_kl_where_both_are_normal() -> None:
    mean, scale, p = torch.randn(5, 4), torch.rand(5, 4) + 0.1, Normal(torch.randn(4), torch.rand(4) + 0.5)
    assert torch.allclose(moment_kl(mean, scale, p), kl_divergence(Normal(mean, scale), p), atol=1e-5)


def test_draws_do_not_bias_the_substitute() -> None:
    q, p = Normal(torch.zeros(4000, 2), torch.tensor([1.0, 0.5])), Normal(torch.zeros(2), torch.ones(2))
    draws = q.sample((64,))
    found = moment_kl(draws.mean(0), draws.std(0), p, 64).mean(0)
    assert torch.allclose(found, kl_divergence(q, p)[0], atol=1.5e-3)
    assert moment_kl(draws.mean(0), draws.std(0), p).mean(0)[0] > 0.012  # which would pass for a live dimension


@pytest.mark.parametrize("kind", ["full", "sphere"])
def test_what_does_not_factorise_has_the_substitute(kind: str) -> None:
    slots = {"full": {"posterior": FullNormal}, "sphere": {"posterior": VonMisesFisher, "prior": UniformSphere}}[kind]
    found = dimensions(VAE(SHAPE, latent_size=3, **slots).eval(), {"x": torch.rand(20, *SHAPE)})  # type: ignore[arg-type]
    assert len(found) == 3
    assert not any(one.is_exact for one in found)
    assert (found[0].low == -1) == (kind == "sphere")


def test_objects_are_summed() -> None:
    model = AIR(SHAPE, num_steps=2, window=3, what_size=2, hidden_size=8).eval()
    found = dimensions(model, {"x": torch.rand(20, *SHAPE)})
    assert {one.latent for one in found} == {"z_where", "z_what"}
    assert len(found) == 5


def test_a_dimension_of_several_slots_is_named_by_both() -> None:
    """The name is that of the number in the flattened latent, which `--dimensions` takes: slot s, d is s D + d."""
    networks = {
        "attention": partial(UNet, channels=(4, 4, 8), hidden_size=8),
        "encoder": partial(ConvEncoder, channels=(4, 4, 8), hidden_size=8),
        "decoder": partial(SpatialBroadcast, channels=(8, 4)),
    }
    model = MONet((3, 16, 16), num_slots=3, latent_size=4, **networks).eval()  # type: ignore[arg-type]
    found = sorted(dimensions(model, {"x": torch.rand(4, 3, 16, 16)}), key=lambda one: one.number)
    assert [str(one) for one in found] == [f"slot {s}, dimension {d}" for s in range(3) for d in range(4)]
    assert [one.short_name for one in found] == [f"slots[{s}, {d}]" for s in range(3) for d in range(4)]
    flat, deep = (Dimension("z", 23, 1.0, "sampled", 0.0, 1.0, event_shape=shape) for shape in ((24,), (2, 3, 4)))
    assert (str(flat), str(deep)) == ("z[23]", "z[1, 2, 3]")


def test_a_model_without_latents_is_one_line() -> None:
    model = CVAE(SHAPE, latent_size=0, condition=ClassLabel).eval()
    with pytest.raises(UserError, match="CVAE has no latent"):
        dimensions(model, {"x": torch.rand(2, *SHAPE), "label": torch.tensor([0, 1])})


def test_a_temperature_narrows_what_sample_draws(model: VAE) -> None:
    drawn = []
    model.decoder.register_forward_pre_hook(lambda _, inputs: drawn.append(inputs[0]))
    for temperature in (1.0, 0.25):
        torch.manual_seed(0)
        with at_temperature(model, temperature):
            model.sample(50)
    torch.manual_seed(0)
    model.sample(50)
    assert torch.allclose(drawn[1], drawn[0] * 0.25)
    assert torch.equal(drawn[2], drawn[0])  # no hook is left


def test_each_prior_has_its_temperature_or_refuses_one() -> None:
    kinds: list[type[Prior]] = [StandardNormal, LearnedNormal, MixtureOfNormals, MixtureOfFullNormals, FlowPrior]
    for kind in kinds:
        p = kind((4,))()
        torch.manual_seed(0)
        wide = p.sample((2000,))
        torch.manual_seed(0)
        narrow = tempered(p, 0.01).sample((2000,))
        assert narrow.std(0).mean() < wide.std(0).mean()
        assert tempered(p, 0.5).log_prob(narrow).isfinite().all()
    with pytest.raises(UserError, match="temperature: the prior UniformSphere has no standard deviation"):
        tempered(UniformSphere((4,))(), 0.5)
    with pytest.raises(UserError, match="temperature is 0"), at_temperature(VAE(SHAPE), 0):
        pass
