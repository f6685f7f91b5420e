"""How objects move from one frame to the next: by constant velocity, or by networks of each object and each pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from vae_lightning.networks import MLP
from vae_lightning.objectives.schedules import at_least

_POSITION, _VELOCITY = 3.0, 20.0  # what positions and velocities are multiplied by before the networks read them:
# the step from "no wall yet" to "bounced" is as narrow as one frame's way, and networks learn wide steps faster
_FAR = 2.0  # networks read no number beyond it, so that an object that has left the frame does not gain speed for ever
_CHANGE = 10.0  # what the networks' answers are divided by


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
    """Each object's change is out(alone(s_i), sum over j != i of pair(s_i, s_j)), with three networks.

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
        pair_size = 2 * state_size + 5  # both states, how far apart they are, and the squared distance
        self.alone = _network(state_size, [hidden_size], hidden_size)
        self.pair = _network(pair_size, [hidden_size, hidden_size], hidden_size)
        self.out = _network(2 * hidden_size, [hidden_size, hidden_size], state_size)
        *_, last = self.out.layers.children()
        assert isinstance(last, nn.Linear)
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)

    def forward(self, state: Tensor) -> Tensor:
        position, velocity, latent = state.split([2, 2, self.latent_size], -1)
        near = state.clamp(-_FAR, _FAR).split([2, 2, self.latent_size], -1)
        read = torch.cat((_POSITION * near[0], _VELOCITY * near[1], near[2]), -1)
        along, turned, remembered = (self.change(read) / _CHANGE).split([2, 2, self.latent_size], -1)
        following = velocity + turned
        moved = position + (velocity + following) / 2 + along
        return torch.cat((moved, following, latent + remembered), -1)

    def change(self, state: Tensor) -> Tensor:
        """Return the change of each object, [..., O, 4 + L], from states in the units of the networks."""
        count = state.shape[-2]
        pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
        i, j = torch.tensor(pairs, dtype=torch.long, device=state.device).view(-1, 2).unbind(-1)
        one, other = state[..., i, :], state[..., j, :]  # [..., O (O - 1), 4 + L]
        apart = (other - one)[..., :4]
        acted = self.pair(torch.cat((one, other, apart, apart[..., :2].square().sum(-1, keepdim=True) / 3), -1))
        acted = acted.unflatten(-2, (count, count - 1)).sum(-2)  # [..., O, H]
        change: Tensor = self.out(torch.cat((self.alone(state), acted), -1))
        return change


def _network(in_size: int, hidden_sizes: list[int], out_size: int) -> MLP:
    return MLP((in_size,), (out_size,), hidden_sizes, nn.SiLU)
