"""How objects move from one frame to the next: by constant velocity, or by networks of each object and each pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from vae_lightning.networks import MLP
from vae_lightning.objectives.schedules import at_least

_POSITION, _VELOCITY = 3.0, 20.0  # factors of positions and velocities before the networks read them:
# the change at a wall happens within one frame's displacement, and networks learn changes over wider ranges faster
_CHANGE = 10.0  # divisor of the networks' outputs
_FORGOTTEN = 0.002  # the share of the way to the range of a batch by which each batch shrinks the range


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

    The networks read every number clamped to its range in training. So an object beyond a wall is turned back as an
    object at the wall is. Without the clamp, the change grows with the distance from the wall, and in long sampled
    roll-outs balls leave the box for good.

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
        self.register_buffer("range", torch.stack((-torch.ones(state_size), torch.ones(state_size))))  # [2, 4 + L]

    range: Tensor

    def forward(self, state: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self._remember(state)
        position, velocity, latent = state.split([2, 2, self.latent_size], -1)
        units = state.new_tensor([_POSITION] * 2 + [_VELOCITY] * 2 + [1.0] * self.latent_size)
        known = self.range.to(state.dtype, copy=True)  # the next frame of training changes the range in place
        change = self.change(units * state.clamp(*known)) / _CHANGE
        along, turned, remembered = change.split([2, 2, self.latent_size], -1)
        following = velocity + turned
        moved = position + (velocity + following) / 2 + along
        return torch.cat((moved, following, latent + remembered), -1)

    @torch.no_grad()
    def _remember(self, state: Tensor) -> None:
        """Widen the range to that of these states [..., O, 4 + L]; shrink a wider end a little towards theirs."""
        low, high = state.flatten(0, -2).aminmax(dim=0)
        self.range[0] = torch.minimum(low, self.range[0].lerp(low, _FORGOTTEN))
        self.range[1] = torch.maximum(high, self.range[1].lerp(high, _FORGOTTEN))

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
