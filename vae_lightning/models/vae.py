"""The variational autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lightning.distributions import (
    Bernoulli,
    DiagonalNormal,
    FamilyRecipe,
    PriorRecipe,
    StandardNormal,
)
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.batches import check_count, named_latents
from vae_lightning.models.looking import as_batch
from vae_lightning.networks import MLP
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch, NetworkRecipe, Shape, UserError


class VAE(LatentVariableModel):
    """p(x, z) = p(x|z) p(z), with q(z|x) beside it (Kingma & Welling 2014, https://arxiv.org/abs/1312.6114).

    Use this model for images with one latent variable z, with or without labels. Six slots are recipes (a class, or a
    `functools.partial` of one): encoder, posterior, decoder, likelihood, prior, objective. The model computes the sizes
    that two slots share.

    Args:
        image_shape: (C, H, W) of an image; x is [B, C, H, W].
        latent_size: D for z of shape [K, B, D], or (c, h, w) for feature maps [K, B, c, h, w].
        encoder: Network from x to the parameters of q(z|x).
        posterior: Family of q(z|x).
        decoder: Network from z to the parameters of p(x|z).
        likelihood: Family of p(x|z); choose one that gives a probability to the data's pixel values.
        prior: p(z).
        kwargs: Arguments of `LatentVariableModel`.
    """

    def __init__(
        self,
        image_shape: Shape,
        latent_size: int | Shape = 32,
        encoder: NetworkRecipe = MLP,
        posterior: FamilyRecipe = DiagonalNormal,
        decoder: NetworkRecipe = MLP,
        likelihood: FamilyRecipe = Bernoulli,
        prior: PriorRecipe = StandardNormal,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        image_shape, latent_shape = tuple(image_shape), _latent_shape(latent_size)
        self.posterior = posterior(latent_shape)
        self.likelihood = likelihood(image_shape)
        self.prior = prior(latent_shape)
        self.encoder = encoder(image_shape, self.posterior.param_shape)  # phi
        self.decoder = decoder(latent_shape, self.likelihood.param_shape)  # theta
        self.prior.bind(self.q_z, image_shape)

        self._is_encoding = False

    def q_z(self, x: Tensor) -> Distribution:
        """Return q(z|x) of the slots `encoder` and `posterior`: batch [B], event [D] or [c, h, w].

        A `trace` of your own calls this; everything else calls `encode`, which asks the trace. A subclass with another
        q(z|x) overrides this, or `encode`.

        Args:
            x: [B, C, H, W].
        """
        return self._slots_q_z(x) if type(self).encode is VAE.encode else self.encode(x)

    def encode(self, x: Tensor | Batch) -> Distribution:
        """Return the trace's q(z|x): batch [B], event [D], or event [c, h, w] if the latent is a set of feature maps.

        Of a subclass with several latents this is a mapping by name.

        Args:
            x: [B, C, H, W], or a batch.

        Raises:
            UserError: if it is called by the trace itself, which would never end.
        """
        if type(self).trace is VAE.trace and type(self).q_z is VAE.q_z:
            return self._slots_q_z(as_batch(x)["x"])  # the same, without the decoder
        if self._is_encoding:
            raise UserError(
                f"{type(self).__name__}: its trace calls encode, which asks the trace; call self.q_z(x) there, the "
                "q(z|x) of the encoder"
            )
        self._is_encoding = True
        try:
            return cast(Distribution, super().encode(x))
        finally:
            self._is_encoding = False

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x = batch["x"]  # [B, C, H, W]
        q_z = self.q_z(x)  # batch [B], event [D]
        z = draw(q_z, num_samples)  # [K, B, D]
        p_x = self.likelihood(self.decoder(z))  # batch [K, B], event [C, H, W]
        return Trace(x, p_x, {"z": Latent(z, q_z, self.prior())})

    def infer(self, batch: Batch) -> Mapping[str, Distribution]:
        return {"z": self.q_z(batch["x"])}

    def decode(self, latents: Mapping[str, Tensor]) -> Distribution:
        (z,) = named_latents("VAE", latents, ["z"])
        return self.likelihood(self.decoder(z))

    def _slots_q_z(self, x: Tensor) -> Distribution:
        return self.posterior(self.encoder(x))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        check_count("VAE", n)
        z = self.prior().sample((n,))  # [n, D]
        return self.decode({"z": z}).mean


def _latent_shape(latent_size: int | Shape) -> Shape:
    """Return (D,) or (c, h, w) after a check."""
    shape = (latent_size,) if isinstance(latent_size, int) else tuple(latent_size)
    if len(shape) not in (1, 3) or min(shape) < 1:
        given = latent_size if isinstance(latent_size, int) else list(shape)
        raise UserError(
            f"VAE: latent_size is {given}; it must be at least 1, or [channels, height, width], each at least 1"
        )
    return shape
