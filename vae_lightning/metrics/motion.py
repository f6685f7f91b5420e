"""Objects that move: which found object is which true one, how far they are apart, and predictions without a model.

Places are [B, T, O, 2] or [B, T, K, 2], with coordinates in [-1, 1]: of B sequences, T frames, and O found or K true
objects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vae_lightning.synthetic import billiards

WALL = 1 - 2 * billiards.RADIUS / billiards.BOX
"""The largest coordinate of a billiard ball's centre."""


def pairs_of(found: Tensor, true: Tensor) -> Tensor:
    """Return the index of the found object of each true object, one assignment a sequence: int64 [B, K].

    The assignment is one to one and has the least mean distance over all frames that are given. Give it the frames that
    were seen: an assignment chosen on predicted frames would hide exchanged objects.

    Args:
        found: [B, T, O, 2], with O of at least K.
        true: [B, T, K, 2].
    """
    # here, because the import takes time; scipy comes with scikit-learn
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    costs = (true[:, :, :, None] - found[:, :, None]).norm(dim=-1).mean(1)  # [B, K, O]
    chosen = [linear_sum_assignment(table)[1] for table in costs.double().cpu().numpy()]
    return torch.tensor([row.tolist() for row in chosen], device=found.device)


def in_pairs(found: Tensor, pairs: Tensor) -> Tensor:
    """Return the found objects in the order of the true ones: [B, T, K, 2].

    Args:
        found: [B, T, O, 2].
        pairs: What `pairs_of` returned, [B, K].
    """
    return found.take_along_dim(pairs[:, None, :, None], 2)


def speeds(places: Tensor) -> Tensor:
    """Return |place_t - place_(t-1)|, the mean over objects: [B, T - 1].

    Args:
        places: [B, T, K, 2].
    """
    return places.diff(dim=1).norm(dim=-1).mean(-1)


def closest(places: Tensor) -> Tensor:
    """Return the distance of the two objects of a frame that are nearest to each other: [B, T]; inf for one object.

    Args:
        places: [B, T, K, 2].
    """
    distances = (places[:, :, :, None] - places[:, :, None]).norm(dim=-1)  # [B, T, K, K]
    itself = torch.eye(places.shape[2], dtype=torch.bool, device=places.device)
    return distances.masked_fill(itself, torch.inf).flatten(2).amin(2)


def exchanged(found: Tensor, true: Tensor, near: float) -> Tensor:
    """Return whether two objects are exchanged, each at the other's true place and not at its own: bool [B, T].

    Args:
        found: The objects in pairs with the true ones, [B, T, K, 2].
        true: [B, T, K, 2].
        near: The largest distance from a place at which an object lies there.
    """
    there = (found[:, :, :, None] - true[:, :, None]).norm(dim=-1) <= near  # [B, T, K, K]: found i lies at true j
    at_own = there.diagonal(dim1=2, dim2=3)
    lost = ~at_own[..., None] & ~at_own[..., None, :]
    return (there & there.transpose(2, 3) & lost).flatten(2).any(2)


def linear(place: Tensor, velocity: Tensor, horizon: int, limit: float) -> Tensor:
    """Return place + h velocity, clamped to [-limit, limit], for h = 1 .. horizon: [B, H, K, 2].

    Args:
        place: The last place, [B, K, 2].
        velocity: The displacement in one frame, [B, K, 2].
        horizon: H.
        limit: The largest coordinate.
    """
    return _straight(place, velocity, horizon).clamp(-limit, limit)


def reflecting(place: Tensor, velocity: Tensor, horizon: int, wall: float) -> Tensor:
    """Return the ways of objects that walls reflect, and that pass through each other: [B, H, K, 2].

    Args:
        place: The last place, [B, K, 2].
        velocity: The displacement in one frame, [B, K, 2].
        horizon: H.
        wall: The coordinate of the walls to the right and below; the others are at -wall.
    """
    unfolded = (_straight(place, velocity, horizon) + wall).remainder(4 * wall)  # there and back is one period
    return wall - (unfolded - 2 * wall).abs()


def simulated(place: Tensor, velocity: Tensor, horizon: int) -> Tensor:
    """Return the ways of billiard balls by the simulator's own rules: [B, H, K, 2].

    Args:
        place: The last place, [B, K, 2].
        velocity: The displacement in one frame, [B, K, 2].
        horizon: H.
    """
    half = billiards.BOX / 2
    start = ((place + 1) * half).double().cpu().numpy(), (velocity * half).double().cpu().numpy()
    places, _ = billiards.simulate(*start, horizon)
    return torch.from_numpy(places / half - 1).to(place)


def _straight(place: Tensor, velocity: Tensor, horizon: int) -> Tensor:
    steps = torch.arange(1, horizon + 1, device=place.device)[:, None, None]  # [H, 1, 1]
    return place[:, None] + steps * velocity[:, None]
