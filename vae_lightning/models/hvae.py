"""The hierarchical variational autoencoder, and the two ways to infer a hierarchy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_lightning.distributions import (
    Bernoulli,
    DiagonalNormal,
    FamilyRecipe,
    PriorRecipe,
    StandardNormal,
    normal_product,
)
from vae_lightning.distributions.paths import centre
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.batches import check_count, layer_sizes, named_latents
from vae_lightning.models.parts import centre_or_sample
from vae_lightning.networks import MLP
from vae_lightning.trace import Latent, Trace, draw, drawing
from vae_lightning.types import Batch, NetworkRecipe, Shape, UserError

Conditional: TypeAlias = Callable[[int, Tensor | None], Distribution]
"""p(z_l|z_(l+1)) as a function of l - 1 and z_(l+1); at the top z_(l+1) is None, and the result is p(z_L)."""


class Inference(nn.Module):
    """q(z_1, ..., z_L|x). Subclass this for another way to infer a hierarchy."""

    @abstractmethod
    def forward(self, x: Tensor, p_z: Conditional, num_samples: int) -> dict[str, Latent]:
        """Return the latents z1 .. zL, each z [K, B, D_l].

        Args:
            x: Images [B, C, H, W].
            p_z: The model's p(z_l|z_(l+1)).
            num_samples: K.
        """


InferenceRecipe: TypeAlias = Callable[[Shape, Sequence[int]], Inference]
"""An `Inference` class, or a `functools.partial` of one: called as `recipe(image_shape, latent_sizes)`."""


class BottomUp(Inference):
    """q(z|x) = q(z_1|x) q(z_2|z_1) ... q(z_L|z_(L-1)).

    Use this for the hierarchy of Burda, Grosse & Salakhutdinov 2016 (https://arxiv.org/abs/1509.00519), or for a
    posterior other than a diagonal normal.

    Args:
        image_shape: (C, H, W) of an image.
        latent_sizes: D_1 .. D_L, the sizes of the layers.
        encoder: Network from x to the parameters of q(z_1|x).
        upward: Network from each z_(l-1) to the parameters of q(z_l|z_(l-1)).
        posterior: Family of each factor.
    """

    def __init__(
        self,
        image_shape: Shape,
        latent_sizes: Sequence[int],
        encoder: NetworkRecipe = MLP,
        upward: NetworkRecipe = MLP,
        posterior: FamilyRecipe = DiagonalNormal,
    ) -> None:
        super().__init__()
        families = [posterior((size,)) for size in latent_sizes]
        shapes = [family.param_shape for family in families]
        self.posteriors = nn.ModuleList(families)
        self.encoder = encoder(image_shape, shapes[0])
        self.upward = nn.ModuleList(
            upward((size,), shape) for size, shape in zip(latent_sizes[:-1], shapes[1:], strict=True)
        )

    def forward(self, x: Tensor, p_z: Conditional, num_samples: int) -> dict[str, Latent]:
        q = [self.posteriors[0](self.encoder(x))]  # batch [B], event [D_1]
        z = [draw(q[0], num_samples)]  # [K, B, D_1]
        for posterior, network in zip(self.posteriors[1:], self.upward, strict=True):
            q.append(posterior(network(z[-1])))  # batch [K, B], event [D_l]
            z.append(draw(q[-1]))
        return {f"z{i + 1}": self._latent(i, q, z, p_z) for i in range(len(z))}

    @staticmethod
    def _latent(i: int, q: list[Distribution], z: list[Tensor], p_z: Conditional) -> Latent:
        is_top = i + 1 == len(z)
        return Latent(z[i], q[i], p_z(i, None if is_top else z[i + 1]), p_depends_on_z=not is_top)


class Ladder(Inference):
    """q(z|x) = q(z_L|x) prod_l q(z_l|z_(l+1), x), from the top down, after a deterministic pass from x upwards.

    d_1 = a(norm(encoder(x))), d_l = a(norm(upward(d_(l-1)))), and q(z_l|z_(l+1), x) is proportional to N(z_l|d_l)
    p(z_l|z_(l+1)). The product weights the evidence from x and the evidence from the layer above by their precisions.
    Use this if the upper layers of `BottomUp` stay unused. Sønderby et al. 2016 (https://arxiv.org/abs/1602.02282)
    normalise over the batch (`torch.nn.BatchNorm1d` here and in the networks). Each d_l then differs between the images
    of a batch from the first step on; otherwise the upper layers of a deep ladder can collapse at once.

    Args:
        image_shape: (C, H, W) of an image.
        latent_sizes: D_1 .. D_L, the sizes of the layers.
        encoder: Network from x to d_1 before the activation.
        upward: Network from each d_(l-1) to d_l before the activation.
        feature_size: The size of each d_l: one number for all, or one for each layer from x upwards.
        activation: The activation a.
        normalisation: Class of the layer `norm`, called with the size of d_l; null for none.
    """

    def __init__(
        self,
        image_shape: Shape,
        latent_sizes: Sequence[int],
        encoder: NetworkRecipe = MLP,
        upward: NetworkRecipe = MLP,
        feature_size: int | Sequence[int] = 256,
        activation: Callable[[], nn.Module] = nn.LeakyReLU,
        normalisation: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        sizes = _feature_sizes(feature_size, len(latent_sizes))
        self.encoder = encoder(image_shape, (sizes[0],))
        self.upward = nn.ModuleList(upward((size,), (next_size,)) for size, next_size in pairwise(sizes))
        self.normalisations = nn.ModuleList(normalisation(size) if normalisation else nn.Identity() for size in sizes)
        self.activation = activation()
        normals = [DiagonalNormal((size,)) for size in latent_sizes]
        self.normals = nn.ModuleList(normals)
        self.heads = nn.ModuleList(
            nn.Linear(size, normal.param_shape[0]) for size, normal in zip(sizes, normals, strict=True)
        )

    def forward(self, x: Tensor, p_z: Conditional, num_samples: int) -> dict[str, Latent]:
        d: list[Tensor] = []  # [B, F_l] each
        for network, norm in zip([self.encoder, *self.upward], self.normalisations, strict=True):
            d.append(self.activation(norm(network(d[-1] if d else x))))
        z: Tensor | None = None
        latents = {}
        for i in reversed(range(len(d))):
            p = p_z(i, z)  # batch [] at the top, else [K, B]; event [D_l]
            bottom_up = self.normals[i](self.heads[i](d[i]))  # batch [B], event [D_l]
            q = bottom_up if z is None else normal_product(bottom_up, p)
            z = draw(q, num_samples) if z is None else draw(q)  # [K, B, D_l]
            latents[f"z{i + 1}"] = Latent(z, q, p)
        return dict(reversed(latents.items()))


def _feature_sizes(feature_size: int | Sequence[int], num_layers: int) -> list[int]:
    sizes = [feature_size] * num_layers if isinstance(feature_size, int) else list(feature_size)
    if len(sizes) != num_layers:
        raise UserError(f"Ladder: feature_size has {len(sizes)} sizes, but there are {num_layers} layers of latents")
    if min(sizes) < 1:
        raise UserError(f"Ladder: feature_size is {feature_size}; it must be at least 1")
    return sizes


class HVAE(LatentVariableModel):
    """p(x, z) = p(x|z_1) p(z_1|z_2) ... p(z_(L-1)|z_L) p(z_L), with q(z|x) by `inference`: `Ladder` or `BottomUp`.

    Use this model for a hierarchy of dependent latents. p(z_l|z_(l+1)) = N(mu, diag sigma^2), whose parameters a
    `transition` network computes; the latents z1 .. zL of a Trace are [K, B, D_l].
    Burda et al. 2016 (https://arxiv.org/abs/1509.00519) and Sønderby et al. 2016 (https://arxiv.org/abs/1602.02282).

    Args:
        image_shape: (C, H, W) of an image; x is [B, C, H, W].
        latent_sizes: D_1 .. D_L, the sizes of the layers; the first is the layer next to x.
        inference: q(z|x): `Ladder` or `BottomUp`.
        transition: Network from each z_(l+1) to the parameters of p(z_l|z_(l+1)).
        decoder: Network from z_1 to the parameters of p(x|z_1).
        likelihood: Family of p(x|z_1); choose one that gives a probability to the data's pixel values.
        prior: p(z_L).
        kwargs: Arguments of `LatentVariableModel`.
    """

    on_unused_latent = (
        "Remedy: normalise every network over the batch (normalisation: torch.nn.BatchNorm1d, as hvae/mnist_ladder "
        "does), which keeps upper layers from collapsing at the start; warm the KL up (--model.objective=ELBO "
        "--model.objective.beta=LinearWarmup --model.objective.beta.num_steps=...), or give it free bits"
    )

    def __init__(
        self,
        image_shape: Shape,
        latent_sizes: Sequence[int] = (64, 32),
        inference: InferenceRecipe = Ladder,
        transition: NetworkRecipe = MLP,
        decoder: NetworkRecipe = MLP,
        likelihood: FamilyRecipe = Bernoulli,
        prior: PriorRecipe = StandardNormal,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        sizes, image_shape = layer_sizes("HVAE", latent_sizes), tuple(image_shape)
        self.inference = inference(image_shape, sizes)  # phi
        self.likelihood = likelihood(image_shape)
        self.prior = prior((sizes[-1],))
        normals = [DiagonalNormal((size,)) for size in sizes[:-1]]
        self.normals = nn.ModuleList(normals)
        self.transitions = nn.ModuleList(
            transition((above,), normal.param_shape) for normal, above in zip(normals, sizes[1:], strict=True)
        )
        self.decoder = decoder((sizes[0],), self.likelihood.param_shape)  # theta

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        latents = self.inference(batch["x"], self.p_z, num_samples)
        return Trace(batch["x"], self.decode({name: latent.z for name, latent in latents.items()}), latents)

    def infer(self, batch: Batch) -> Mapping[str, Distribution]:
        with drawing(centre_or_sample):
            return {name: latent.q for name, latent in self.inference(batch["x"], self.p_z, 1).items()}

    def p_z(self, i: int, above: Tensor | None) -> Distribution:
        """Return p(z_l|z_(l+1)) at z_(l+1) = `above`, with l = i + 1; p(z_L) if `above` is None."""
        return self.prior() if above is None else self.normals[i](self.transitions[i](above))

    def decode(self, latents: Mapping[str, Tensor]) -> Distribution:
        """Return p(x|z_1).

        Without z_1 it is the mean of p(z_1|z_2), and so on: the lowest layer that is given decides.

        Args:
            latents: Tensors [..., D_l] by the names of the Trace's latents.
        """
        layers = range(len(self.normals) + 1)
        lowest = next((i for i in layers if isinstance(latents, Mapping) and f"z{i + 1}" in latents), 0)
        (z,) = named_latents("HVAE", latents, [f"z{lowest + 1}"])
        for i in reversed(range(lowest)):
            z = self.p_z(i, z).mean
        return self.likelihood(self.decoder(z))

    def prior_codes(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean of p(z_L), of p(z_(L-1)|z_L) at this mean, and so on; none if the prior has no mean."""
        z = centre(self.prior())
        if z is None:
            return {}
        codes = {f"z{len(self.normals) + 1}": z}
        for i in reversed(range(len(self.normals))):
            codes[f"z{i + 1}"] = z = self.p_z(i, z).mean
        return {name: code.expand(len(batch["x"]), -1) for name, code in codes.items()}

    def prior_modules(self) -> list[nn.Module]:
        return [self.prior, *self.normals]

    def needed_for(self, name: str, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: codes[name]}  # the layers below follow from it, and those above have no other effect on x

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        check_count("HVAE", n)
        z = self.prior().sample((n,))  # [n, D_L]
        for i in reversed(range(len(self.normals))):
            z = self.p_z(i, z).sample()  # [n, D_l]
        return self.decode({"z1": z}).mean
