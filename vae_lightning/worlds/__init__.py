"""Worlds that an agent acts in, by the interface of gymnasium: mazes, dreams of models, and agents for both.

This room, and the commands `dream` and `record`, need the extra `rl`; nothing else does. Importing it registers
`vae_lightning/Maze-v0`, so that `gymnasium.make("vae_lightning/Maze-v0")` finds the maze.
"""

from __future__ import annotations

from vae_lightning.types import UserError

try:
    import gymnasium
except ModuleNotFoundError as error:
    raise UserError(
        f"worlds need {error.name}, which is not installed; install the extra rl: pip install 'vae_lightning[rl]'"
    ) from error

MAZE = "vae_lightning/Maze-v0"
"""The name of the maze in `gymnasium.make`."""

gymnasium.register(MAZE, entry_point="vae_lightning.worlds.maze:MazeEnv")
