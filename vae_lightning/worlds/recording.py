"""Record what a policy does in an environment of gymnasium."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces

from vae_lightning.runs.machine import available_memory
from vae_lightning.runs.suggestions import hint
from vae_lightning.storage.recordings import DTYPES, About, Kind, Recording
from vae_lightning.types import Shape, UserError

Policy: TypeAlias = Callable[[Any, np.random.Generator], Any]
"""A function of the observation, as the environment gives it, and a generator; it returns the number of an action."""

_WHITE = 255
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Form:
    """How observations are stored.

    Args:
        kind: What an observation is.
        shape: The shape in which one is stored.
        num_states: The number of different ones, if they are whole numbers; 0 otherwise.
        convert: From an observation of the environment to an array of the shape.
    """

    kind: Kind
    shape: Shape
    num_states: int
    convert: Callable[[Any], np.ndarray]


def make(name: str, arguments: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Return an environment by its name; a mistake is one line.

    Args:
        name: The name in `gymnasium.make`.
        arguments: The keyword arguments.

    Raises:
        UserError: if there is no such environment, if it needs a package, or if it refuses the arguments.
    """
    try:
        return gymnasium.make(name, **arguments)
    except gymnasium.error.UnregisteredEnv as error:
        raise UserError(f"{name}: gymnasium has no such environment{hint(name, gymnasium.registry)}") from error
    except Exception as error:  # the environment is foreign code
        raise UserError(f"{name}: cannot be made ({_in_one_line(error)})") from error


def form_of(name: str, space: gymnasium.Space[Any]) -> Form:
    """Return how the observations of a space are stored.

    Args:
        name: The environment, for the message.
        space: The space of observations.

    Raises:
        UserError: if they are neither vectors, images nor whole numbers from 0.
    """
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return Form("discrete", (), int(space.n), partial(np.asarray, dtype=np.int64))
    if isinstance(space, spaces.Box):
        shape = space.shape
        if len(shape) == 1 and shape[0]:
            return Form("vector", shape, 0, partial(np.asarray, dtype=np.float32))
        if space.dtype == np.uint8 and (space.high == _WHITE).all():
            stored = channels_first(np.empty(shape, np.uint8)).shape
            if len(stored) == 3 and stored[0] in _CHANNELS:
                return Form("image", stored, 0, channels_first)
    raise UserError(
        f"{name}: its observations are {_in_one_line(space)}; record takes vectors (Box [D]), images (Box uint8 0 .. "
        "255, [H, W, 1, 3 or 4]) and whole numbers (Discrete from 0): wrap the environment, as by "
        "gymnasium.wrappers.FlattenObservation"
    )


def channels_first(image: np.ndarray) -> np.ndarray:
    """Return an image [H, W], [H, W, 1, 3 or 4] or [C, H, W] as [C, H, W]; anything else unchanged.

    Args:
        image: The image.
    """
    if image.ndim == 2:
        return image[None]
    return image.transpose(2, 0, 1) if image.ndim == 3 and image.shape[2] in _CHANNELS else image


def num_actions_of(name: str, space: gymnasium.Space[Any]) -> int:
    """Return the number of actions of a space.

    Args:
        name: The environment, for the message.
        space: The space of actions.

    Raises:
        UserError: if they are not the whole numbers from 0.
    """
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return int(space.n)
    raise UserError(
        f"{name}: its actions are {_in_one_line(space)}; record takes the whole numbers from 0 (Discrete): wrap the "
        "environment, as by gymnasium.wrappers.TransformAction"
    )


