"""How objects move from one frame to the next: by constant velocity, or by networks of each object and each pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from vae_lightning.networks import MLP
from vae_lightning.objectives.schedules import at_least

_UNIT = 10.0  # velocities are read in tenths of the frame's half side, and networks write changes in the same unit


class ConstantVelocity(nn.Module):
    """f(position, velocity, latent) = (position + velocity, velocity, latent), for each object alone.

    It has no parameters: use it as the baseline of learned dynamics. Subclass it for dynamics of your own.

    Args:
        latent_size: L of the objects' latent state; the model sets it.
    """

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.latent_size = latent_size

    def forward(self, state: Tensor) -> Tensor:
        """Return the mean of the next state, [..., O, 4 + L].

        Args:
            state: Position (x, y), velocity (x, y) and latent of each of O objects, [..., O, 4 + L].
        """
        position, velocity, latent = state.split([2, 2, self.latent_size], -1)
        return torch.cat((position + velocity, velocity, latent), -1)


DynamicsRecipe: TypeAlias = Callable[[int], ConstantVelocity]
"""A `ConstantVelocity` class, or a `functools.partial` of one: called as `recipe(latent_size)`."""


class Interactions(ConstantVelocity):
    """Each object's change is out(self(s_i), sum over j != i of gate(s_i, s_j) pair(s_i, s_j)).

    Use it for objects that act on each other, such as balls that collide. The pairs see relative positions and
    velocities; the sum makes the dynamics the same under any order of the objects. With the change o and
    v' = v + o_v / 10, the next position is x + (v + v') / 2 + o_x / 10. The last layer starts near 0, so that the
    dynamics start as those of constant velocity. After the graph network of Kossen et al. 2020
    (https://arxiv.org/abs/1910.02425).

    Args:
        latent_size: L of the objects' latent state; the model sets it.
        hidden_size: The size of each hidden layer.
    """

    def __init__(self, latent_size: int, hidden_size: int = 64) -> None:
        super().__init__(latent_size)
        at_least("Interactions", 1, hidden_size=hidden_size)
        state_size = 4 + latent_size
        pair_size = 2 * state_size + 5  # both states, their differences and the squared distance
        self.alone = _network(state_size, [hidden_size], hidden_size)
        self.pair = _network(pair_size, [hidden_size, hidden_size], hidden_size)
        self.gate = _network(pair_size, [hidden_size], 1)
        self.out = _network(2 * hidden_size, [hidden_size, hidden_size], state_size)
        *_, last = self.out.layers.children()
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)

    def forward(self, state: Tensor) -> Tensor:
        position, velocity, latent = state.split([2, 2, self.latent_size], -1)
        change = self.change(torch.cat((position, _UNIT * velocity, latent), -1)) / _UNIT
        along, turned, remembered = change.split([2, 2, self.latent_size], -1)
        following = velocity + turned
        moved = position + (velocity + following) / 2 + along
        return torch.cat((moved, following, latent + remembered), -1)

    def change(self, state: Tensor) -> Tensor:
        """Return the change of each object, [..., O, 4 + L], from states in the units of the networks."""
        count = state.shape[-2]
        shape = (*state.shape[:-2], count, count, state.shape[-1])
        one, other = state[..., :, None, :].expand(shape), state[..., None, :, :].expand(shape)
        apart = (other - one)[..., :4]
        pairs = torch.cat((one, other, apart, apart[..., :2].square().sum(-1, keepdim=True)), -1)  # [..., O, O, P]
        others = 1 - torch.eye(count, device=state.device, dtype=state.dtype)[..., None]
        acted = (others * torch.sigmoid(self.gate(pairs)) * self.pair(pairs)).sum(-2)  # [..., O, H]
        change: Tensor = self.out(torch.cat((self.alone(state), acted), -1))
        return change


def _network(in_size: int, hidden_sizes: list[int], out_size: int) -> MLP:
    return MLP((in_size,), (out_size,), hidden_sizes, nn.ELU)
