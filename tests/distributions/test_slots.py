"""SlotMixture: its density against torch's mixtures and by hand, its moments against its samples."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from vae_lightning.distributions import SlotMixture

SLOTS, CHANNELS = 3, 3


def mixture(*batch: int, height: int = 1, width: int = 1, dtype: torch.dtype = torch.float64) -> SlotMixture:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(*batch, SLOTS, height, width, generator=random).to(dtype)
    slots = torch.rand(*batch, SLOTS, CHANNELS, height, width, generator=random).to(dtype)
    return SlotMixture(logits.log_softmax(-3), slots, torch.tensor([0.3, 0.2, 0.1], dtype=dtype))


def test_one_pixel_is_torchs_mixture_of_the_slots_colours() -> None:
    p = mixture(5)
    colours = Independent(Normal(p.slots[..., 0, 0], p.sigma[:, None]), 1)  # batch [5, S], event [C]
    theirs = MixtureSameFamily(Categorical(logits=p.log_masks[..., 0, 0]), colours)
    x = torch.rand(5, CHANNELS, dtype=torch.float64)
    torch.testing.assert_close(p.log_prob(x[..., None, None]), theirs.log_prob(x))
    torch.testing.assert_close(p.mean[..., 0, 0], theirs.mean)
    torch.testing.assert_close(p.variance[..., 0, 0], theirs.variance)


def test_pixels_add_up_and_samples_broadcast() -> None:
    """[2, 5] mixtures of 4 x 6 pixels are 24 mixtures of one pixel each; x [5, C, H, W] is compared with both."""
    p = mixture(2, 5, height=4, width=6)
    x = torch.rand(5, CHANNELS, 4, 6, dtype=torch.float64)
    total: Tensor = torch.zeros(2, 5, dtype=torch.float64)
    for row in range(4):
        for column in range(6):
            place = (..., slice(row, row + 1), slice(column, column + 1))
            total = total + SlotMixture(p.log_masks[place], p.slots[place], p.sigma).log_prob(x[place])
    assert (p.batch_shape, p.event_shape) == ((2, 5), (CHANNELS, 4, 6))
    torch.testing.assert_close(p.log_prob(x), total)
    torch.testing.assert_close(
        mixture(5).expand((2, 5)).log_prob(x[..., :1, :1])[1], mixture(5).log_prob(x[..., :1, :1])
    )


def test_a_pixel_has_the_colour_of_one_slot_in_all_channels() -> None:
    """The colour (1, 0, 1) is neither red nor blue: -28.5 nats, and +2.1 if each channel chose its own slot."""
    slots = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])[..., None, None]
    p = SlotMixture(torch.full((2, 1, 1), math.log(0.5)), slots, torch.tensor([0.125, 0.125]))
    x = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    assert round(p.log_prob(x).item(), 1) == -28.5
    by_channel = torch.stack([Normal(slot, 0.125).log_prob(x) for slot in slots]).logsumexp(0) - math.log(2)
    assert round(by_channel.sum().item(), 1) == 2.1


def test_masks_of_e_to_minus_160_have_a_density_and_a_gradient() -> None:
    logits = torch.tensor([80.0, -80.0, 0.0])[:, None, None].expand(SLOTS, 2, 2).clone().requires_grad_()
    p = SlotMixture(logits.log_softmax(0), mixture(height=2, width=2, dtype=torch.float32).slots, torch.full((3,), 0.1))
    x = torch.full((CHANNELS, 2, 2), 0.5)
    assert p.log_masks.isfinite().all()
    torch.testing.assert_close(p.masks.sum(0), torch.ones(2, 2), atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(p.log_prob(x), logits)
    assert gradient.isfinite().all()


def test_samples_have_the_mean_and_the_variance() -> None:
    torch.manual_seed(0)
    p = mixture(2, height=1, width=2)
    draws = p.sample((40_000,))
    assert draws.shape == (40_000, 2, CHANNELS, 1, 2)
    torch.testing.assert_close(draws.mean(0), p.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(draws.var(0), p.variance, atol=0.01, rtol=0)
    # and a pixel's channels come from one slot: their covariance is that of the slots' colours
    means, masks = p.slots[0, :, :2, 0, 0], p.masks[0, :, 0, 0]
    expected = (masks * (means - masks @ means).prod(1)).sum()
    a, b = draws[:, 0, :2, 0, 0].unbind(1)
    torch.testing.assert_close(((a - a.mean()) * (b - b.mean())).mean(), expected, atol=0.01, rtol=0)


def test_each_mixture_of_shared_masks_draws_slots_of_its_own() -> None:
    """Masks [B, ...] under pictures [K, B, ...], as attended masks are: K draws are independent, for any number."""
    torch.manual_seed(0)
    slots = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 5, 2, 1, 20, 20)
    p = SlotMixture(torch.full((5, 2, 20, 20), math.log(0.5)), slots, torch.full((2,), 1e-3))
    for shape in ((), (2,), (3,)):
        draws = p.sample(shape).round()
        assert draws.shape == (*shape, 2, 5, 1, 20, 20)
        alike = (draws[..., 0, :, :, :, :] == draws[..., 1, :, :, :, :]).double().mean()
        assert alike.item() == pytest.approx(0.5, abs=0.06)


def test_each_slot_has_its_own_sigma_in_density_moments_and_samples() -> None:
    torch.manual_seed(0)
    sigma = torch.tensor([0.3, 0.1, 0.02])
    for s in range(SLOTS):
        masks = torch.where(torch.arange(SLOTS) == s, 0.0, -1e4)[:, None, None].expand(SLOTS, 20, 20)
        slots = torch.rand(SLOTS, CHANNELS, 20, 20)
        p = SlotMixture(masks, slots, sigma)
        x = p.sample()
        torch.testing.assert_close(p.mean, slots[s])
        torch.testing.assert_close(p.variance, sigma[s].square().expand_as(x), atol=1e-6, rtol=1e-3)
        assert (x - slots[s]).std().item() == pytest.approx(sigma[s].item(), rel=0.1)
        torch.testing.assert_close(p.log_prob(x), Normal(slots[s], sigma[s]).log_prob(x).sum())
        assert (p.log_shares(x).argmax(0) == s).all()


def test_half_precision_is_computed_in_float32_and_float64_stays() -> None:
    p = mixture(2, height=2, width=2, dtype=torch.bfloat16)
    assert p.log_prob(torch.rand(2, CHANNELS, 2, 2)).dtype == torch.float32
    assert mixture(2).log_prob(torch.rand(2, CHANNELS, 1, 1).double()).dtype == torch.float64
