"""Dreams: environments whose steps a world model predicts, so that an agent learns without the real world.

    s_0 is a first state of the data        (s_{t+1}, r_t, done_t) = model.step(s_t, a_t)

`Dreams` is the process itself, k dreams in one forward pass of the model. `DreamEnv` shows one of them to gymnasium,
`DreamVecEnv` shows k to stable-baselines3. A dream ends in one of three ways:

- terminated: the model says that the episode is done;
- truncated at the cap: the longest episode of the data;
- terminated at an invalid state, such as a maze with two players. The agent is shown the last valid state again and
  earns `worst_return`, min(0, smallest reward of the training data) / (1 - discount): no return of the real world is
  lower. An agent that earned more, or that were given the value of the last valid state, would learn to cause errors.

Nothing here imports a real environment. The first state is the one thing that a dream takes from the real world.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn
from torch.nn import functional as F

from vae_lightning.data.module import Split
from vae_lightning.data.transitions import Transitions
from vae_lightning.types import UserError

Observation: TypeAlias = Literal["planes", "cells"]

DISCOUNT = 0.99
"""The discount that an invalid state is paid by, if none is given; no agent of `worlds.agents` has a larger one."""


class DreamtStep(Protocol):
    """One dreamt step of k dreams: `state` [k, *x_shape], `reward` float [k], `done` bool [k]."""

    @property
    def state(self) -> Tensor: ...

    @property
    def reward(self) -> Tensor: ...

    @property
    def done(self) -> Tensor: ...


class WorldModel(Protocol):
    """What a dream needs of a model; `models.Dreaming` has it, and a class of your own may."""

    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None = None) -> DreamtStep:
        """Draw what follows each state [k, *x_shape] under each action int64 [k]."""


@dataclass(frozen=True)
class Moment:
    """What k agents are told after a step.

    Args:
        state: The states [k, *x_shape] that the step led to, before any dream begins anew.
        reward: float32 [k].
        terminated: bool [k]; the model said that the episode is done, or the dreamt state is no state. Nothing follows.
        truncated: bool [k]; the episode was cut at the cap.
        invalid: bool [k]; the dreamt state is no state.
    """

    state: Tensor
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    invalid: Tensor


class Dreams:
    """k dreams of one world that step together. A dream that has ended stays where it is until `begin`.

    Args:
        model: The world model, which is put in evaluation mode.
        data: The data that the model was trained on.
        num_dreams: The number k of dreams.
        split: The split of the world. Dreams of recorded data, a single world, begin at first states of `train`.
        index: The number of the world in the split, such as the maze; all k dreams are of this world.
        seed: The seed of the first states and of the model's noise.
        cap: The number of steps after which a dream is cut; None for the longest episode of the data.
        discount: The factor of a reward one step later, below 1: at least that of the agent.

    Raises:
        UserError: if the number of dreams, the index, the cap or the discount is out of range.
    """

    def __init__(
        self,
        model: WorldModel,
        data: Transitions,
        num_dreams: int = 1,
        split: Split = "test",
        index: int = 0,
        seed: int = 0,
        cap: int | None = None,
        discount: float = DISCOUNT,
    ) -> None:
        for name, value, least in (("num_dreams", num_dreams, 1), ("index", index, 0), ("cap", cap, 1)):
            if value is not None and value < least:
                raise UserError(f"{type(self).__name__}: {name} is {value}; it must be at least {least}")
        if not 0 <= discount < 1:
            raise UserError(f"{type(self).__name__}: discount is {discount}; it must be in [0, 1)")
        self.model, self.data, self.split, self.index = model, data, split, index
        self.cap = data.cap if cap is None else cap
        self.device = torch.device("cpu")
        if isinstance(model, nn.Module):
            model.eval()
            self.device = next((parameter.device for parameter in model.parameters()), self.device)
        self.worst_return = min(0.0, data.least_reward) / (1 - discount)
        """What an invalid state earns: no return of the world is lower, whatever follows and wherever it is cut."""
        self.num_steps = 0
        """The number of dreamt steps since the dreams were made."""
        self.num_invalid = 0
        """How many of these led to an invalid state."""
        self.generator = torch.Generator(self.device)
        self.first = None if is_one_world(data) else data.start(split, index)
        self.age = torch.zeros(num_dreams, dtype=torch.int64)  # steps since the first state
        self.state = self._first_states(num_dreams, seed)
        self.restart(seed)

    def restart(self, seed: int | None = None) -> None:
        """Begin all dreams anew.

        Args:
            seed: The seed of the first states and of the noise from here on; None to go on with the noise.
        """
        if seed is not None:
            self.generator.manual_seed(seed)
        self.begin(torch.ones(len(self.age), dtype=torch.bool))

    def begin(self, rows: Tensor) -> None:
        """Put the chosen dreams at first states.

        Args:
            rows: bool [k].
        """
        count = int(rows.sum())
        if count:
            seed = int(torch.randint(2**31, (), generator=self.generator, device=self.device))
            self.state[rows.to(self.device)] = self._first_states(count, seed)
            self.age[rows] = 0

    def _first_states(self, n: int, seed: int) -> Tensor:
        """The corner of the maze, n times; or n first states of recorded episodes, which are all of one world."""
        if self.first is None:
            return self.data.starts("train", n, seed).to(self.device)  # val and test stay unseen
        return self.first.repeat(n, *[1] * self.first.dim()).to(self.device)

    @torch.no_grad()
    def step(self, actions: NDArray[np.integer[Any]]) -> Moment:
        """Step every dream by the model.

        Args:
            actions: The numbers [k] of the actions.

        Raises:
            UserError: if an action is out of range.
        """
        action = torch.as_tensor(np.asarray(actions), dtype=torch.int64, device=self.device).reshape(len(self.age))
        if bool(((action < 0) | (action >= self.data.num_actions)).any()):
            raise UserError(f"a dream was given action {action.tolist()}; actions are 0 to {self.data.num_actions - 1}")
        dreamt = self.model.step(self.state, action, self.generator)
        valid = self.data.is_valid(dreamt.state)
        self.age += 1
        terminated = dreamt.done | ~valid
        truncated = ~terminated & (self.age >= self.cap).to(self.device)
        self.state = torch.where(valid.reshape(-1, *[1] * (self.state.dim() - 1)), dreamt.state, self.state)
        reward = torch.where(valid, dreamt.reward.float(), self.worst_return)
        self.num_steps += len(valid)
        self.num_invalid += int((~valid).sum())
        return Moment(self.state.clone(), reward.cpu(), terminated.cpu(), truncated.cpu(), ~valid.cpu())


def is_one_world(data: Transitions) -> bool:
    """Whether all splits are episodes of a single world, such as recorded ones, and not different worlds.

    Args:
        data: The data.
    """
    return data.environment("train", 0) == data.environment("test", 0)


def observation_space(data: Transitions, observation: Observation = "planes") -> spaces.Space[Any]:
    """Return the space of the observations that an agent gets of the data's states; `observe` makes them.

    Args:
        data: The data.
        observation: How cells are shown.
    """
    first = data.starts("train", 1, 0)
    shape = tuple(first.shape[1:])
    if first.is_floating_point():
        low, high = (0.0, 1.0) if len(shape) == 3 else (-np.inf, np.inf)
        return spaces.Box(low, high, shape, np.float32)
    kinds = data.vocabulary
    if not shape:
        return spaces.Discrete(kinds)
    if observation == "planes":
        return spaces.Box(0.0, 1.0, (kinds, *shape), np.float32)
    return spaces.Box(0, kinds - 1, shape, np.uint8)


def observe(state: Tensor, space: spaces.Space[Any]) -> NDArray[Any]:
    """Return what agents see of states [k, *x_shape]: [k, *space.shape], of the space's type.

    Cells are shown as one plane a class (`planes`, what a network learns from) or as the classes themselves (`cells`);
    vectors, images and discrete states as they are.

    Args:
        state: The states, in the data's form.
        space: What `observation_space` returned.
    """
    shape = space.shape or ()
    if len(shape) == state.dim():  # one axis more than a state has
        state = F.one_hot(state, shape[0]).movedim(-1, 1)
    return state.cpu().numpy().astype(space.dtype)


class DreamEnv(gymnasium.Env[NDArray[Any], np.integer[Any]]):
    """One dream as an environment of gymnasium, for any library of agents.

    `info` says `invalid`: whether the step led to a state that is none, which ended the episode.

    Args:
        model: The world model.
        data: The data that the model was trained on.
        observation: How cells are shown: `planes` (one-hot) or `cells`. Other states are shown as they are.
        split: The split of the world. Dreams of recorded data, a single world, begin at first states of `train`.
        index: The number of the world in the split, such as the maze.
        seed: The seed until `reset(seed=...)` names another.
        cap: The number of steps after which a dream is cut; None for the longest episode of the data.
        discount: The factor of a reward one step later, below 1: at least that of the agent.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium declares it as an attribute

    def __init__(
        self,
        model: WorldModel,
        data: Transitions,
        observation: Observation = "planes",
        split: Split = "test",
        index: int = 0,
        seed: int = 0,
        cap: int | None = None,
        discount: float = DISCOUNT,
    ) -> None:
        self.dreams = Dreams(model, data, 1, split, index, seed, cap, discount)
        self.observation_space = observation_space(data, observation)
        self.action_space = spaces.Discrete(data.num_actions)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Begin a new dream.

        Args:
            seed: The seed of the first state and of the noise from here on; None to go on with the noise.
            options: Unused.
        """
        super().reset(seed=seed)
        self.dreams.restart(seed)
        return self._see(self.dreams.state), {}

    def step(self, action: np.integer[Any]) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Dream one step.

        Args:
            action: The number of the action.
        """
        moment = self.dreams.step(np.asarray([action]))
        info = {"invalid": bool(moment.invalid)}
        return self._see(moment.state), float(moment.reward), bool(moment.terminated), bool(moment.truncated), info

    def _see(self, state: Tensor) -> NDArray[Any]:
        return observe(state, self.observation_space)[0]


