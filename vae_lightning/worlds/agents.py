"""Agents of stable-baselines3: trained in a dream or in the real world, tested greedily in the real world."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from vae_lightning.types import UserError

Kind: TypeAlias = Literal["ppo", "dqn"]
Policy: TypeAlias = Callable[[NDArray[Any]], int]
Curve: TypeAlias = Sequence[tuple[int, float]]

_SMALLEST_CNN = 36  # pixels; the network of the CnnPolicy takes no smaller image


def _falling_rate(left: float) -> float:
    """PPO's learning rate where a share of the steps is left: with a constant one, an agent gets lost now and then."""
    return 7e-4 * left


NUM_ENVIRONMENTS = 32
"""How many dreams or real environments an agent acts in at once while it learns."""
_SETTINGS: Mapping[Kind, dict[str, Any]] = {
    "ppo": {
        "learning_rate": _falling_rate,
        "gamma": 0.98,
        "n_steps": 32,  # of each environment: 1,024 transitions between two updates
        "batch_size": 256,
        "n_epochs": 6,
        "ent_coef": 0.02,
        # until the goal was found once, advantages are noise; normalised noise would end the exploration before that
        "normalize_advantage": False,
    },
    "dqn": {
        "learning_rate": 1e-3,
        "gamma": 0.98,
        "buffer_size": 50_000,
        "learning_starts": 1_000,
        "train_freq": 1,  # of all environments
        "gradient_steps": 8,
        "target_update_interval": 96,  # transitions
        "exploration_fraction": 0.5,
        "exploration_final_eps": 0.05,
    },
}


@dataclass(frozen=True)
class Score:
    """What a policy reached in the real world.

    Args:
        returns: The sum of the rewards of each episode.
        steps: The number of steps of each episode.
        ratios: Steps / fewest possible steps, of each episode that reached its goal; None if the world has no goal, as
            its `info` does not say the fewest possible steps, `optimal`.
    """

    returns: list[float]
    steps: list[int]
    ratios: list[float] | None

    @property
    def mean_return(self) -> float:
        return statistics.fmean(self.returns)

    @property
    def success(self) -> float | None:
        """The share of the episodes that reached the goal; None if the world has no goal."""
        return None if self.ratios is None else len(self.ratios) / len(self.returns)

    @property
    def ratio(self) -> float | None:
        """The mean of steps / optimal over the episodes that reached the goal; None if none did."""
        return statistics.fmean(self.ratios) if self.ratios else None


def play(environment: gymnasium.Env[Any, Any], policy: Policy, episodes: int, seed: int) -> Score:
    """Play whole episodes in an environment.

    Args:
        environment: The environment; its `info` may say `optimal` after a reset.
        policy: A function from an observation to the number of an action.
        episodes: The number of episodes.
        seed: The seed of the first episode; each further one has the next number.
    """
    returns, steps, ratios, has_goal = [], [], [], False
    for episode in range(episodes):
        seen, info = environment.reset(seed=seed + episode)
        optimal, total, count, terminated, truncated = info.get("optimal"), 0.0, 0, False, False
        has_goal = has_goal or optimal is not None
        while not (terminated or truncated):
            seen, reward, terminated, truncated, _ = environment.step(policy(seen))
            total, count = total + float(reward), count + 1
        returns.append(total)
        steps.append(count)
        if optimal is not None and terminated:
            ratios.append(count / optimal)
    return Score(returns, steps, ratios if has_goal else None)


def greedy(agent: BaseAlgorithm) -> Policy:
    """Return the policy that takes the action which the agent holds for best.

    Args:
        agent: The agent.
    """
    return lambda seen: int(agent.predict(seen, deterministic=True)[0])


def uniform(num_actions: int, seed: int) -> Policy:
    """Return the policy that draws each action with the same probability.

    Args:
        num_actions: The number of actions.
        seed: The seed of the draws.
    """
    random = np.random.default_rng(seed)
    return lambda _: int(random.integers(num_actions))


def real_environments(make: Callable[[], gymnasium.Env[Any, Any]]) -> VecEnv:
    """Return as many real environments as an agent is given dreams.

    Args:
        make: A function that makes one environment.
    """
    return DummyVecEnv([make] * NUM_ENVIRONMENTS)


def train(
    kind: Kind, environments: VecEnv, steps: int, seed: int, test: Callable[[Policy], float], points: int = 10
) -> tuple[BaseAlgorithm, Curve]:
    """Train an agent; return it and its learning curve: a test after each of a number of equal parts of the steps.

    Args:
        kind: `ppo`, or `dqn`, which takes more time a step.
        environments: Dreams, or real environments.
        steps: The number of steps of all environments together. PPO rounds it up to whole roll-outs.
        seed: The seed of the agent's weights and actions, and of the environments.
        test: A function of the greedy policy, which returns a point of the curve.
        points: The number of points of the curve.

    Raises:
        UserError: if the number of steps is below 1.
    """
    if steps < 1:
        raise UserError(f"an agent cannot learn in {steps} steps; give at least 1")
    policy, policy_settings = _policy(environments.observation_space)
    algorithm: type[PPO] | type[DQN] = PPO if kind == "ppo" else DQN
    settings = {**_SETTINGS[kind], **policy_settings, "seed": seed, "device": "cpu"}
    agent = algorithm(policy, environments, **settings)
    # without a logger, stable-baselines3 leaves an empty folder SB3-<date> in the system's folder of temporary files
    agent.set_logger(Logger(folder=None, output_formats=[]))
    watch = _Watch(test, max(1, steps // points))
    agent.learn(steps, callback=watch)
    watch.look()
    return agent, watch.curve


def _policy(space: spaces.Space[Any]) -> tuple[str, dict[str, Any]]:
    """Convolutions for images that are large enough, else two layers of 64 on what is seen, made flat."""
    shape = space.shape or ()
    if len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) >= _SMALLEST_CNN:
        return "CnnPolicy", {"policy_kwargs": {"normalize_images": False}}
    return "MlpPolicy", {}


class _Watch(BaseCallback):
    """Test the agent before its first step, then each time that another `every` steps are over."""

    def __init__(self, test: Callable[[Policy], float], every: int) -> None:
        super().__init__()
        self.test, self.every = test, every
        self.curve: list[tuple[int, float]] = []

    def _on_rollout_start(self) -> None:  # after an update, where the policy is new
        if not self.curve or self.num_timesteps >= self.curve[-1][0] + self.every:
            self.look()

    def _on_step(self) -> bool:
        return True

    def look(self) -> None:
        """Add a point to the curve, unless there is one at this step."""
        if not self.curve or self.curve[-1][0] < self.model.num_timesteps:
            self.curve.append((self.model.num_timesteps, self.test(greedy(self.model))))
