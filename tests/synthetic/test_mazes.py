"""Mazes: facts of the walls, the rules against a loop, slips against their exact distribution, states and pictures."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vae_lightning.synthetic import mazes

SIZES = {7: (31, 12, 12.4), 11: (71, 20, 21.2)}  # open cells, the least and the mean shortest path


@pytest.mark.parametrize("size", SIZES)
def test_the_rooms_are_a_tree(size: int) -> None:
    open_cells, least, mean = SIZES[size]
    walls = mazes.draw_walls(range(400), size)
    assert set((~walls).sum((1, 2))) == {open_cells}
    found = mazes.distances(walls)
    assert ((found >= 0) == ~walls).all()  # connected; with as many cells as a tree has, there is no circle
    path = mazes.shortest_path(mazes.place_players(walls))
    assert (path == found[:, 0, 0]).all()
    assert path.min() == least
    assert (path % 4 == 0).all()  # a detour of a room costs two rooms, and a room is two cells
    assert path.mean() == pytest.approx(mean, abs=0.35)
    assert (path <= least + 4).mean() > 0.9


def test_a_maze_depends_on_its_number_alone() -> None:
    walls = mazes.draw_walls([5, 2**63 - 1, 5], 7)
    assert (walls[0] == walls[2]).all()
    assert (walls[1] == mazes.draw_walls([2**63 - 1], 7)[0]).all()
    assert len({maze.tobytes() for maze in mazes.draw_walls(range(200), 7)}) > 190


@pytest.mark.parametrize("size", [1, 6, 0])
def test_an_even_or_a_small_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"an odd number of rows, at least 3; found {size}"):
        mazes.draw_walls([0], size)


def stepped(cells: np.ndarray, action: int) -> tuple[np.ndarray, bool]:
    """The rules once more, by a loop over cells."""
    size, after = len(cells), cells.copy()
    for row, column in itertools.product(range(size), repeat=2):
        if cells[row, column] == 2:
            place = (row, column)
    to = {0: (place[0] - 1, place[1]), 1: (place[0] + 1, place[1]), 2: (place[0], place[1] - 1)}.get(
        action, (place[0], place[1] + 1)
    )
    if min(to) < 0 or max(to) >= size or cells[to] == 1:
        to = place
    after[place] = 0
    after[-1, -1] = 3
    after[to] = 2
    return after, to == (size - 1, size - 1)


def test_the_rules_are_those_of_a_loop() -> None:
    random, walls = np.random.default_rng(0), mazes.draw_walls(range(300), 7)
    free = ~walls
    free[:, -1, -1] = False
    places = np.array([random.choice(np.flatnonzero(maze)) for maze in free])
    near = (mazes.distances(walls).reshape(300, -1) == 1).argmax(1)  # beside the goal
    places = np.where(np.arange(300) < 60, near, places)
    cells, action = mazes.place_players(walls, places), random.integers(4, size=300)
    before = cells.copy()
    after, reward, done = mazes.step(cells, action)
    assert (cells == before).all()
    for i in range(300):
        wanted, is_done = stepped(cells[i], int(action[i]))
        assert (after[i] == wanted).all()
        assert done[i] == is_done
        assert reward[i] == pytest.approx(1 if is_done else -0.01)
    assert 5 < done.sum() < 60
    assert (after[done] == mazes.PLAYER)[:, -1, -1].all()  # over the goal
    assert not (after[done] == mazes.GOAL).any()
    assert mazes.are_states(after).all()
    moves = (after != cells).any((1, 2))
    assert (mazes.open_neighbours(cells)[np.arange(300), action] == moves).all()


def test_slips_have_their_exact_distribution() -> None:
    """At a cell with three open neighbours, action a is carried out with probability 1 - slip + slip / 4."""
    count, slip = 20_000, 0.3
    cells = mazes.place_players(mazes.draw_walls([0], 7), np.array([14]))
    starts = [mazes.place_players(mazes.draw_walls([0], 7), np.array([p])) for p in range(49)]
    cells = next(s for s in starts if mazes.are_states(s)[0] and mazes.open_neighbours(s).sum() == 3)
    open_ = mazes.open_neighbours(cells)[0]
    for action in range(4):
        chosen = np.full(count, action)
        after, _, _ = mazes.step(cells.repeat(count, 0), chosen, slip, np.random.default_rng(action))
        law = mazes.action_probabilities(chosen[:1], slip)[0]
        assert law.sum() == pytest.approx(1)
        assert law[action] == pytest.approx(0.775)
        for other in np.flatnonzero(open_):
            target = mazes.step(cells, np.array([other]))[0]
            assert (after == target).all((1, 2)).mean() == pytest.approx(law[other], abs=0.012)  # four deviations
        assert (after == cells).all((1, 2)).mean() == pytest.approx(law[~open_].sum(), abs=0.012)


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ((0, 0), mazes.FLOOR),  # no player
        ((2, 2), mazes.PLAYER),  # two
        ((2, 2), mazes.GOAL),  # two goals
        ((6, 6), mazes.FLOOR),  # no goal
        ((6, 6), mazes.WALL),
        ((4, 4), mazes.WALL),  # a room is shut
        ((3, 3), mazes.FLOOR),  # what is always a wall is open
    ],
)
def test_what_cannot_be_a_state(place: tuple[int, int], kind: int) -> None:
    good = mazes.place_players(mazes.draw_walls([3], 7))
    bad = good.copy()
    bad[0][place] = kind
    assert mazes.are_states(np.concatenate((good, bad))).tolist() == [True, False]


def test_a_passage_too_many_is_no_state() -> None:
    cells = mazes.place_players(mazes.draw_walls([3], 7))
    shut = np.argwhere(cells[0] == mazes.WALL)
    row, column = next(place for place in shut if place.sum() % 2)
    cells[0, row, column] = mazes.FLOOR
    assert not mazes.are_states(cells)[0]


def test_planes_and_pictures_show_each_kind() -> None:
    cells = mazes.place_players(mazes.draw_walls([0, 1], 7))
    planes, picture = mazes.planes(cells), mazes.paint(cells, 3)
    assert (planes.shape, planes.dtype, picture.shape) == ((2, 4, 7, 7), np.float32, (2, 3, 21, 21))
    assert (planes.argmax(1) == cells).all()
    assert (planes.sum(1) == 1).all()
    assert mazes.planes(cells[0]).shape == (4, 7, 7)
    player, goal = picture[0, :, 1, 1].astype(int), picture[0, :, -1, -1].astype(int)
    assert player[1] > 2 * player[[0, 2]].max()  # green
    assert goal[0] > 2 * goal[[1, 2]].max()  # red
    assert len(np.unique(mazes.COLOURS, axis=0)) == 4