def record(
    name: str, arguments: dict[str, Any], steps: int, seed: int = 0, policy: Policy | None = None, policy_name: str = ""
) -> Recording:
    """Return what `steps` steps of an environment bring; the last episode may be cut.

    Args:
        name: The name in `gymnasium.make`.
        arguments: The keyword arguments of `gymnasium.make`.
        steps: The number of steps.
        seed: The seed of the environment and of the policy.
        policy: Chooses the actions; None for uniform ones.
        policy_name: The name of the policy, for the record.

    Raises:
        UserError: if the environment cannot be made or recorded, or if it breaks.
    """
    environment = make(name, arguments)
    try:
        form = form_of(name, environment.observation_space)
        num_actions = num_actions_of(name, environment.action_space)
        _check_memory(name, form, steps)
        uniform: Policy = lambda _, random: random.integers(num_actions)  # noqa: E731
        found = _Recorder(name, environment, form, num_actions, policy or uniform).run(steps, seed)
        spec = environment.spec
    finally:
        environment.close()
    plain = spec.id if spec else name.rpartition(":")[2]  # a file names no module, because a reader would import it
    versions = {"gymnasium": gymnasium.__version__, "numpy": np.__version__, "python": sys.version.split()[0]}
    about = About(
        *(plain, arguments, form.kind, form.shape, form.num_states, num_actions),
        *((spec.max_episode_steps if spec else None) or 0, seed, policy_name or "random", versions),
    )
    return Recording(about, **found)


class _Recorder:
    """Run an environment and keep what it returns."""

    def __init__(
        self, name: str, environment: gymnasium.Env[Any, Any], form: Form, num_actions: int, policy: Policy
    ) -> None:
        self.name, self.environment, self.form = name, environment, form
        self.num_actions, self.policy = num_actions, policy
        self.observations: list[np.ndarray] = []

    def run(self, steps: int, seed: int) -> dict[str, np.ndarray]:
        """The arrays of a recording by name."""
        random, actions, rewards = np.random.default_rng(seed), np.empty(steps, np.int64), np.empty(steps, np.float32)
        lengths, terminated = [], []
        observation, length = self._reset(seed), 0
        for i in range(steps):
            actions[i] = action = self._choose(observation, random)
            observation, rewards[i], ends, is_cut = self._step(action)
            length += 1
            if ends or is_cut or i == steps - 1:
                lengths.append(length)
                terminated.append(ends)
                if i < steps - 1:
                    observation, length = self._reset(None), 0
        return {
            "observations": np.stack(self.observations),
            "lengths": np.array(lengths, np.int64),
            "terminated": np.array(terminated, bool),
            "actions": actions,
            "rewards": rewards,
        }

    def _choose(self, observation: Any, random: np.random.Generator) -> int:
        action = self.policy(observation, random)
        try:
            number = int(action)
        except (TypeError, ValueError):
            number = -1
        if not 0 <= number < self.num_actions:
            raise UserError(f"the policy chose {action!r}; an action of {self.name} is 0 .. {self.num_actions - 1}")
        return number

    def _reset(self, seed: int | None) -> Any:
        try:
            observation, _ = self.environment.reset(seed=seed)
        except Exception as error:  # the environment is foreign code
            raise UserError(f"{self.name}: its reset failed ({_in_one_line(error)})") from error
        self._keep(observation)
        return observation

    def _step(self, action: int) -> tuple[Any, float, bool, bool]:
        try:
            observation, reward, terminated, truncated, _ = self.environment.step(action)
        except Exception as error:  # as above
            raise UserError(f"{self.name}: its step failed ({_in_one_line(error)})") from error
        self._keep(observation)
        if not np.isfinite(value := float(reward)):
            raise UserError(f"{self.name}: its step returned the reward {value}; a reward is finite")
        return observation, value, bool(terminated), bool(truncated)

    def _keep(self, observation: Any) -> None:
        """Keep a copy, because an environment may use the same array for the next observation."""
        try:
            array: np.ndarray = np.array(self.form.convert(observation), DTYPES[self.form.kind])
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{self.name}: its observation is not of its space ({_in_one_line(error)})") from error
        if array.shape != self.form.shape or not np.isfinite(array).all():
            raise UserError(
                f"{self.name}: an observation has the shape {list(array.shape)} or values that are not finite; its "
                f"space promises finite ones of {list(self.form.shape)}"
            )
        self.observations.append(array)


def _check_memory(name: str, form: Form, steps: int) -> None:
    needed = 2 * steps * int(np.prod(form.shape)) * np.dtype(DTYPES[form.kind]).itemsize
    free = available_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{name}: {steps:,} steps take {needed / 2**30:,.1f} GiB, but only {free / 2**30:,.1f} GiB are free; lower "
            "--steps"
        )


def _in_one_line(value: object) -> str:
    text = f"{type(value).__name__}: {value}" if isinstance(value, Exception) else str(value)
    return " ".join(text.split())[:300]
