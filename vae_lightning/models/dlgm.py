"""The deep latent Gaussian model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lightning.distributions import Bernoulli, DiagonalNormal, FamilyRecipe, StandardNormal
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.batches import check_count, layer_sizes, named_latents
from vae_lightning.networks import MLP
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch, NetworkRecipe, Shape


class DLGM(LatentVariableModel):
    """h_L = G_L xi_L, h_l = T_l(h_(l+1)) + G_l xi_l, p(x|xi) = likelihood(T_0(h_1)), with xi_l ~ N(0, I).

    Use this model for a hierarchy whose latents are independent under the posterior: q(xi|x) = prod_l q_l(xi_l|x), so
    any `posterior` family fits. The latents z1, z2, ... of a Trace are xi_1, xi_2, ..., each [K, B, D_l].
    Rezende, Mohamed & Wierstra 2014 (https://arxiv.org/abs/1401.4082), without the paper's prior on the weights and its
    corruption of the encoder's input.

    Args:
        image_shape: (C, H, W) of an image; x is [B, C, H, W].
        latent_sizes: D_1 .. D_L, the sizes of the layers; the first is the layer next to x.
        encoder: Network from x to the posterior parameters of all layers.
        posterior: Family of each q_l(xi_l|x).
        transition: Network of each T_1 .. T_(L-1), from one layer to the layer below.
        decoder: Network T_0 from h_1 to the parameters of p(x|xi).
        likelihood: Family of p(x|xi); choose one that gives a probability to the data's pixel values.
        kwargs: Arguments of `LatentVariableModel`.
    """

    def __init__(
        self,
        image_shape: Shape,
        latent_sizes: Sequence[int] = (64, 32),
        encoder: NetworkRecipe = MLP,
        posterior: FamilyRecipe = DiagonalNormal,
        transition: NetworkRecipe = MLP,
        decoder: NetworkRecipe = MLP,
        likelihood: FamilyRecipe = Bernoulli,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        sizes, image_shape = layer_sizes("DLGM", latent_sizes), tuple(image_shape)
        self.likelihood = likelihood(image_shape)
        families = [posterior((size,)) for size in sizes]
        self.posteriors = nn.ModuleList(families)
        self.priors = nn.ModuleList(StandardNormal((size,)) for size in sizes)
        self.feature_sizes = [family.param_shape[0] for family in families]
        self.encoder = encoder(image_shape, (sum(self.feature_sizes),))  # phi
        self.noise_maps = nn.ModuleList(nn.Linear(size, size, bias=False) for size in sizes)  # G_1 .. G_L
        self.transitions = nn.ModuleList(transition((above,), (size,)) for size, above in pairwise(sizes))  # T_1, ...
        self.decoder = decoder((sizes[0],), self.likelihood.param_shape)  # T_0

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        posteriors = self.infer(batch)  # batch [B], event [D_l] each
        latents = {
            name: Latent(draw(q, num_samples), q, prior())
            for (name, q), prior in zip(posteriors.items(), self.priors, strict=True)
        }
        return Trace(batch["x"], self.decode({name: latent.z for name, latent in latents.items()}), latents)

    def infer(self, batch: Batch) -> Mapping[str, Distribution]:
        features = self.encoder(batch["x"]).split(self.feature_sizes, dim=-1)
        return {f"z{i + 1}": family(features[i]) for i, family in enumerate(self.posteriors)}

    def decode(self, latents: Mapping[str, Tensor]) -> Distribution:
        xi = named_latents("DLGM", latents, [f"z{i + 1}" for i in range(len(self.noise_maps))])  # L x [..., D_l]
        h = self.noise_maps[-1](xi[-1])
        for layer in reversed(range(len(xi) - 1)):
            h = self.transitions[layer](h) + self.noise_maps[layer](xi[layer])  # [..., D_l]
        return self.likelihood(self.decoder(h))

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        check_count("DLGM", n)
        return self.decode({f"z{i + 1}": prior().sample((n,)) for i, prior in enumerate(self.priors)}).mean
