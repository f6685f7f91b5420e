"""Mazes: their walls from a number, the rules of a step, the shortest path, and pictures. NumPy alone.

A maze has n x n cells, n odd. The rooms lie at even coordinates and are always open; the cells at two odd coordinates
are always walls; of the others, the passages between two rooms, as many are open as make the rooms a tree, so that
exactly one path joins two cells. The player starts in the upper left corner, and the goal is the lower right one.

A state is an array of cells, uint8 [n, n]: 0 floor, 1 wall, 2 player, 3 goal. The player is drawn over the goal, so
that the last state of an episode shows the player. All functions take many mazes at once, one a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Cells: TypeAlias = NDArray[np.uint8]
Bools: TypeAlias = NDArray[np.bool_]
Whole: TypeAlias = NDArray[np.int64]
Kind = TypeVar("Kind", bound=np.generic)

FLOOR, WALL, PLAYER, GOAL = range(4)
"""What a cell holds."""
ACTIONS = ("up", "down", "left", "right")
"""The names of actions 0 .. 3."""
STEP_REWARD, GOAL_REWARD = -0.01, 1.0
"""The reward of a step, and of the step that reaches the goal."""
COLOURS = np.array([[235, 235, 235], [40, 40, 40], [40, 170, 60], [220, 40, 40]], np.uint8)
"""Red, green and blue of floor, wall, player and goal: light grey, dark grey, green, red."""

_MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])  # rows and columns of each action


def draw_walls(numbers: Sequence[int], size: int) -> Bools:
    """Return the walls of mazes by randomised Prim: true [N, n, n] where a wall is; row i depends on numbers[i] alone.

    The tree of rooms begins with a random room. Then a room that is drawn uniformly from those beside the tree is
    joined to it by a passage that is drawn uniformly from those between them, until all rooms are in the tree.

    Args:
        numbers: One whole number of at least 0 for each maze; equal numbers make equal mazes.
        size: n, odd and at least 3.

    Raises:
        ValueError: if the size is even or below 3.
    """
    if size < 3 or size % 2 == 0:
        raise ValueError(f"a maze has an odd number of rows, at least 3; found {size}")
    walls = np.ones((len(numbers), size, size), bool)
    walls[:, ::2, ::2] = False
    for maze, number in zip(walls, numbers, strict=True):
        _open_passages(maze, np.random.default_rng(number))
    return walls


def _open_passages(walls: Bools, random: np.random.Generator) -> None:
    """Open the passages of one maze, in place."""
    rooms = (len(walls) + 1) // 2
    draws = random.random((rooms**2, 2))
    first = divmod(int(draws[0, 0] * rooms**2), rooms)
    inside, frontier = {first}, _neighbours(first, rooms)
    for to_room, to_neighbour in draws[1:]:
        row, column = room = frontier.pop(int(to_room * len(frontier)))
        near = _neighbours(room, rooms)
        joined = [other for other in near if other in inside]
        other = joined[int(to_neighbour * len(joined))]
        walls[row + other[0], column + other[1]] = False  # twice the mean of two rooms lies between them
        inside.add(room)
        frontier += [other for other in near if other not in inside and other not in frontier]


def _neighbours(room: tuple[int, int], rooms: int) -> list[tuple[int, int]]:
    row, column = room
    near = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
    return [(r, c) for r, c in near if 0 <= r < rooms and 0 <= c < rooms]


def place_players(walls: Bools, places: Whole | None = None) -> Cells:
    """Return the states of mazes with the players at `places`: uint8 [N, n, n].

    Args:
        walls: The walls, [N, n, n].
        places: The cell of each player, row times n plus column, [N]; None for the upper left corner.
    """
    cells = np.where(walls, np.uint8(WALL), np.uint8(FLOOR))
    cells[:, -1, -1] = GOAL
    flat = _flat(cells)
    flat[np.arange(len(cells)), 0 if places is None else places] = PLAYER
    return cells


def _flat(cells: NDArray[Kind]) -> NDArray[Kind]:
    """A view [N, n n] of [N, n, n]; N may be 0."""
    return cells.reshape(len(cells), cells.shape[-1] ** 2)


def find_players(cells: Cells) -> Whole:
    """Return the cell of each player, row times n plus column: int64 [N].

    Args:
        cells: States with one player each, [N, n, n].
    """
    return (_flat(cells) == PLAYER).argmax(1)


def step(
    cells: Cells, action: Whole, slip: float = 0.0, random: np.random.Generator | None = None
) -> tuple[Cells, NDArray[np.float32], Bools]:
    """One step of each maze: (next state [N, n, n], reward [N], whether the player is at the goal [N]).

    A player that moves against a wall or the border stays. With the probability `slip` the action is replaced by one
    that is uniform on all four, the chosen one among them.

    Args:
        cells: The states, uint8 [N, n, n].
        action: The chosen actions, 0 .. 3, [N].
        slip: The probability of a random action.
        random: The generator of slips; needed if `slip` is above 0.
    """
    if slip > 0:
        assert random is not None, "a step that may slip needs a generator"
        slips = random.random(len(cells)) < slip
        action = np.where(slips, random.integers(len(ACTIONS), size=len(cells)), action)
    places, size = find_players(cells), cells.shape[-1]
    row, column = np.stack(np.divmod(places, size)) + _MOVES[action].T
    inside = (row >= 0) & (row < size) & (column >= 0) & (column < size)
    target = np.where(inside, row * size + column, places)
    target = np.where(_flat(cells)[np.arange(len(cells)), target] == WALL, places, target)
    done = target == size**2 - 1
    return place_players(cells == WALL, target), np.where(done, GOAL_REWARD, STEP_REWARD).astype(np.float32), done


def action_probabilities(action: Whole, slip: float) -> NDArray[np.float64]:
    """Return the probability that each of the four actions is carried out if `action` was chosen: [N, 4].

    Use it for the exact distribution of the next state: the sum over the actions that lead there.

    Args:
        action: The chosen actions, [N].
        slip: The probability of a random action.
    """
    return (1 - slip) * np.eye(len(ACTIONS))[action] + slip / len(ACTIONS)


def open_neighbours(cells: Cells) -> Bools:
    """Return whether each of the four actions moves the player, if it is carried out: [N, 4].

    Args:
        cells: The states, uint8 [N, n, n].
    """
    moves = [step(cells, np.full(len(cells), action))[0] for action in range(len(ACTIONS))]
    return np.stack([(moved != cells).any((1, 2)) for moved in moves], 1)


def distances(walls: Bools) -> Whole:
    """Return the number of steps from each cell to the goal along the shortest path: [N, n, n], -1 at walls.

    Args:
        walls: The walls, [N, n, n].
    """
    found = np.full(walls.shape, -1)
    reached = np.zeros_like(walls)
    reached[:, -1, -1] = True
    steps = 0
    while (new := reached & (found < 0)).any():
        found[new] = steps
        steps += 1
        around = np.pad(new, ((0, 0), (1, 1), (1, 1)))
        reached = ~walls & (around[:, :-2, 1:-1] | around[:, 2:, 1:-1] | around[:, 1:-1, :-2] | around[:, 1:-1, 2:])
    return found


def shortest_path(cells: Cells) -> Whole:
    """Return the least number of steps from each player to the goal: [N]; -1 if no path leads there.

    Args:
        cells: The states, uint8 [N, n, n].
    """
    return _flat(distances(cells == WALL))[np.arange(len(cells)), find_players(cells)]


def are_states(cells: Cells) -> Bools:
    """Return whether arrays can be states of a maze: [N]. Use it for states that a model has made up.

    There is exactly one player; the goal is in its corner, unless the player is there, and nowhere else; the rooms are
    open, the cells at two odd coordinates are walls, and the number of open passages is that of a tree.

    Args:
        cells: Whole numbers [N, n, n].
    """
    rooms = (cells.shape[-1] + 1) // 2
    open_, goal = cells != WALL, cells == GOAL
    corner = goal[:, -1, -1] | (cells[:, -1, -1] == PLAYER)
    one_player = (cells == PLAYER).sum((1, 2)) == 1
    passages = open_.sum((1, 2)) == 2 * rooms**2 - 1
    form = open_[:, ::2, ::2].all((1, 2)) & ~open_[:, 1::2, 1::2].any((1, 2))
    return one_player & corner & (goal.sum((1, 2)) == goal[:, -1, -1]) & passages & form


def planes(cells: Cells) -> NDArray[np.float32]:
    """Return the one-hot planes of floor, wall, player and goal: float32 [..., 4, n, n], the form that agents see.

    Args:
        cells: The states, [..., n, n].
    """
    return np.stack([cells == kind for kind in range(len(COLOURS))], -3).astype(np.float32)


def paint(cells: Cells, pixels: int = 1) -> NDArray[np.uint8]:
    """Return pictures of states: uint8 [..., 3, n pixels, n pixels]; the player green, the goal red.

    Args:
        cells: The states, [..., n, n].
        pixels: The height and width of a cell.
    """
    colours = np.moveaxis(COLOURS[cells], -1, -3)
    return colours.repeat(pixels, -2).repeat(pixels, -1)
