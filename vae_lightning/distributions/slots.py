"""A picture as a mixture of slots: each pixel belongs to one of S slots, and a slot has a picture of its own."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, constraints


class SlotMixture(Distribution):
    """p(x) = prod_pixels sum_s m_s prod_channels N(x_c; mu_sc, sigma_s^2), with masks m that sum to 1 over the slots.

    Use it as p(x|z) of models of scenes whose objects hide each other. The channels of a pixel share the slot: a pixel
    has the colour of one slot, and never the red of one and the blue of another. Masks are given as logarithms, so that
    a mask of e^-160 is as exact as one of 1/2. float64 stays; all else is computed in float32.

    Args:
        log_masks: log m, [..., S, H, W]; exp(log_masks) sums to 1 over S.
        slots: mu, the picture of each slot, [..., S, C, H, W]; its leading dimensions are the batch shape, against
            which those of log_masks broadcast.
        sigma: The standard deviation of the pixels of each slot, [S].
    """

    arg_constraints: ClassVar = {}
    support = constraints.independent(constraints.real, 3)
    has_rsample = False

    def __init__(self, log_masks: Tensor, slots: Tensor, sigma: Tensor) -> None:
        full = slots.dtype if slots.dtype == torch.float64 else torch.float32
        self.log_masks, self.slots, self.sigma = log_masks.to(full), slots.to(full), sigma.to(full)
        super().__init__(slots.shape[:-4], slots.shape[-3:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> SlotMixture:
        slots = self.slots.expand(*batch_shape, *self.slots.shape[-4:])
        return SlotMixture(self.log_masks, slots, self.sigma)

    def log_densities(self, x: Tensor) -> Tensor:
        """log N(x; mu_s, sigma_s^2) of each pixel under each slot, summed over channels: [..., S, H, W] nats.

        Args:
            x: [..., C, H, W].
        """
        sigma = self.sigma[:, None, None]
        squares = (x[..., None, :, :, :] - self.slots).square().sum(-3)  # [..., S, H, W]
        return -0.5 * squares / sigma**2 - self.event_shape[0] * (sigma.log() + 0.5 * math.log(2 * math.pi))

    def log_prob(self, value: Tensor) -> Tensor:
        return (self.log_masks + self.log_densities(value)).logsumexp(-3).sum((-2, -1))

    def log_shares(self, x: Tensor) -> Tensor:
        """log p(slot of the pixel | x): which slot a pixel of x belongs to, [..., S, H, W]."""
        return (self.log_masks + self.log_densities(x)).log_softmax(-3)

    @property
    def masks(self) -> Tensor:
        """m, [..., S, H, W]."""
        return self.log_masks.exp()

    @property
    def mean(self) -> Tensor:
        """sum_s m_s mu_s: [..., C, H, W]."""
        return (self.masks[..., None, :, :] * self.slots).sum(-4)

    @property
    def variance(self) -> Tensor:
        """sum_s m_s (sigma_s^2 + mu_s^2) - mean^2: [..., C, H, W]."""
        squares = self.sigma[:, None, None, None] ** 2 + self.slots**2
        return (self.masks[..., None, :, :] * squares).sum(-4) - self.mean**2

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = torch.Size(sample_shape)
        log_masks = self.log_masks.movedim(-3, -1).expand(*self.batch_shape, *self.event_shape[1:], -1)
        owner = Categorical(logits=log_masks, validate_args=False).sample(shape)  # [*shape, ..., H, W]
        index = owner[..., None, None, :, :].expand(*owner.shape[:-2], 1, *self.event_shape)
        mean = self.slots.expand(*shape, *self.slots.shape).gather(-4, index).squeeze(-4)
        return torch.normal(mean, self.sigma[owner][..., None, :, :].expand_as(mean))
