"""The real world beside its dream: made by gymnasium, seen in the form in which a dream is seen."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from vae_lightning.data.module import Split
from vae_lightning.data.transitions import Transitions
from vae_lightning.runs.suggestions import hint
from vae_lightning.runs.trust import TRUSTED
from vae_lightning.types import UserError
from vae_lightning.worlds.dream import Observation, observation_space, observe
from vae_lightning.worlds.recording import channels_first, make


class RealWorld(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A real environment whose observations are those of its dream.

    Args:
        environment: The environment; its observations are the states of the data, in any number type.
        data: The data that were recorded in it.
        observation: How cells are shown, as in `DreamEnv`.

    Raises:
        UserError: if its actions or observations are not those of the data.
    """

    def __init__(
        self, environment: gymnasium.Env[Any, Any], data: Transitions, observation: Observation = "planes"
    ) -> None:
        super().__init__(environment)
        actions = environment.action_space
        if actions != spaces.Discrete(data.num_actions):
            raise UserError(f"{environment}: its actions are {actions}; the data have {data.num_actions} actions")
        self.observation_space = observation_space(data, observation)
        self.action_space = spaces.Discrete(data.num_actions)
        self.like = data.starts("train", 1, 0)
        self.state = self.like
        """The last state in the form of the data: [1, *x_shape]."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: The seed of the environment.
            options: Its options.
        """
        observation, info = self.env.reset(seed=seed, options=options)
        return self._see(observation), info

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Act once.

        Args:
            action: The number of the action.
        """
        observation, reward, terminated, truncated, info = self.env.step(int(action))
        return self._see(observation), float(reward), terminated, truncated, info

    def _see(self, observation: Any) -> NDArray[Any]:
        self.state = to_state(observation, self.like)
        return observe(self.state, self.observation_space)[0]


def to_state(observation: Any, like: Tensor) -> Tensor:
    """Return an observation in the form of the data's states: [1, *x_shape].

    Args:
        observation: An array or a number; an image may be grey or have its channels last, and bytes for its values.
        like: States of the data, [n, *x_shape].

    Raises:
        UserError: if the observation has another shape.
    """
    array: NDArray[Any] = np.asarray(observation)
    shape = tuple(like.shape[1:])
    if len(shape) == 3 and array.dtype == np.uint8:
        array = array.astype(np.float32) / 255
    if len(shape) == 3 and channels_first(array).shape == shape:  # as in a recording
        array = channels_first(array)
    if array.shape != shape:
        raise UserError(f"the real world shows {array.shape}; the states of the data are {shape}")
    return torch.as_tensor(array).to(like.dtype)[None]


def make_real(
    data: Transitions,
    split: Split = "test",
    index: int = 0,
    observation: Observation = "planes",
    trusted: Sequence[str] = TRUSTED,
) -> RealWorld:
    """Make the real world of a dream.

    Args:
        data: The data, which name the environment.
        split: The split of the world.
        index: The number of the world in the split.
        observation: How cells are shown.
        trusted: The prefixes of the modules that the id of the environment may name, as `runs.trust.trust` returns.

    Raises:
        UserError: if the environment cannot be made, names a module that is not trusted, or is not that of the data.
    """
    name, arguments = data.environment(split, index)
    module = name.rpartition(":")[0]
    if module and not f"{module}.".startswith(tuple(trusted)):
        raise UserError(
            f"the environment {name} lies in the package {module}, which is not trusted; if it is yours, "
            f"add --trust {module.partition('.')[0]}"
        )
    if not module and not _is_registered(name):
        _register_own(name, trusted)
    return RealWorld(make(name, arguments), data, observation)


def _register_own(name: str, trusted: Sequence[str]) -> None:
    """Import the packages that the user trusts, which may register the environment; say so if none does."""
    packages = [prefix.rstrip(".") for prefix in trusted if prefix not in TRUSTED]
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # the package is foreign code
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"--trust {package}: cannot be imported ({reason})") from error
    if not _is_registered(name):
        tried = f"; {', '.join(packages)} registers none of this name" if packages else ""
        raise UserError(
            f"{name}: gymnasium has no such environment{hint(name, gymnasium.registry)}{tried}; if a package of yours "
            "registers it at its import, add --trust my_pkg"
        )


def _is_registered(name: str) -> bool:
    try:
        gymnasium.spec(name)
    except gymnasium.error.Error:
        return False
    return True