class DreamVecEnv(VecEnv):
    """k dreams of one world for stable-baselines3, in one forward pass of the model a step.

    As its own environments do, a dream that ends begins anew at once; `info` then has the last state's
    `terminal_observation`, and `TimeLimit.truncated` where the episode was cut and not done, whose value an agent
    estimates instead of taking it for 0. `info` says `invalid`, as `DreamEnv`'s.

    Args:
        model: The world model.
        data: The data that the model was trained on.
        num_dreams: The number k of dreams.
        observation: How cells are shown: `planes` (one-hot) or `cells`. Other states are shown as they are.
        split: The split of the world. Dreams of recorded data, a single world, begin at first states of `train`.
        index: The number of the world in the split, such as the maze; all k dreams are of this world.
        seed: The seed until `seed` names another.
        cap: The number of steps after which a dream is cut; None for the longest episode of the data.
        discount: The factor of a reward one step later, below 1: at least that of the agent.
    """

    def __init__(
        self,
        model: WorldModel,
        data: Transitions,
        num_dreams: int = 8,
        observation: Observation = "planes",
        split: Split = "test",
        index: int = 0,
        seed: int = 0,
        cap: int | None = None,
        discount: float = DISCOUNT,
    ) -> None:
        self.render_mode: str | None = None
        self.dreams = Dreams(model, data, num_dreams, split, index, seed, cap, discount)
        super().__init__(num_dreams, observation_space(data, observation), spaces.Discrete(data.num_actions))

    def reset(self) -> NDArray[Any]:
        """Begin all dreams anew; return what is seen [k, ...]."""
        self.dreams.restart(self._seeds[0])
        self._reset_seeds()
        return observe(self.dreams.state, self.observation_space)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Take the actions of the next `step_wait`.

        Args:
            actions: Their numbers [k].
        """
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], list[dict[str, Any]]]:
        """Dream one step: what is seen [k, ...], rewards [k], which episodes ended [k], and the infos."""
        moment = self.dreams.step(self._actions)
        ended, cut = moment.terminated | moment.truncated, moment.truncated.tolist()
        infos: list[dict[str, Any]] = [
            {"TimeLimit.truncated": cut[i], "invalid": invalid} for i, invalid in enumerate(moment.invalid.tolist())
        ]
        if ended.any():
            last = observe(moment.state, self.observation_space)
            for i in ended.nonzero().flatten().tolist():
                infos[i]["terminal_observation"] = last[i]
            self.dreams.begin(ended)
        return observe(self.dreams.state, self.observation_space), moment.reward.numpy(), ended.numpy(), infos

    def close(self) -> None:
        """There is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute once for each chosen dream, which share it.

        Args:
            attr_name: Its name.
            indices: The chosen dreams; None for all.
        """
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute, which all dreams share.

        Args:
            attr_name: Its name.
            value: Its value.
            indices: Unused.
        """
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Refuse: k dreams are one process, and none has methods of its own.

        Args:
            method_name: The name of the method.
            method_args: Unused.
            indices: Unused.
            method_kwargs: Unused.

        Raises:
            AttributeError: always.
        """
        raise AttributeError(f"a dream of {type(self).__name__} has no method {method_name} of its own")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Whether each chosen dream is wrapped: none is.

        Args:
            wrapper_class: Unused.
            indices: The chosen dreams; None for all.
        """
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[NDArray[Any] | None]:
        """Return a picture of each dream: none."""
        return [None] * self.num_envs
