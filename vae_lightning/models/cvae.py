"""The conditional variational autoencoder and its conditions: class labels and columns of the image."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn import functional as F

from vae_lightning.distributions import (
    Bernoulli,
    DiagonalNormal,
    FamilyRecipe,
    PriorRecipe,
    StandardNormal,
    given,
)
from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.batches import check_count, named_latents
from vae_lightning.networks import MLP
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch, NetworkRecipe, Shape, UserError


class Condition(nn.Module):
    """c = c(batch), a float tensor [B, *shape]. Subclass this to condition on something else.

    A subclass sets `shape`, the shape of one condition, and `examples` [M, *shape], the conditions of samples.
    """

    shape: Shape
    examples: Tensor

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the conditions c of a batch: [B, *shape]."""

    def fix_known_pixels(self, p_x: Distribution, c: Tensor) -> Distribution:
        """Return p(x|z, c): the decoder's p_x, with probability 1 on the pixels that c determines, if there are any."""
        return p_x

    def store_examples(self, batch: Batch) -> None:
        """Fill `examples` from the first batch of a fit, if they are taken from the data."""

    def repeat_examples(self, n: int) -> Tensor:
        """Return n conditions [n, *shape]: the examples in order, each equally often."""
        return self.examples[torch.arange(n, device=self.examples.device) * len(self.examples) // n]


ConditionRecipe: TypeAlias = Callable[[Shape], Condition]
"""A `Condition` class, or a `functools.partial` of one: called as `recipe(image_shape)`."""


class ClassLabel(Condition):
    """c = one-hot(label): [B, num_classes]. Use this if the data have one label for each image, as MNIST does.

    Args:
        image_shape: (C, H, W) of an image; not used.
        num_classes: The number of classes; labels are 0 .. num_classes - 1.

    Raises:
        UserError: if the data have no label, or a label that is too large (checked on the CPU only).
    """

    def __init__(self, image_shape: Shape, num_classes: int = 10) -> None:
        super().__init__()
        if num_classes < 1:
            raise UserError(f"ClassLabel: num_classes is {num_classes}; it must be at least 1")
        self.shape = (num_classes,)
        self.register_buffer("examples", torch.eye(num_classes), persistent=False)

    def forward(self, batch: Batch) -> Tensor:
        label, num_classes = batch.get("label"), self.shape[0]
        if label is None or label.dim() != 1:
            found = "none" if label is None else f"{list(label.shape[1:])} numbers an image"
            raise UserError(f"ClassLabel: the data must have one label for each image, found {found}; MNIST has one")
        # on a GPU the comparison would make the host wait; there torch's own assertion fails
        is_checked = label.device.type == "cpu" and not torch.compiler.is_compiling()
        if is_checked and label.max() >= num_classes:
            raise UserError(f"ClassLabel: a label is {label.max()}; num_classes must be above it, and is {num_classes}")
        return F.one_hot(label.long(), num_classes).to(batch["x"].dtype)


class ImageColumns(Condition):
    """c = x[..., columns]: some columns of the image, to which p(x|z, c) gives probability 1.

    Use this to complete images from known columns: z and c explain the other pixels. Column 13 of MNIST is the task of
    Doersch 2016 (https://arxiv.org/abs/1606.05908).

    Args:
        image_shape: (C, H, W) of an image.
        columns: The numbers of the known columns, from 0 at the left.
    """

    known: Tensor
    num_examples = 10

    def __init__(self, image_shape: Shape, columns: Sequence[int] = (13,)) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.columns = sorted(set(columns))
        if not self.columns or not 0 <= self.columns[0] <= self.columns[-1] < width:
            raise UserError(f"ImageColumns: columns {list(columns)}: needs one or more of 0 .. {width - 1}")
        if len(self.columns) == width:
            raise UserError(f"ImageColumns: all {width} columns are known; leave at least one to the model")
        self.shape = (channels, height, len(self.columns))
        mask = torch.zeros(image_shape, dtype=torch.bool)
        mask[..., self.columns] = True
        self.register_buffer("known", mask, persistent=False)
        self.register_buffer("examples", torch.zeros(self.num_examples, *self.shape))

    def forward(self, batch: Batch) -> Tensor:
        return batch["x"][..., self.columns]

    def fix_known_pixels(self, p_x: Distribution, c: Tensor) -> Distribution:
        values = c.new_zeros(*c.shape[:-1], self.known.shape[-1])  # [B, C, H, W]
        values[..., self.columns] = c
        return given(p_x, self.known, values)

    def store_examples(self, batch: Batch) -> None:
        seen = self(batch)[: self.num_examples]
        self.examples.copy_(seen[torch.arange(self.num_examples) % len(seen)])


class CVAE(LatentVariableModel):
    """p(x, z|c) = p(x|z, c) p(z|c), with q(z|x, c) beside it (Sohn, Lee & Yan 2015, NeurIPS 28).

    Use this model to sample images at a given label, or to complete images from known columns. Every distribution of a
    Trace is conditioned on c: the ELBO and the importance-weighted bound are bounds of log p(x|c).

    Args:
        image_shape: (C, H, W) of an image; x is [B, C, H, W].
        latent_size: D for z of shape [K, B, D]; 0 for a regression p(x|c) without z, whose bounds are exact.
        condition: Takes c from the batch.
        embedding: Network from c to a plane [1, H, W]; the encoder reads it as one more channel of x.
        encoder: Network from x and the plane to the parameters of q(z|x, c).
        posterior: Family of q(z|x, c).
        decoder: Network from [z, c], flattened and concatenated, to the parameters of p(x|z, c).
        likelihood: Family of p(x|z, c); choose one that gives a probability to the data's pixel values.
        prior: p(z), the same for every c; not used if there is a prior_network.
        prior_network: Network from c to the parameters of p(z|c) = N(mu(c), diag sigma(c)^2).
        kwargs: Arguments of `LatentVariableModel`.
    """

    def __init__(
        self,
        image_shape: Shape,
        latent_size: int = 32,
        condition: ConditionRecipe = ClassLabel,
        embedding: NetworkRecipe = MLP,
        encoder: NetworkRecipe = MLP,
        posterior: FamilyRecipe = DiagonalNormal,
        decoder: NetworkRecipe = MLP,
        likelihood: FamilyRecipe = Bernoulli,
        prior: PriorRecipe = StandardNormal,
        prior_network: NetworkRecipe | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        if latent_size < 0:
            raise UserError(f"CVAE: latent_size is {latent_size}; it must be at least 0 (0 is a regression without z)")
        channels, *size = image_shape
        self.latent_size, latent_shape = latent_size, (latent_size,)
        self.condition = condition(image_shape)
        self.likelihood = likelihood(tuple(image_shape))
        code_shape = (latent_size + math.prod(self.condition.shape),)
        self.decoder = decoder(code_shape, self.likelihood.param_shape)  # theta
        if latent_size:
            self.posterior = posterior(latent_shape)
            self.embedding = embedding(self.condition.shape, (1, *size))
            self.encoder = encoder((channels + 1, *size), self.posterior.param_shape)  # phi
            self.prior = prior(latent_shape) if prior_network is None else None
            if prior_network is not None:
                self.prior_family = DiagonalNormal(latent_shape)
                self.prior_network = prior_network(self.condition.shape, self.prior_family.param_shape)

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x, c = batch["x"], self.condition(batch)  # [B, C, H, W], [B, *c]
        if not self.latent_size:
            return Trace(x, self._p_x(x.new_zeros(num_samples, len(x), 0), c))
        q_z = self.posterior(self.encoder(torch.cat([x, self.embedding(c)], dim=1)))  # batch [B], event [D]
        z = draw(q_z, num_samples)  # [K, B, D]
        return Trace(x, self._p_x(z, c), {"z": Latent(z, q_z, self._p_z(c))})

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """Return means of p(x|z, c): [n, C, H, W].

        Args:
            n: The number of images.
            c: Conditions [n, *shape]; None for the condition's examples (each class in turn, or stored columns).
        """
        check_count("CVAE", n)
        c = self.condition.repeat_examples(n) if c is None else c
        if c.shape != (n, *self.condition.shape):
            raise UserError(f"CVAE.sample: c is {list(c.shape)}; {n} conditions are {[n, *self.condition.shape]}")
        if not self.latent_size:
            return self._p_x(c.new_zeros(n, 0), c).mean
        p_z = self._p_z(c)
        return self._p_x(p_z.sample(() if p_z.batch_shape else (n,)), c).mean

    @property
    def num_labels(self) -> int:
        return self.condition.shape[0] if isinstance(self.condition, ClassLabel) else 0

    def sample_given(self, label: Tensor) -> Tensor:
        if not self.num_labels:
            raise UserError(f"CVAE: its condition is {type(self.condition).__name__}, which takes no label")
        return self.sample(len(label), self.condition({"label": label, "x": self.condition.examples}))

    def decode_given(self, latents: Mapping[str, Tensor], batch: Batch) -> Distribution:
        c = self.condition(batch)  # [B, *c]
        if not self.latent_size:
            return self._p_x(c.new_zeros(len(c), 0), c)
        (z,) = named_latents("CVAE", latents, ["z"])
        return self._p_x(z, c)

    def prior_modules(self) -> list[nn.Module]:
        return [self.prior_family if self.prior is None else self.prior] if self.latent_size else []

    def _p_z(self, c: Tensor) -> Distribution:
        return self.prior() if self.prior is not None else self.prior_family(self.prior_network(c))

    def _p_x(self, z: Tensor, c: Tensor) -> Distribution:
        flat = c.flatten(1).expand(*z.shape[:-1], -1)  # [K, B, D'] or [n, D']
        p_x = self.likelihood(self.decoder(torch.cat([z, flat], dim=-1)))
        return self.condition.fix_known_pixels(p_x, c)

    def on_train_batch_start(self, batch: Batch | list[Batch], batch_idx: int) -> None:
        if self.global_step == 0:
            self.condition.store_examples(batch[0] if isinstance(batch, list) else batch)
