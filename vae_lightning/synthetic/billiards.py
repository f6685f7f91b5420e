"""Billiard balls in a box: their motion from a number, and pictures of them. NumPy alone.

The rules are those of the data of Kossen et al. 2020 (https://arxiv.org/abs/1910.02425): balls of equal mass in a
square box without friction, elastic against each other and against the walls. A sequence is chaotic: two starts that
differ by a thousandth of the box are far apart after fifty frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BOX, RADIUS = 10.0, 1.2
"""The side of the box, and the radius of a ball, in the units of the rules."""
ENERGY = 0.25
"""The sum of the squared speeds of all balls, which never changes; speeds are in units a frame."""

_SUBSTEPS = 10  # of a frame
_CHUNK = 64  # sequences that are drawn at once


def draw_starts(numbers: Sequence[Sequence[int]], num_balls: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the first positions and velocities of sequences, float64 [N, K, 2] each; row i depends on numbers[i].

    Positions are uniform in the middle half of the box, such that no two balls overlap. Velocities are normal, scaled
    to `ENERGY`.

    Args:
        numbers: Whole numbers that seed each sequence; equal numbers make equal sequences.
        num_balls: K.

    Raises:
        ValueError: if the balls do not fit.
    """
    positions, velocities = np.empty((2, len(numbers), num_balls, 2))
    for i, number in enumerate(numbers):
        random = np.random.default_rng(number)
        positions[i] = _places(random, num_balls)
        v = random.standard_normal((num_balls, 2))
        velocities[i] = v * np.sqrt(ENERGY / (v**2).sum())
    return positions, velocities


def _places(random: np.random.Generator, num_balls: int, tries: int = 10_000) -> NDArray[np.float64]:
    pairs = np.triu_indices(num_balls, 1)
    for _ in range(tries):
        places = random.uniform(BOX / 4, 3 * BOX / 4, (num_balls, 2))
        gaps = np.linalg.norm(places[:, None] - places, axis=-1)[pairs]
        if (gaps > 2 * RADIUS).all():
            return places
    raise ValueError(f"{num_balls} balls of radius {RADIUS} do not fit in the middle half of a box of {BOX}")


def simulate(
    positions: NDArray[np.float64], velocities: NDArray[np.float64], num_frames: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return positions and velocities of T frames, float64 [N, T, K, 2] each. The start itself is not a frame.

    Args:
        positions: [N, K, 2].
        velocities: [N, K, 2].
        num_frames: T.
    """
    x, v = positions.copy(), velocities.copy()
    frames = np.empty((2, len(x), num_frames, *x.shape[1:]))
    for frame in range(num_frames):
        for _ in range(_SUBSTEPS):
            x += v / _SUBSTEPS
            _bounce_off_walls(x, v)
            _bounce_off_balls(x, v)
        frames[0, :, frame], frames[1, :, frame] = x, v
    return frames[0], frames[1]


def _bounce_off_walls(x: NDArray[np.float64], v: NDArray[np.float64]) -> None:
    """Turn the balls that the next sub-step would take into a wall, in place."""
    ahead = x + v / _SUBSTEPS
    low, high = ahead < RADIUS, ahead > BOX - RADIUS
    x[low], x[high] = RADIUS, BOX - RADIUS
    v[low | high] *= -1


def _bounce_off_balls(x: NDArray[np.float64], v: NDArray[np.float64]) -> None:
    """Exchange the velocities along the line of centres of two balls that would overlap, one pair after the other."""
    for i in range(x.shape[1]):
        for j in range(i):
            gap = x[:, i] + v[:, i] / _SUBSTEPS - x[:, j] - v[:, j] / _SUBSTEPS  # [N, 2]
            hit = (gap**2).sum(-1) < (2 * RADIUS) ** 2
            line = x[hit, i] - x[hit, j]
            line /= np.linalg.norm(line, axis=-1, keepdims=True)
            exchanged = ((v[hit, j] - v[hit, i]) * line).sum(-1, keepdims=True) * line
            v[hit, i] += exchanged
            v[hit, j] -= exchanged


def draw_balls(positions: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """Return frames: uint8 [N, T, 1, size, size], white balls exp(-(d / r)^8) on black.

    The first coordinate is the column and the second one the row of a pixel.

    Args:
        positions: [N, T, K, 2].
        size: The height and width of a frame.
    """
    frames = np.empty((*positions.shape[:2], 1, size, size), np.uint8)
    centres = ((np.arange(size) + 0.5) * (BOX / size)).astype(np.float32)
    for first in range(0, len(frames), _CHUNK):
        part = positions[first : first + _CHUNK].astype(np.float32) / RADIUS
        squares = (part[..., None] - centres / np.float32(RADIUS)) ** 2  # [n, T, K, 2, size]
        ink = np.zeros((*part.shape[:2], size, size), np.float32)
        for k in range(part.shape[2]):
            d = squares[:, :, k, 1, :, None] + squares[:, :, k, 0, None, :]  # (d / r)^2, [n, T, size, size]
            d *= d
            d *= d
            ink += np.exp(-d)
        frames[first : first + _CHUNK, :, 0] = np.rint(255 * ink.clip(0, 1))
    return frames
