"""A world model that is always right about mazes, for tests of dreams and agents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vae_lightning.data.transitions import Mazes
from vae_lightning.synthetic import mazes


@dataclass(frozen=True)
class Dreamt:
    state: Tensor
    reward: Tensor
    done: Tensor


class ExactModel:
    """Steps of mazes by their rules.

    Args:
        two_players_after: The number of calls after which each state has a second player; None for never.
    """

    def __init__(self, two_players_after: int | None = None) -> None:
        self.calls, self.two_players_after = 0, two_players_after

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Dreamt:
        cells, reward, done = mazes.step(state.numpy().astype("uint8"), action.numpy())
        self.calls += 1
        if self.two_players_after is not None and self.calls > self.two_players_after:
            cells[:, 0, 0] = cells[:, 0, -1] = mazes.PLAYER
            reward[:], done[:] = 1.0, True
        return Dreamt(torch.from_numpy(cells).long(), torch.from_numpy(reward), torch.from_numpy(done))


def small_mazes(size: int = 7, slip: float = 0.0) -> Mazes:
    return Mazes(size=size, num_mazes=(4, 2, 4), num_transitions=(20, 5, 5), slip=slip)


def shortest_actions(state: Tensor) -> list[int]:
    """The actions of the shortest path from a state [n, n] to the goal."""
    cells, actions = state.numpy().astype("uint8")[None], []
    while (left := int(mazes.shortest_path(cells)[0])) > 0:
        moved = [mazes.step(cells, torch.tensor([a]).numpy())[0] for a in range(4)]
        action = next(a for a in range(4) if int(mazes.shortest_path(moved[a])[0]) < left)
        actions.append(action)
        cells = moved[action]
    return actions
