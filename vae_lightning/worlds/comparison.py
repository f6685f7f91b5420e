"""Agents of one world compared: trained in its dream, trained in the real world, and acting at random."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from stable_baselines3.common.vec_env import VecEnv

from vae_lightning.data.module import Split
from vae_lightning.data.transitions import Transitions
from vae_lightning.runs.trust import TRUSTED
from vae_lightning.worlds.agents import (
    NUM_ENVIRONMENTS,
    Curve,
    Kind,
    Policy,
    Score,
    greedy,
    play,
    real_environments,
    train,
    uniform,
)
from vae_lightning.worlds.dream import DreamVecEnv, WorldModel, is_one_world
from vae_lightning.worlds.real import RealWorld, make_real

Teacher: TypeAlias = Literal["dream", "real", "random"]
TEACHERS: tuple[Teacher, ...] = ("dream", "real", "random")
"""Where an agent learnt: in the dream, in the real world, nowhere."""

_RANDOM_EPISODES = 20  # a random agent needs more episodes than a greedy one for its mean
_CURVE_EPISODES = 3  # at most, for each point of a learning curve
_TEST_SEED = 1_000_000  # all agents are tested in the same episodes, none of which they learnt in


@dataclass(frozen=True)
class Row:
    """One agent and what it reached in the real world.

    Args:
        world: The number of the world in the split.
        seed: The seed of the agent.
        teacher: Where it learnt.
        score: Its greedy test in the real world.
        steps: The number of steps that it learnt from.
        real_transitions: How many real transitions its learning rests on: those that the model rests on, or its own.
        invalid: How many dreamt states were none.
        curve: The mean return of its tests in the real world, by the number of its steps. No agent learns from a test.
        seconds: The processor time of its learning, without its tests.
    """

    world: int
    seed: int
    teacher: Teacher
    score: Score
    steps: int = 0
    real_transitions: int = 0
    invalid: int = 0
    curve: Curve = ()
    seconds: float = 0.0

    def as_plain(self) -> dict[str, Any]:
        """Return the row for a JSON file."""
        return {
            "world": self.world,
            "seed": self.seed,
            "trained_in": self.teacher,
            "episodes": len(self.score.returns),
            "success": self.score.success,
            "steps_over_optimal": self.score.ratio,
            "mean_return": self.score.mean_return,
            "episode_steps": self.score.steps,
            "training_steps": self.steps,
            "real_transitions": self.real_transitions,
            "invalid_dreamt_states": self.invalid,
            "cpu_seconds": round(self.seconds, 2),
            "curve": [list(point) for point in self.curve],
        }


@dataclass(frozen=True)
class Comparison:
    """Agents of the same kind, steps and seeds in the dreams of a model and in the real worlds.

    Args:
        model: The world model.
        data: The data that it was trained on.
        num_transitions: The number of real transitions that the model rests on.
        kind: The learning method.
        steps: The number of steps of each agent.
        episodes: The number of episodes of a test; None for one in a world without chance, else 20.
        split: The split of the worlds.
        trusted: The prefixes of the modules that the id of an environment may name.
        without_real: Whether to leave out the agent that learns in the real world, whose steps may be dear.
    """

    model: WorldModel
    data: Transitions
    num_transitions: int
    kind: Kind = "ppo"
    steps: int = 60_000
    episodes: int | None = None
    split: Split = "test"
    trusted: Sequence[str] = field(default=TRUSTED)
    without_real: bool = False

    def rows(self, world: int, seed: int) -> Iterator[tuple[Row, Policy]]:
        """Train and test an agent in the dream, one in the real world, and test a random one.

        Args:
            world: The number of the world in the split.
            seed: The seed of the agents.

        Yields:
            The row of each agent and its policy.
        """
        dreams = DreamVecEnv(self.model, self.data, NUM_ENVIRONMENTS, split=self.split, index=world, seed=seed)
        yield self._row("dream", dreams, world, seed, self.num_transitions)
        if not self.without_real:
            yield self._row("real", real_environments(lambda: self.real(world)), world, seed, None)
        policy = uniform(self.data.num_actions, seed)
        episodes = max(_RANDOM_EPISODES, self.num_episodes(world))
        yield Row(world, seed, "random", play(self.real(world), policy, episodes, _TEST_SEED)), policy

    def _row(
        self, teacher: Teacher, environments: VecEnv, world: int, seed: int, transitions: int | None
    ) -> tuple[Row, Policy]:
        real, episodes = self.real(world), self.num_episodes(world)
        tested = 0.0

        def test(policy: Policy) -> float:
            nonlocal tested
            began = time.process_time()
            score = play(real, policy, min(episodes, _CURVE_EPISODES), _TEST_SEED)
            tested += time.process_time() - began
            return score.mean_return

        began = time.process_time()
        agent, curve = train(self.kind, environments, self.steps, seed, test)
        seconds = time.process_time() - began - tested
        score = play(real, greedy(agent), episodes, _TEST_SEED)
        invalid = environments.dreams.num_invalid if isinstance(environments, DreamVecEnv) else 0
        steps = agent.num_timesteps
        used = steps if transitions is None else transitions
        environments.close()
        return Row(world, seed, teacher, score, steps, used, invalid, curve, seconds), greedy(agent)

    def real(self, world: int) -> RealWorld:
        """Make one of the real worlds.

        Args:
            world: Its number in the split.
        """
        return make_real(self.data, self.split, world, trusted=self.trusted)

    def num_episodes(self, world: int) -> int:
        """Return the number of episodes of a test: one is enough where a maze does not slip.

        Args:
            world: The number of the world in the split.
        """
        if self.episodes is not None:
            return self.episodes
        arguments = self.data.environment(self.split, world)[1]
        return 1 if arguments.get("slip") == 0 else 20


def worlds_of(data: Transitions, split: Split, most: int) -> list[int]:
    """Return the numbers of the first worlds of a split; recorded data have a single one.

    Args:
        data: The data.
        split: The split.
        most: The largest number of worlds.
    """
    return [0] if is_one_world(data) else list(range(min(most, data.num_starts(split))))


# -- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """The rows of one teacher, put together.

    Args:
        teacher: Where the agents learnt.
        agents: The number of agents.
        success: The share of the episodes that reached the goal, the mean over agents; None without a goal.
        solved: The number of agents that reached the goal in at least half of their episodes; None without a goal.
        ratio: Steps / optimal, the mean over the agents that reached the goal; None if none did.
        mean_return: The mean over agents.
        real_transitions: Of one agent, the mean. The agents of all worlds share those of the model.
        invalid_share: The share of the dreamt states that were none; None if nothing was dreamt.
        seconds: Processor time of one agent's learning, the mean.
    """

    teacher: Teacher
    agents: int
    success: float | None
    solved: int | None
    ratio: float | None
    mean_return: float
    real_transitions: float
    invalid_share: float | None
    seconds: float


def summaries(rows: Iterable[Row]) -> list[Summary]:
    """Put the rows of each teacher together.

    Args:
        rows: The rows.
    """
    kept = list(rows)
    by_teacher = {teacher: [row for row in kept if row.teacher == teacher] for teacher in TEACHERS}
    return [_summary(teacher, found) for teacher, found in by_teacher.items() if found]


def _summary(teacher: Teacher, rows: Sequence[Row]) -> Summary:
    successes = [row.score.success for row in rows if row.score.success is not None]
    ratios = [row.score.ratio for row in rows if row.score.ratio is not None]
    dreamt = sum(row.steps for row in rows) if teacher == "dream" else 0
    return Summary(
        teacher,
        len(rows),
        _mean(successes),
        sum(success >= 0.5 for success in successes) if successes else None,
        _mean(ratios),
        sum(row.score.mean_return for row in rows) / len(rows),
        sum(row.real_transitions for row in rows) / len(rows),
        sum(row.invalid for row in rows) / dreamt if dreamt else None,
        sum(row.seconds for row in rows) / len(rows),
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


COLUMNS = (
    *("trained in", "agents", "solved", "success", "steps / optimal", "return", "real transitions", "invalid", "CPU s"),
)
"""The names of the table's columns."""


def cells(summary: Summary) -> list[str]:
    """Return the texts of a summary under `COLUMNS`; a dash where there is no number.

    Args:
        summary: The summary.
    """
    values: Mapping[str, tuple[float | None, str]] = {
        "solved": (summary.solved, "d"),
        "success": (summary.success, ".3f"),
        "steps / optimal": (summary.ratio, ".3f"),
        "return": (summary.mean_return, ".3f"),
        "real transitions": (summary.real_transitions, ",.0f"),
        "invalid": (summary.invalid_share, ".4%"),
        "CPU s": (summary.seconds, ".1f"),
    }
    texts = ["-" if value is None else f"{value:{form}}" for value, form in values.values()]
    return [summary.teacher, str(summary.agents), *texts]


def table(rows: Iterable[Row]) -> str:
    """Return the summaries as lines of text with columns.

    Args:
        rows: The rows.
    """
    lines = [list(COLUMNS), *(cells(summary) for summary in summaries(rows))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
