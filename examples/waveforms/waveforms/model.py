"""A VAE of signals, written from the base class: its networks, its distributions, and three methods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch, Shape


class WaveVAE(LatentVariableModel):
    """z ~ N(0, I), x | z ~ N(decoder(z), sigma^2 I) with one learned sigma: for signals of one channel.

    Args:
        x_shape: (T,), the number of steps; the data set says it.
        latent_size: D.
        channels: Channels of the encoder's convolutions.
        kwargs: Arguments of `LatentVariableModel`: objective, optimizer, scheduler.
    """

    def __init__(self, x_shape: Shape, latent_size: int = 4, channels: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        (steps,) = x_shape
        self.latent_size = latent_size
        self.encoder = nn.Sequential(
            nn.Unflatten(-1, (1, steps)),
            *(nn.Conv1d(1, channels, 5, stride=2, padding=2), nn.SiLU()),
            *(nn.Conv1d(channels, 2 * channels, 5, stride=2, padding=2), nn.SiLU()),
            *(nn.Flatten(-2), nn.LazyLinear(128), nn.SiLU(), nn.Linear(128, 2 * latent_size)),
        )
        self.encoder(torch.zeros(1, steps))  # the lazy layer learns its size
        self.decoder = nn.Sequential(
            nn.Linear(latent_size, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, steps)
        )
        self.raw_sigma = nn.Parameter(torch.zeros(()))

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        """Return the distributions at `batch["x"]` [B, T].

        Args:
            batch: The batch.
            num_samples: K, the number of samples of z for each signal.
            step: The optimizer step; nothing here depends on it.
        """
        mu, raw_scale = self.encoder(batch["x"]).chunk(2, -1)  # [B, D] each
        q_z = Independent(Normal(mu, F.softplus(raw_scale) + 1e-3), 1)
        z = draw(q_z, num_samples)  # [K, B, D]
        return Trace(batch["x"], self.decode({"z": z}), {"z": Latent(z, q_z, self.prior())})

    def prior(self) -> Distribution:
        """Return p(z) = N(0, I): batch [], event [D]."""
        zeros = torch.zeros(self.latent_size, device=self.device)
        return Independent(Normal(zeros, 1.0), 1)

    def decode(self, latents: Mapping[str, Tensor]) -> Distribution:
        """Return p(x|z).

        Args:
            latents: `z` [..., D].
        """
        sigma = F.softplus(self.raw_sigma) + 1e-3
        return Independent(Normal(self.decoder(latents["z"]), sigma), 1)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        """Return the means of p(x|z) for n draws of z from the prior: [n, T].

        Args:
            n: The number of signals.
        """
        return self.decode({"z": self.prior().sample((n,))}).mean
