"""The Dreaming VAE: a world model of one step, in which an agent can learn."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.nn import functional as F

from vae_lightning.distributions import (
    Bernoulli,
    Categorical,
    DiagonalNormal,
    Family,
    FamilyRecipe,
    PriorRecipe,
    StandardNormal,
)
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.batches import KnownFields, check_count
from vae_lightning.models.states import States
from vae_lightning.networks import MLP, LocalConv
from vae_lightning.noise import reseed
from vae_lightning.objectives.schedules import at_least
from vae_lightning.trace import Latent, Observed, Trace, draw
from vae_lightning.types import Batch, Network, NetworkRecipe, Shape, UserError

_REWARD = partial(DiagonalNormal, sigma=0.1)
_ACTION_GAIN = 3.0  # nats by which p(z|s, a) starts nearer to the value z = a than to others
_EXAMPLES = 100  # transitions of the first batch of a fit that `sample` starts from
_DREAM_STEPS, _DREAMS = 24, 8  # of the picture `dream`


@dataclass(frozen=True)
class Step:
    """One dreamt step of B states.

    Args:
        state: The next states in the form of the batch, [B, *x_shape].
        reward: float32 [B].
        done: Whether the episode has ended, bool [B].
    """

    state: Tensor
    reward: Tensor
    done: Tensor


class Dreaming(LatentVariableModel):
    """p(s', r, done|s, a) = p(r|s, a, s') p(done|s, a, s') sum or integral over z of p(s'|s, a, z) p(z|s, a).

    Use this model to learn how a world of discrete actions goes on, and to train an agent in its dream. Andersen,
    Goodwin & Granmo 2018, "The Dreaming Variational Autoencoder for Reinforcement Learning Environments"
    (https://arxiv.org/abs/1810.01112). A batch has `x` = s', `state` = s, `action`, `reward` and `done`. Most of s' is
    s, so the decoder starts from a copy of s (see `States`). z [K, B, D] holds what s and a do not determine: nothing
    in a world without chance, where a KL near 0 is right. With the posterior `Categorical` the values of z are
    enumerated and not sampled, so that no outcome is lost in training; give such a model a `prior_network`.

    States are cells [n, n] or other whole numbers (`vocabulary`), vectors [D], or images [C, H, W]. With convolutions
    (`LocalConv`) a trained model takes cells of any n.

    Args:
        x_shape: The shape of one state.
        num_actions: The number of actions; an action is a whole number from 0.
        vocabulary: The number of different cells, or other whole numbers, in a state; null for real numbers.
        latent_size: D for z of shape [K, B, D], or the number of values of a categorical z.
        encoder: Network from s', s and a to the parameters of q(z|s', s, a). null: LocalConv for cells and images,
            else MLP; so are the others.
        posterior: Family of q(z|s', s, a): DiagonalNormal, another that can be drawn from, or Categorical.
        decoder: Network from s, a and z to the parameters of p(s'|s, a, z), to which a copy of s is added.
        likelihood: Family of p(s'|s, a, z). null: Classes for whole numbers, else a Gaussian with one learned sigma.
        prior: p(z), the same for every s and a; not used if there is a prior_network.
        prior_network: Network from s and a to the parameters of p(z|s, a).
        action_in_decoder: Whether the decoder reads a. false: a acts through z alone, p(s'|s, z) p(z|s, a). Choose it
            for chance with few outcomes that several actions share, such as a slip: z is then the move that is made.
        outcome: Network from s', s and a to the parameters of reward and done.
        reward_likelihood: Family of p(r|s, a, s'). null: N(., 0.1^2).
        copy_gain: How many nats the copy path gives to "as before" where the parameters of s' are logits.
        kwargs: Arguments of `LatentVariableModel`.

    Raises:
        UserError: if a size or a shape does not fit.
    """

    on_unused_latent = (
        "This is right where s and a determine s', as in a maze without slip; if they do not, enumerate z "
        "(--model.posterior=Categorical --model.prior_network=... --model.objective=IWAE with one sample)"
    )
    measures = ("exact/unseen", "exact/all", "state_error/unseen", "state_error/all")
    example_state: Tensor
    example_action: Tensor

    def __init__(
        self,
        x_shape: Shape,
        num_actions: int,
        vocabulary: int | None = None,
        latent_size: int = 8,
        encoder: NetworkRecipe | None = None,
        posterior: FamilyRecipe = DiagonalNormal,
        decoder: NetworkRecipe | None = None,
        likelihood: FamilyRecipe | None = None,
        prior: PriorRecipe = StandardNormal,
        prior_network: NetworkRecipe | None = None,
        action_in_decoder: bool = True,
        outcome: NetworkRecipe | None = None,
        reward_likelihood: FamilyRecipe | None = None,
        copy_gain: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        at_least("Dreaming", 1, num_actions=num_actions, latent_size=latent_size)
        self.num_actions, self.latent_size = num_actions, latent_size
        self.states = States(x_shape, vocabulary, likelihood, copy_gain)
        self.posterior = posterior((latent_size,))
        self.enumerates = isinstance(self.posterior, Categorical) and not self.posterior.straight_through
        if self.enumerates:
            _check_one_group(self.posterior, latent_size)
        if not action_in_decoder and (prior_network is None or latent_size < num_actions):
            raise UserError(
                "Dreaming: action_in_decoder is false, so that a acts through p(z|s, a) alone; give a prior_network, "
                f"and a latent_size of at least {num_actions}, the number of actions"
            )
        self.action_in_decoder = action_in_decoder
        state, features = self.states.planes_shape[0], self.states.features_shape
        self.encoder = self._network(encoder, 2 * state, self.posterior.param_shape)
        self.decoder = self._network(decoder, state + latent_size, features, action_in_decoder)
        self.prior = None if prior_network is not None else prior((latent_size,))
        if prior_network is not None:
            self.prior_family = self.posterior if self.enumerates else DiagonalNormal((latent_size,))
            self.prior_network = self._network(prior_network, state, self.prior_family.param_shape)
        self.p_reward, self.p_done = (reward_likelihood or _REWARD)(()), Bernoulli(())
        self.outcome = self._network(outcome, 2 * state, (self.p_reward.param_shape[0] + 1,))
        self.register_buffer("example_state", torch.zeros(_EXAMPLES, *x_shape, dtype=self._state_dtype))
        self.register_buffer("example_action", torch.arange(_EXAMPLES) % num_actions)

    def _network(
        self, recipe: NetworkRecipe | None, channels: int, out_shape: Shape, with_action: bool = True
    ) -> Network:
        """Build a network that reads `channels` planes, or numbers, and the action."""
        in_shape = (channels + with_action * self.num_actions, *self.states.planes_shape[1:])
        return (recipe or (LocalConv if self.states.is_map else MLP))(in_shape, out_shape)

    @property
    def _state_dtype(self) -> torch.dtype:
        return torch.get_default_dtype() if self.states.vocabulary is None else torch.long

    # -- the generative model -------------------------------------------------------------------------------------

    def given(self, state: Tensor, action: Tensor) -> Tensor:
        """Return s and a as planes [B, C, H, W], the action the same at every place, or as vectors [B, C].

        Args:
            state: [B, *x_shape].
            action: int64 [B].
        """
        planes = self.states(state)
        return self._joined(planes, F.one_hot(action, self.num_actions).to(planes.dtype))

    def p_z(self, given: Tensor) -> Distribution:
        """p(z|s, a), or p(z): batch shape [B] or [].

        Args:
            given: s and a, as `given` returns them.
        """
        if self.prior is not None:
            return self.prior()
        features = self.prior_network(given)
        if not self.action_in_decoder and self.enumerates:  # z starts as a, so that each value has a part of its own
            features = features + _ACTION_GAIN * self._action_as_z(given)
        p: Distribution = self.prior_family(features)
        return p

    def _action_as_z(self, given: Tensor) -> Tensor:
        """The one-hot action among the values of z, [B, D]; the action stands last in s and a."""
        action = given.flatten(2)[:, -self.num_actions :, 0] if self.states.is_map else given[:, -self.num_actions :]
        return F.pad(action, (0, self.latent_size - self.num_actions))

    def p_next(self, z: Tensor, given: Tensor, state: Tensor) -> Distribution:
        """p(s'|s, a, z), with batch shape [K, B].

        Args:
            z: [K, B, D].
            given: s and a, as `given` returns them.
            state: s.
        """
        read = given if self.action_in_decoder else self.states(state)
        return self.states.p_next(self.decoder(self._joined(read.expand(len(z), *read.shape), z)), state)

    def p_outcome(self, following: Tensor, given: Tensor) -> tuple[Distribution, Distribution]:
        """p(r|s, a, s') and p(done|s, a, s'), with batch shape [B].

        Args:
            following: s', [B, *x_shape].
            given: s and a, as `given` returns them.
        """
        features = self.outcome(torch.cat((self.states(following), given), 1))
        return self.p_reward(features[:, :-1]), self.p_done(features[:, -1:])

    @torch.no_grad()
    def step(self, state: Tensor, action: Tensor, generator: torch.Generator | None = None) -> Step:
        """Dream one step: z ~ p(z|s, a), then the mode of each cell, or the mean, and the reward and the end of that.

        Args:
            state: [B, *x_shape]; cells may have another height and width than in training.
            action: int64 [B].
            generator: Where the chance of z comes from; None for torch's own generator.

        Raises:
            UserError: if an action is out of range.
        """
        check_actions(action, self.num_actions)
        training = self.training
        if training:
            self.eval()
        given = self.given(state, action)
        z = _drawn(self.p_z(given), len(state), given.device, generator)  # [B, D]
        following = self.states.point(self.p_next(z[None], given, state))[0]
        reward, done = self.p_outcome(following, given)
        if training:  # a walk over all modules takes a seventh of the step
            self.train()
        return Step(following, reward.mean, done.mean > 0.5)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Return dreamt next states of transitions that the fit began with, each with a new z: [n, *x_shape]."""
        check_count("Dreaming", n)
        rows = torch.arange(n, device=self.example_action.device) % len(self.example_action)
        return self.step(self.example_state[rows], self.example_action[rows]).state

    # -- inference ------------------------------------------------------------------------------------------------

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x, state = batch["x"], batch["state"]
        given = self.given(state, batch["action"])
        q_z, p_z = self.posterior(self.encoder(torch.cat((self.states(x), given), 1))), self.p_z(given)
        reward, done = self.p_outcome(x, given)
        observed = {"reward": Observed(batch["reward"], reward), "done": Observed(batch["done"], done)}
        found = {} if self.training else self._found(state, batch["action"])
        if not self.enumerates:
            z = draw(q_z, num_samples)  # [K, B, D]
            return Trace(x, self.p_next(z, given, state), {"z": Latent(z, q_z, p_z)}, observed=observed, found=found)
        values = torch.eye(self.latent_size, dtype=given.dtype, device=x.device)  # one-hot, [C, D]
        z = values.repeat(num_samples, 1)[:, None].expand(-1, len(x), -1)  # [K, B, D], row s C + c
        shares = q_z.log_prob(z) - math.log(num_samples)
        latents = {"z": Latent(z, q_z, p_z, enumerated=True)}
        p_x = self.p_next(z, given, state)
        costs = {"posterior": _cross_entropy(x, p_x, p_z, q_z, values)}
        return Trace(x, p_x, latents, shares, self.latent_size, observed=observed, costs=costs, found=found)

    def _found(self, state: Tensor, action: Tensor) -> dict[str, Tensor]:
        """Return what the model dreams of s and a, without a look at s'."""
        dreamt = self.step(state, action)
        return {"dreamt_state": dreamt.state, "dreamt_reward": dreamt.reward, "dreamt_done": dreamt.done}

    def _joined(self, planes: Tensor, values: Tensor) -> Tensor:
        """Return planes [..., C, H, W] and values [..., D], the same at every place, or [..., C] and [..., D]."""
        if not self.states.is_map:
            return torch.cat((planes, values), -1)
        return torch.cat((planes, values[..., None, None].expand(*values.shape, *planes.shape[-2:])), -3)

    # -- data, pictures -------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        for split in {"fit": ("train", "val"), "validate": ("val",), "test": ("test",)}.get(stage, ()):
            fields = getattr(data.examples(split), "fields", {}) if hasattr(data, "examples") else {}
            if "action" in fields:
                check_actions(fields["action"], self.num_actions, f"the {split} transitions")
            if split == "train" and self.states.is_vector and {"x", "state"} <= fields.keys():
                self.states.measure(fields["state"], fields["x"])

    def on_train_batch_start(self, batch: Batch | list[Batch], batch_idx: int) -> None:
        if self.global_step == 0:
            first = KnownFields("Dreaming", batch[0] if isinstance(batch, list) else batch)
            rows = torch.arange(_EXAMPLES) % len(first["x"])
            self.example_state, self.example_action = first["state"][rows], first["action"][rows]

    def adapt_to(self, state: Mapping[str, Tensor]) -> None:
        saved = state.get("example_state")
        if isinstance(saved, Tensor) and self.states.is_map:  # the examples of a fit on mazes of another size
            self.example_state = self.example_state.new_zeros(saved.shape)

    def panes(self, trace: Trace) -> Mapping[str, Tensor | list[str]]:
        """Return in words what is dreamt of the reward and of the end, beside the truth."""
        reward, done = trace.observed["reward"], trace.observed["done"]
        pairs = zip(
            reward.p.mean.tolist(), reward.value.tolist(), done.p.mean.tolist(), done.value.tolist(), strict=True
        )
        return {"outcome": [f"reward {r:.2f} ({rt:.2f}), ends {d:.3f} ({dt:.0f})" for r, rt, d, dt in pairs]}

    def scenes(self, data: object) -> Mapping[str, Tensor | list[str]]:
        """Return dreams under random actions that start from states of the validation data: clips, or texts."""
        if not (hasattr(data, "starts") and hasattr(data, "show")):
            return {}
        generator = torch.Generator().manual_seed(0)
        state = data.starts("val", _DREAMS, 0).to(self.device)
        frames, ended = [state], torch.zeros(len(state), dtype=torch.bool, device=self.device)
        for _ in range(_DREAM_STEPS):
            action = torch.randint(self.num_actions, (len(state),), generator=generator).to(self.device)
            dreamt = self.step(state, action, generator)
            state = torch.where(ended.view(-1, *[1] * (state.dim() - 1)), state, dreamt.state)
            ended = ended | dreamt.done
            frames.append(state)
        shown = [data.show(frame.cpu()) for frame in frames]
        if all(isinstance(one, Tensor) and one.dim() == 4 for one in shown):
            return {"dream": torch.stack(shown, 1)}
        if all(isinstance(one, list) for one in shown):
            return {"dream": [" -> ".join(texts) for texts in zip(*shown, strict=True)]}
        return {}


def _check_one_group(posterior: Family, latent_size: int) -> None:
    size = getattr(posterior, "group_size", latent_size)
    if size != latent_size:
        raise UserError(
            f"Dreaming: a categorical z is one group of latent_size={latent_size} values, which are enumerated, not "
            f"groups of {size}; leave group_size out"
        )


def check_actions(action: Tensor, num_actions: int, where: str = "Dreaming") -> None:
    """Raise unless every action is a whole number from 0 to num_actions - 1.

    Args:
        action: [N].
        num_actions: The number of actions.
        where: Whose actions they are, for the message.
    """
    if action.is_floating_point() or action.dim() != 1:
        kind = str(action.dtype).removeprefix("torch.")
        raise UserError(f"{where}: action is {kind} {list(action.shape)}; it must be whole numbers [N]")
    if len(action) and not 0 <= int(action.min()) <= int(action.max()) < num_actions:
        outside = action[(action < 0) | (action >= num_actions)][0].item()
        raise UserError(
            f"{where}: an action is {outside}; it must be from 0 to {num_actions - 1}, {num_actions} actions"
        )


def _cross_entropy(x: Tensor, p_x: Distribution, p_z: Distribution, q_z: Distribution, values: Tensor) -> Tensor:
    """-sum_c p(c|s', s, a) log q(c|s', s, a), [B]: it trains q alone, towards the posterior of the C values.

    The exact likelihood (`IWAE` with one sample) does not depend on q, so that nothing else would train q.
    """
    c = values[:, None]  # [C, 1, D]
    with torch.no_grad():
        posterior = (p_x.log_prob(x)[: len(values)] + p_z.log_prob(c)).softmax(0)  # [C, B]
    return -(posterior * q_z.log_prob(c)).sum(0)


def _drawn(p: Distribution, n: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Return z ~ p for n examples, [n, D], from the generator."""
    shape = torch.Size(() if p.batch_shape else (n,))
    if generator is None:
        return p.sample(shape)
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        reseed(device, seed)
        return p.sample(shape)
