"""The maze as an environment of gymnasium; its rules are those of `synthetic.mazes`."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces

from vae_lightning.synthetic import mazes
from vae_lightning.types import UserError

View: TypeAlias = Literal["cells", "planes", "image"]
Start: TypeAlias = Literal["corner", "random"]

_PIXELS = 4  # the height and width of a cell in an image


class MazeEnv(gymnasium.Env[np.ndarray, np.integer[Any]]):
    """A player looks for the goal of a maze, which is in its lower right corner; 0 is up, 1 down, 2 left and 3 right.

    The reward is 1 at the goal, where the episode terminates, and -0.01 for every other step, also against a wall. An
    episode of `cap` steps that has not reached the goal is truncated. `info` holds `optimal`, the steps of the shortest
    path from the start of the episode, and `steps`, all steps so far.

    Use it by `gymnasium.make("vae_lightning/Maze-v0", size=7)` after `import vae_lightning.worlds`.

    Args:
        size: n, the rows and columns; odd, and at least 3.
        maze_seed: The number of the maze, which is then the same in every episode; None for a new maze at each reset.
        slip: The probability that an action is replaced by a random one of the four.
        cap: The largest number of steps of an episode; None for 4 n^2.
        start: corner: the upper left one; random: any cell but walls and the goal.
        observation: cells: uint8 [n, n], 0 floor, 1 wall, 2 player, 3 goal; planes: one plane for each of these,
            float32 [4, n, n]; image: colours, uint8 [4 n, 4 n, 3].
        render_mode: rgb_array, or None.

    Raises:
        UserError: if an argument is out of its range.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 8}  # noqa: RUF012 - as gymnasium has it

    def __init__(
        self,
        size: int = 11,
        maze_seed: int | None = None,
        slip: float = 0.0,
        cap: int | None = None,
        start: Start = "corner",
        observation: View = "cells",
        render_mode: str | None = None,
    ) -> None:
        _check(size, maze_seed, slip, cap, start, observation, render_mode)
        self.size, self.maze_seed, self.slip, self.start, self.observation = size, maze_seed, slip, start, observation
        self.cap = 4 * size**2 if cap is None else cap
        self.render_mode = render_mode
        self.action_space = spaces.Discrete(len(mazes.ACTIONS))
        views: dict[str, spaces.Box] = {
            "cells": spaces.Box(0, mazes.GOAL, (size, size), np.uint8),
            "planes": spaces.Box(0, 1, (len(mazes.COLOURS), size, size), np.float32),
            "image": spaces.Box(0, 255, (_PIXELS * size, _PIXELS * size, 3), np.uint8),
        }
        self.observation_space = views[observation]
        self.walls = mazes.draw_walls([maze_seed or 0], size)
        self.cells = mazes.place_players(self.walls)
        self.steps, self.optimal = 0, int(mazes.shortest_path(self.cells)[0])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode: (observation, info).

        Args:
            seed: The seed of mazes, starts and slips from here on; None to go on with the present ones.
            options: Not used.
        """
        super().reset(seed=seed)
        if self.maze_seed is None:
            self.walls = mazes.draw_walls([int(self.np_random.integers(2**63 - 1))], self.size)
        free = np.flatnonzero(~self.walls)[:-1]  # the goal is the last one
        place = free[:1] if self.start == "corner" else self.np_random.choice(free, 1)
        self.cells = mazes.place_players(self.walls, place)
        self.steps, self.optimal = 0, int(mazes.shortest_path(self.cells)[0])
        return self._observed(), self._info()

    def step(self, action: np.integer[Any] | int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one step: (observation, reward, terminated, truncated, info).

        Args:
            action: 0 up, 1 down, 2 left, 3 right.

        Raises:
            UserError: if there is no such action.
        """
        if not self.action_space.contains(number := np.int64(action)):
            raise UserError(f"MazeEnv: action {action} is none of 0 up, 1 down, 2 left, 3 right")
        self.cells, reward, done = mazes.step(self.cells, np.array([number]), self.slip, self.np_random)
        self.steps += 1
        terminated = bool(done[0])
        return self._observed(), float(reward[0]), terminated, not terminated and self.steps >= self.cap, self._info()

    def render(self) -> np.ndarray | None:
        """Return a picture of the maze, uint8 [H, W, 3]; None without a render mode."""
        return self._image() if self.render_mode == "rgb_array" else None

    def _image(self) -> np.ndarray:
        return np.ascontiguousarray(mazes.paint(self.cells[0], _PIXELS).transpose(1, 2, 0))

    def _observed(self) -> np.ndarray:
        if self.observation == "image":
            return self._image()
        return self.cells[0].copy() if self.observation == "cells" else mazes.planes(self.cells[0])

    def _info(self) -> dict[str, Any]:
        return {"optimal": self.optimal, "steps": self.steps}


def _check(
    size: int, maze_seed: int | None, slip: float, cap: int | None, start: str, observation: str, mode: str | None
) -> None:
    """Raise UserError for the first argument of MazeEnv that is out of its range."""
    faults = {
        f"size is {size}; it must be odd and at least 3": size < 3 or size % 2 == 0,
        f"maze_seed is {maze_seed}; it must be at least 0": maze_seed is not None and maze_seed < 0,
        f"slip is {slip}; a probability is in [0, 1]": not 0 <= slip <= 1,
        f"cap is {cap}; it must be at least 1": cap is not None and cap < 1,
        f"start is {start!r}; it must be corner or random": start not in ("corner", "random"),
        f"observation is {observation!r}; it must be cells, planes or image": observation
        not in ("cells", "planes", "image"),
        f"render_mode is {mode!r}; it must be rgb_array or None": mode not in (None, "rgb_array"),
    }
    for fault, is_present in faults.items():
        if is_present:
            raise UserError(f"MazeEnv: {fault}")
