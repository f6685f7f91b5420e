"""A world model of one step, p(s', reward, done|s, action), over transitions of a ball that gusts push about."""

import math
from typing import Any

import torch
from torch import Tensor

from vae_lightning.data import DataModule, Examples, Split
from vae_lightning.distributions import Bernoulli, DiagonalNormal, StandardNormal
from vae_lightning.models import LatentVariableModel
from vae_lightning.networks import MLP
from vae_lightning.trace import Latent, Observed, Trace
from vae_lightning.types import Batch, Shape


class GustyBall(DataModule):
    """State (position, velocity), and a force. Beyond position 1 all is done; a fifth of the rewards is not seen."""

    x_shape, action_shape = (2,), ()

    def load(self, split: Split) -> Examples:
        size, random = 2000 if split == "train" else 200, torch.Generator().manual_seed(len(split))
        state, gust = 2 * torch.rand(size, 2, generator=random) - 1, torch.randn(size, generator=random).sign()
        action = 2 * torch.rand(size, generator=random) - 1
        velocity = 0.9 * state[:, 1] + 0.3 * action + 0.2 * gust
        x = torch.stack((state[:, 0] + 0.5 * velocity, velocity), 1)
        done, seen = (x[:, 0].abs() > 1).float(), torch.rand(size, generator=random) < 0.8
        fields = {"x": x, "state": state, "action": action, "reward": 1 - x[:, 0].abs(), "done": done, "seen": seen}
        return Examples(fields, group=done.bool() if split == "train" else None, group_share=0.25)

    def show(self, x: Tensor) -> list[str]:
        return [f"position {position:.2f}, velocity {velocity:.2f}" for position, velocity in x.tolist()]


class Transitions(LatentVariableModel):
    """p(x|s, a, z) p(reward|s, a, z) p(done|s, a, z) p(z), with q(z|x, s, a); x is the next state."""

    def __init__(self, x_shape: Shape, action_shape: Shape, latent_size: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        (state,), self.size = x_shape, x_shape[0] + math.prod(action_shape)
        self.posterior, self.prior = DiagonalNormal((latent_size,)), StandardNormal((latent_size,))
        self.p_done, self.p_x = Bernoulli(()), DiagonalNormal((state,), 0.1, learn_sigma=True)
        self.p_reward = DiagonalNormal((), 0.1, learn_sigma=True)
        self.encoder = MLP((state + self.size,), self.posterior.param_shape, (64,))
        self.decoder = MLP((latent_size + self.size,), (state + 2,), (64,))

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x, given = batch["x"], torch.cat((batch["state"], batch["action"].view(len(batch["x"]), -1)), 1)
        z = (q_z := self.posterior(self.encoder(torch.cat((x, given), 1)))).rsample((num_samples,))
        features = self.decoder(torch.cat((z, given.expand(num_samples, -1, -1)), -1))  # [K, B, size of x + 2]
        observed = {
            "reward": Observed(batch["reward"], self.p_reward(features[..., -2:-1]), batch["seen"]),
            "done": Observed(batch["done"], self.p_done(features[..., -1:])),
        }
        return Trace(x, self.p_x(features[..., :-2]), {"z": Latent(z, q_z, self.prior())}, observed=observed)

    def sample(self, n: int) -> Tensor:
        z = self.prior().sample((n,))  # of a ball that rests in the middle, without a force
        return self.p_x(self.decoder(torch.cat((z, z.new_zeros(n, self.size)), 1))[:, :-2]).mean
