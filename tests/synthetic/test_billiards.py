"""Billiards: the laws of motion, exact collisions, and where a ball is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from vae_lightning.synthetic import billiards
from vae_lightning.synthetic.billiards import BOX, ENERGY, RADIUS

STARTS = billiards.draw_starts([(0, 2, i) for i in range(40)], 3)


def test_starts_are_functions_of_their_number_and_do_not_overlap() -> None:
    x, v = STARTS
    again = billiards.draw_starts([(0, 2, 7), (0, 2, 3)], 3)
    np.testing.assert_array_equal(again[0], x[[7, 3]])
    np.testing.assert_array_equal(again[1], v[[7, 3]])
    gaps = np.linalg.norm(x[:, :, None] - x[:, None], axis=-1)[:, *np.triu_indices(3, 1)]
    assert gaps.min() > 2 * RADIUS
    assert BOX / 4 <= x.min() <= x.max() <= 3 * BOX / 4
    np.testing.assert_allclose((v**2).sum((1, 2)), ENERGY, rtol=1e-12)


def test_energy_is_constant_and_balls_stay_in_the_box_apart_from_each_other() -> None:
    x, v = billiards.simulate(*STARTS, 100)
    assert x.shape == v.shape == (40, 100, 3, 2)
    np.testing.assert_allclose((v**2).sum((2, 3)), ENERGY, rtol=1e-12)
    assert x.min() >= RADIUS
    assert x.max() <= BOX - RADIUS
    gaps = np.linalg.norm(x[:, :, :, None] - x[:, :, None], axis=-1)[:, :, *np.triu_indices(3, 1)]
    assert gaps.min() > 2 * RADIUS - 0.06  # a sub-step at the speed of two balls that share all energy
    assert np.linalg.norm(v, axis=-1).std() > 0.1  # collisions exchange energy


def test_without_a_collision_a_ball_goes_straight() -> None:
    x, v = billiards.simulate(np.array([[[3.0, 4.0]]]), np.array([[[0.2, -0.1]]]), 5)
    np.testing.assert_allclose(x[0, :, 0], [[3 + 0.2 * t, 4 - 0.1 * t] for t in range(1, 6)], atol=1e-12)
    np.testing.assert_array_equal(v[0, :, 0], [[0.2, -0.1]] * 5)


def test_a_wall_turns_the_component_across_it() -> None:
    x, v = billiards.simulate(np.array([[[1.45, 5.0]]]), np.array([[[-0.5, 0.3]]]), 2)
    # sub-steps of 0.05: the fifth would be at 1.2 and the sixth beyond; the ball is put on the wall and turned
    np.testing.assert_allclose(v[0, :, 0], [[0.5, 0.3]] * 2)
    np.testing.assert_allclose(x[0, :, 0, 1], [5.3, 5.6])
    assert x[0, 0, 0, 0] == pytest.approx(1.2 + 0.5 * 0.5, abs=0.06)


def test_balls_exchange_their_velocities_along_the_line_of_centres() -> None:
    """Head on along the rows; the components across the line stay."""
    x = np.array([[[3.0, 5.0], [5.6, 5.0]]])
    _, after = billiards.simulate(x, np.array([[[0.4, 0.0], [-0.2, 0.0]]]), 1)
    np.testing.assert_allclose(after[0, 0], [[-0.2, 0.0], [0.4, 0.0]], atol=1e-12)
    v = np.array([[[0.4, 0.0], [0.0, 0.0]]])
    _, after = billiards.simulate(np.array([[[4.0, 4.0], [5.8, 5.8]]]), v, 5)  # at 45 degrees, almost
    np.testing.assert_allclose(after[0, -1].sum(0), [0.4, 0.0], atol=1e-12)  # momentum
    assert after[0, -1, 1].min() > 0.05  # the second ball goes off along the line of centres
    assert (after[0, -1, 0] * after[0, -1, 1]).sum() == pytest.approx(0, abs=1e-12)  # equal masses: at a right angle


@pytest.mark.parametrize("centre", [(5.0, 5.0), (2.1, 7.7), (8.3, 3.2)])
def test_a_ball_is_drawn_at_its_column_and_row(centre: tuple[float, float]) -> None:
    frame = billiards.draw_balls(np.array([[[centre]]]), 32)[0, 0, 0].astype(float)
    rows, columns = (np.arange(32) + 0.5) * BOX / 32, (np.arange(32) + 0.5) * BOX / 32
    found = (frame.sum(0) @ columns / frame.sum(), frame.sum(1) @ rows / frame.sum())
    assert found == pytest.approx(centre, abs=0.02 * BOX / 32)
    assert frame.max() == 255
    edge = (255 / np.e, 60)  # exp(-(d / r)^8) at d = r, where it falls steeply
    row, column = int(centre[1] / BOX * 32), int((centre[0] + RADIUS) / BOX * 32)
    assert abs(frame[row, column] - edge[0]) < 2 * edge[1]


def test_too_many_balls_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"9 balls of radius 1\.2 do not fit"):
        billiards.draw_starts([[0]], 9)
