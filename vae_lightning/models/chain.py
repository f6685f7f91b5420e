"""The chain of states of O objects: p(z_1) and p(z_t|z_(t-1)).

A state is the position (x, y), the velocity (x, y), L numbers that no image shows, and the logit of the size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from vae_lightning.distributions import Family
from vae_lightning.models.dynamics import ConstantVelocity

_POSITION, _VELOCITY, _SIZE = 0.6, 0.06, 0.3  # standard deviations under p(z_1); the last two are learned
_LEAST_SIZE = 0.05  # least learned deviation: that of equal sizes would fall to 0, and fix q
_KEPT_SIZE = 0.99  # a of size_t ~ N(a size_(t-1), (1 - a^2) s^2), which keeps N(0, s^2)


class Start(nn.Module):
    """p(z_1) = N(0, diag sd^2), the same for each object; the spreads of velocity and size are learned.

    Args:
        num_objects: O.
        latent_sd: The standard deviations of the L numbers that no image shows.
    """

    def __init__(self, num_objects: int, latent_sd: Sequence[float]) -> None:
        super().__init__()
        self.num_objects, self.latent_sd = num_objects, tuple(latent_sd)
        self.log_velocity = nn.Parameter(torch.tensor(math.log(_VELOCITY)))
        self.log_size = nn.Parameter(torch.tensor(math.log(_SIZE - _LEAST_SIZE)))

    def forward(self) -> Distribution:
        velocity = self.log_velocity.exp()
        fixed = velocity.new_tensor([_POSITION, _POSITION, *self.latent_sd])
        sd = torch.cat((fixed[:2], velocity.expand(2), fixed[2:], self.size_sd[None])).expand(self.num_objects, -1)
        return normal(torch.zeros_like(sd), sd)

    @property
    def size_sd(self) -> Tensor:
        """The standard deviation of the logit of the size, the same in every frame."""
        return _LEAST_SIZE + self.log_size.exp()


class Transition(nn.Module):
    """p(z_t|z_(t-1)): N(f(position, velocity, latent), s^2), and a size near that of z_(t-1).

    Args:
        dynamics: f.
        sd: s of position (2 numbers), velocity (2) and latent (L).
    """

    def __init__(self, dynamics: ConstantVelocity, sd: Sequence[float]) -> None:
        super().__init__()
        self.dynamics, self.sd = dynamics, tuple(sd)

    def forward(self, z: Tensor, size_sd: Tensor) -> Distribution:
        """Return p(z_t|z_(t-1)), with the batch shape [...] and the event shape [O, D].

        Args:
            z: z_(t-1), [..., O, D].
            size_sd: The standard deviation of the logit of the size in any frame.
        """
        state, size = z.split([z.shape[-1] - 1, 1], -1)
        mean = torch.cat((self.dynamics(state), _KEPT_SIZE * size), -1)
        sd = torch.cat((mean.new_tensor(self.sd), math.sqrt(1 - _KEPT_SIZE**2) * size_sd[None]))
        return normal(mean, sd.expand_as(mean))


def normal(mean: Tensor, sd: Tensor) -> Distribution:
    """N(mean, diag sd^2) of the states of all objects: event shape [O, D].

    Args:
        mean: [..., O, D].
        sd: [..., O, D].
    """
    return Independent(Normal(mean, sd, validate_args=Family.validate_args), 2, validate_args=Family.validate_args)
