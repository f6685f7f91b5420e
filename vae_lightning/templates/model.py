"""The model. `trace` is all of it: change it, and the objectives, metrics, pictures and commands follow."""

from __future__ import annotations

from typing import Any

import torch

from vae_lightning.models import VAE
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch, Shape, UserError


class MyVAE(VAE):
    """p(x, z) = p(x|z) p(z), with a q(z|x + noise) that sees a noisy image while it is trained.

    The slots are those of `VAE`: encoder, posterior, decoder, likelihood, prior, objective.

    Args:
        image_shape: (C, H, W); the data set says it.
        noise: Standard deviation of the noise on the encoder's input in training; 0 gives the plain VAE.
        kwargs: Arguments of `VAE`.

    Raises:
        UserError: if the noise is negative.
    """

    def __init__(self, image_shape: Shape, noise: float = 0.1, **kwargs: Any) -> None:
        if noise < 0:
            raise UserError(f"MyVAE: noise is {noise}; it must be at least 0")
        super().__init__(image_shape, **kwargs)
        self.noise = noise

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        """Return the distributions at `batch["x"]`.

        Args:
            batch: `x` [B, C, H, W], and what else the data set has.
            num_samples: K, the number of samples of z for each image.
            step: The optimizer step; None in evaluation, where there is no noise.
        """
        x = batch["x"]  # [B, C, H, W]
        seen = x if step is None else x + self.noise * torch.randn_like(x)
        q_z = self.q_z(seen)  # batch [B], event [D]
        z = draw(q_z, num_samples)  # [K, B, D], with its gradient
        p_x = self.likelihood(self.decoder(z))  # batch [K, B], event [C, H, W]
        return Trace(x, p_x, {"z": Latent(z, q_z, self.prior())})
