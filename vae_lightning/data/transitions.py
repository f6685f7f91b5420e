"""Transitions (s, a, s', reward, done) of a world, for models that dream it; and those of drawn mazes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from vae_lightning.data.module import SPLITS, DataModule, Split
from vae_lightning.noise import derive_seed
from vae_lightning.runs.machine import available_memory
from vae_lightning.storage.examples import Examples
from vae_lightning.storage.loader import check_share
from vae_lightning.storage.transforms import BatchTransform, Draw
from vae_lightning.synthetic import mazes
from vae_lightning.types import Batch, UserError

Coverage: TypeAlias = Literal["uniform", "random_walk"]

_SMALLEST = 7  # 5 x 5 has 192 mazes, 7 x 7 has 100,352
_DRAWS = 20  # mazes drawn for each one that is wanted, before the search ends
_NUMBERS, _MOVES, _HALVES = 0, 1, 2  # streams of randomness: mazes, steps, and what is held out of training
_PIXELS = 4  # the height and width of a cell in a picture
_Steps: TypeAlias = dict[str, np.ndarray]
_Pairs: TypeAlias = tuple[mazes.Whole, mazes.Whole, mazes.Whole]
"""The maze, the cell and the action of each pair."""


class AsWholeNumbers(BatchTransform):
    """Turn bytes that hold whole numbers into int64: `x` and `state`."""

    changes = frozenset({"x", "state"})

    def apply(self, batch: Batch, draw: Draw) -> Batch:
        return {name: batch[name].long() for name in self.changes}


class Transitions(DataModule):
    """Steps of a world with discrete actions, which a model of p(s', reward, done | s, a) explains.

    A batch holds `x`, the next state s', [B, *x_shape]; `state`, the state s, in the same form; `action`, int64 [B];
    `reward`, float32 [B]; `done`, float32 [B], 1 if the step ended the episode for good, and 0 if the episode goes on
    or was cut at its longest length. `x` and `state` are float32, or int64 if the state is made of whole numbers.

    Steps that end an episode are rare, so a share of each training batch is drawn from them; else a model would learn
    that no episode ends. A subclass returns the steps of a split from `transitions`, and says what its world is.

    Args:
        data_dir: Folder of the data set's files.
        terminal_share: The share of each training batch that is drawn from steps that end an episode; 0 for their own
            share of the data.
        kwargs: Arguments of `DataModule`.

    Raises:
        UserError: if the share is not in [0, 1).
    """

    vocabulary: int
    """The number of different whole numbers in a state, if it is made of whole numbers."""

    def __init__(self, data_dir: str = "data", *, terminal_share: float = 1 / 16, **kwargs: Any) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        if not 0 <= terminal_share < 1:
            raise UserError(f"{type(self).__name__}: terminal_share is {terminal_share}; it must be in [0, 1)")
        self.terminal_share = terminal_share

    @property
    @abstractmethod
    def cap(self) -> int:
        """The largest number of steps of an episode of the world."""

    @abstractmethod
    def transitions(self, split: Split) -> Mapping[str, Tensor]:
        """Return the fields of a split: x, state, action, reward and done, [N, ...] each.

        Args:
            split: `train`, `val` or `test`.
        """

    @abstractmethod
    def start(self, split: Split, index: int) -> Tensor:
        """Return the first state of an episode in the form of a batch: [*x_shape].

        Args:
            split: `train`, `val` or `test`.
            index: The number of the world, or of the episode, in the split; from 0.
        """

    @abstractmethod
    def num_starts(self, split: Split) -> int:
        """Return how many numbers `start` and `environment` take.

        Args:
            split: `train`, `val` or `test`.
        """

    @abstractmethod
    def environment(self, split: Split, index: int) -> tuple[str, dict[str, Any]]:
        """Return the name and the keyword arguments of `gymnasium.make` for the real world.

        Args:
            split: `train`, `val` or `test`.
            index: The number of the world in the split.
        """

    def is_valid(self, state: Tensor) -> Tensor:
        """Return whether states that a model has dreamt can be states of the world: bool [B].

        Args:
            state: The states, [B, *x_shape].
        """
        return state.isfinite().reshape(len(state), math.prod(state.shape[1:])).all(1)

    @cached_property
    def least_reward(self) -> float:
        """The smallest reward of the training data."""
        return float(self.examples("train").fields["reward"].min())

    def num_real_transitions(self) -> int:
        """Return how many steps of the real world a model of the data rests on: train, and val, which chooses it."""
        return len(self.examples("train")) + len(self.examples("val"))

    def describe_coverage(self) -> str:
        """Return which part of the world the training data show, in one line."""
        done = self.examples("train").fields["done"]
        return f"{int(done.sum()):,} of {len(done):,} transitions of train end an episode"

    def starts(self, split: Split, n: int, seed: int = 0) -> Tensor:
        """Return the first states of n episodes that are drawn at random: [n, *x_shape]; different ones where possible.

        Args:
            split: `train`, `val` or `test`.
            n: The number of states.
            seed: The seed of the draw.
        """
        random, total = np.random.default_rng(seed), self.num_starts(split)
        rounds = [random.permutation(total) for _ in range(-(-n // total))]
        return torch.stack([self.start(split, int(index)) for index in np.concatenate(rounds)[:n]])

    def check_batch_size(self) -> None:
        if self.terminal_share:
            check_share(f"{type(self).__name__}: terminal_share", self.terminal_share, self.batch_size)

    def load(self, split: Split) -> Examples:
        fields = self.transitions(split)
        if split != "train" or not self.terminal_share:
            return Examples(fields)
        ends = fields["done"].bool()
        if not ends.any() or ends.all():
            raise UserError(
                f"{type(self).__name__}: {int(ends.sum())} of {len(ends):,} transitions of train end an episode; a "
                "model of its end needs some that do and some that do not: take more transitions, or "
                "--data.terminal_share=0"
            )
        return Examples(fields, group=ends, group_share=self.terminal_share)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            rank_zero_only(print)(f"{type(self).__name__}: {self.describe_coverage()}", flush=True)


class Mazes(Transitions):
    """Steps in mazes that are drawn from a seed, on known walls and on walls that training has not; no files, seconds.

    A state is an array of cells, int64 [n, n]: 0 floor, 1 wall, 2 player, 3 goal, the player over the goal. The actions
    are up, down, left and right. The reward is 1 at the goal, where the episode ends, and -0.01 elsewhere.

    `val` and `test` have two halves, and `seen` [B] tells them apart. False: steps in mazes whose walls no other split
    has. True: steps in mazes of training, by pairs of a cell and an action that are not in the training data; a pair is
    in one of the two splits. The second half is as large as the first, or smaller if there are fewer pairs. The mazes
    of `test` depend on `maze_seed` and their number alone, not on the seed of the run.

    Args:
        data_dir: Not used; nothing is read or written.
        size: n, the rows and columns of a maze; odd, and at least 7, because there are only 192 mazes of 5 x 5.
        num_mazes: The number of mazes of train, and of the mazes with new walls of val and test.
        num_transitions: The number of steps in a maze of train, val and test; 0 for every pair of a cell and an action
            once.
        coverage: How the states of training are found. uniform: a uniform cell, and a uniform action; random_walk:
            what a player who acts at random from the upper left corner on comes across, with a new start at the goal.
        slip: The probability that an action is replaced by a random one of the four.
        maze_seed: The seed of mazes and steps.
        kwargs: Arguments of `Transitions`.

    Raises:
        UserError: if the size is even or below 7, if a number is too small, or if there are not as many mazes.
    """

    vocabulary = len(mazes.COLOURS)
    num_actions = len(mazes.ACTIONS)

    def __init__(
        self,
        data_dir: str = "data",
        *,
        size: int = 7,
        num_mazes: tuple[int, int, int] = (200, 50, 100),
        num_transitions: tuple[int, int, int] = (100, 40, 40),
        coverage: Coverage = "uniform",
        slip: float = 0.0,
        maze_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, **kwargs)
        if size < _SMALLEST or size % 2 == 0:
            raise UserError(
                f"Mazes: size is {size}; it must be odd and at least {_SMALLEST}, because smaller mazes are so few "
                "that none of val and test would be unseen"
            )
        if min(num_mazes) < 1 or min(num_transitions) < 0 or maze_seed < 0:
            raise UserError(
                f"Mazes: num_mazes is {list(num_mazes)}, num_transitions {list(num_transitions)} and maze_seed "
                f"{maze_seed}; there must be at least one maze a split, and no number below 0"
            )
        if not 0 <= slip <= 1:
            raise UserError(f"Mazes: slip is {slip}; a probability is in [0, 1]")
        self.size, self.slip, self.coverage, self.maze_seed = size, slip, coverage, maze_seed
        self.num_mazes = dict(zip(SPLITS, num_mazes, strict=True))
        self.num_transitions = dict(zip(SPLITS, num_transitions, strict=True))
        self.x_shape = (size, size)
        self._check_memory()
        self._walls: dict[Split, mazes.Bools] = {}
        self._numbers: dict[Split, list[int]] = {}
        self._shown: mazes.Bools | None = None

    @property
    def cap(self) -> int:
        """The largest number of steps of an episode: 4 n^2."""
        return 4 * self.size**2

    def _check_memory(self) -> None:
        """Check the memory before mazes are drawn: a foreign config.yaml may ask for any number."""
        pairs = {split: self.num_transitions[split] or 2 * self.size**2 for split in SPLITS}
        needed = sum(4 * self.size**2 * self.num_mazes[split] * pairs[split] for split in SPLITS)
        free = available_memory()
        if free is not None and needed > free:
            raise UserError(
                f"Mazes: the transitions take {needed / 2**30:,.1f} GiB, but only {free / 2**30:,.1f} GiB are free; "
                "lower --data.num_mazes or --data.num_transitions"
            )

    def walls(self, split: Split) -> mazes.Bools:
        """Return the walls of the mazes that belong to a split alone: [num_mazes, n, n].

        Args:
            split: `train`, `val` or `test`.
        """
        if not self._walls:
            known: set[bytes] = set()
            for each in reversed(SPLITS):  # test first, so that its mazes do not depend on the number of the others
                self._numbers[each], self._walls[each] = self._new_mazes(each, known)
        return self._walls[split]

    def _new_mazes(self, split: Split, known: set[bytes]) -> tuple[list[int], mazes.Bools]:
        """Draw the mazes of a split, without those of `known`, to which they are added."""
        wanted = self.num_mazes[split]
        found: dict[int, mazes.Bools] = {}
        for first in range(0, _DRAWS * wanted, wanted):
            index = range(first, first + wanted)
            numbers = [derive_seed(self.maze_seed, _NUMBERS, SPLITS.index(split), i) for i in index]
            for number, walls in zip(numbers, mazes.draw_walls(numbers, self.size), strict=True):
                if walls.tobytes() not in known and len(found) < wanted:
                    known.add(walls.tobytes())
                    found[number] = walls
            if len(found) == wanted:
                return list(found), np.stack(list(found.values()))
        raise UserError(
            f"Mazes: {_DRAWS * wanted:,} mazes of {self.size} x {self.size} were drawn, and {len(found):,} of them "
            f"are new; {split} needs {wanted:,}: lower --data.num_mazes or raise --data.size"
        )

    def transitions(self, split: Split) -> dict[str, Tensor]:
        random = np.random.default_rng(derive_seed(self.maze_seed, _MOVES, SPLITS.index(split)))
        walls, count = self.walls(split), self.num_transitions[split]
        if split == "train" and self.coverage == "random_walk" and count:
            return _as_fields(self._walk(walls, count, random))
        index, places, action = _uniform_pairs(walls, count, random)
        steps = self._step(mazes.place_players(walls[index], places), action, random)
        if split == "train":
            return _as_fields(steps)
        index, places, action = self._held_out(split, len(action))
        known = self._step(mazes.place_players(self.walls("train")[index], places), action, random)
        seen = np.arange(len(steps["x"]) + len(known["x"])) >= len(steps["x"])
        return _as_fields({**{name: np.concatenate((steps[name], known[name])) for name in steps}, "seen": seen})

    def _step(self, state: mazes.Cells, action: mazes.Whole, random: np.random.Generator) -> _Steps:
        x, reward, done = mazes.step(state, action, self.slip, random)
        return {"x": x, "state": state, "action": action, "reward": reward, "done": done.astype(np.float32)}

    def _walk(self, walls: mazes.Bools, count: int, random: np.random.Generator) -> _Steps:
        """A player in each maze takes `count` steps at random, all players at once; rows are ordered by maze."""
        start = state = mazes.place_players(walls)
        steps = []
        for _ in range(count):
            steps.append(self._step(state, random.integers(self.num_actions, size=len(state)), random))
            state = np.where(steps[-1]["done"][:, None, None] > 0, start, steps[-1]["x"])
        return {
            name: np.stack([step[name] for step in steps], 1).reshape(-1, *steps[0][name].shape[1:])
            for name in steps[0]
        }

    def shown_pairs(self) -> mazes.Bools:
        """Return which pairs of a cell, row n + column, and an action training shows: bool [mazes of train, n n, 4]."""
        if self._shown is None:
            steps = self.transitions("train")
            places, action = mazes.find_players(steps["state"].numpy()), steps["action"].numpy()
            num_mazes = self.num_mazes["train"]
            index = np.arange(num_mazes).repeat(len(action) // num_mazes)
            self._shown = np.zeros((num_mazes, self.size**2, self.num_actions), bool)
            self._shown[index, places, action] = True
        return self._shown

    def _held_out(self, split: Split, at_most: int) -> _Pairs:
        """Pairs that training does not show, in mazes of training; one half of all is for val and one for test."""
        can_be = _free_cells(self.walls("train"))[..., None] & ~self.shown_pairs()
        pairs = np.argwhere(can_be)
        np.random.default_rng(derive_seed(self.maze_seed, _HALVES)).shuffle(pairs)
        index, places, action = pairs[SPLITS.index(split) - 1 :: 2][:at_most].T
        return index, places, action

    def num_starts(self, split: Split) -> int:
        return self.num_mazes[split]

    def start(self, split: Split, index: int) -> Tensor:
        """Return the state with the player in the upper left corner of a maze: int64 [n, n].

        Args:
            split: `train`, `val` or `test`.
            index: The number of the maze in the split.

        Raises:
            UserError: if there is no such maze.
        """
        self._check_index(split, index)
        return torch.from_numpy(mazes.place_players(self.walls(split)[index : index + 1])[0]).long()

    def environment(self, split: Split, index: int) -> tuple[str, dict[str, Any]]:
        self._check_index(split, index)
        self.walls(split)
        return "vae_lightning/Maze-v0", {"size": self.size, "maze_seed": self._numbers[split][index], "slip": self.slip}

    def _check_index(self, split: Split, index: int) -> None:
        if not 0 <= index < self.num_mazes[split]:
            raise UserError(f"Mazes: {split} has no maze {index}; it has mazes 0 .. {self.num_mazes[split] - 1}")

    def is_valid(self, state: Tensor) -> Tensor:
        return torch.from_numpy(mazes.are_states(state.detach().cpu().numpy())).to(state.device)

    def describe_coverage(self) -> str:
        shown = self.shown_pairs()
        possible = 4 * int(_free_cells(self.walls("train")).sum())
        return (
            f"train shows {int(shown.sum()):,} of {possible:,} pairs of a cell and an action in {len(shown):,} mazes "
            f"of {self.size} x {self.size} ({shown.sum() / possible:.0%}); {super().describe_coverage()}"
        )

    def batch_transform(self, split: Split) -> BatchTransform:
        return AsWholeNumbers()

    def show(self, x: Tensor) -> Tensor:
        """Return pictures of states, float32 [n, 3, H, W] in [0, 1]: the player green, the goal red, walls dark.

        Args:
            x: The states, [n, n, n].
        """
        cells = x.detach().cpu().long().clamp(0, self.vocabulary - 1).numpy()
        return torch.from_numpy(mazes.paint(cells, _PIXELS)).float() / 255


def _free_cells(walls: mazes.Bools) -> mazes.Bools:
    """The cells that an action can be taken in, all but walls and the goal: [N, n n]."""
    free = ~walls.reshape(len(walls), -1)
    free[:, -1] = False
    return free


def _uniform_pairs(walls: mazes.Bools, count: int, random: np.random.Generator) -> _Pairs:
    """Draw `count` pairs of a cell and an action in each maze, uniformly, with repeats; if 0, take each pair once."""
    cells = _free_cells(walls).nonzero()[1].reshape(len(walls), -1)  # all mazes of a size have as many open cells
    total = 4 * cells.shape[1]
    pairs = random.integers(total, size=(len(walls), count)) if count else np.tile(np.arange(total), (len(walls), 1))
    index = np.arange(len(walls)).repeat(pairs.shape[1])
    return index, cells[index, pairs.ravel() // 4], pairs.ravel() % 4


def _as_fields(steps: _Steps) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in steps.items()}
