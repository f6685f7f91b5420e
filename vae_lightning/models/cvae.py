"""The conditional variational autoencoder, and what it may be conditioned on."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

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
from vae_lightning.models.base import LatentVariableModel, OptimizerRecipe, SchedulerRecipe
from vae_lightning.models.batches import check_count
from vae_lightning.networks import MLP
from vae_lightning.objectives import ELBO, ObjectiveRecipe
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch, NetworkRecipe, Shape, UserError


class Condition(nn.Module):
    """c = c(batch): float [B, *shape]. `examples` [M, *shape] are conditions to sample at."""

    shape: Shape
    examples: Tensor

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor: ...

    def complete(self, p_x: Distribution, c: Tensor) -> Distribution:
        """p(x|z, c) from what the decoder says of every pixel: the same, unless c is a part of x."""
        return p_x

    def remember(self, batch: Batch) -> None:
        """Called with the first batch of a fit, for a condition that has to see some to know examples."""

    def spread(self, n: int) -> Tensor:
        """n conditions, each example as often as the next, in order: [n, *shape]."""
        return self.examples[torch.arange(n, device=self.examples.device) * len(self.examples) // n]


ConditionRecipe: TypeAlias = Callable[[Shape], Condition]
"""A `Condition` class, or a `functools.partial` of one: called as `recipe(image_shape)`."""


class ClassLabel(Condition):
    """c = one-hot(label), for data with one label 0 .. `num_classes` - 1 an image."""

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
            raise UserError(f"ClassLabel: the data must have one label for each image, found {found}; MNIST has")
        looks = label.device.type == "cpu" and not torch.compiler.is_compiling()  # on a GPU torch's own assertion
        if looks and label.max() >= num_classes:
            raise UserError(f"ClassLabel: a label is {label.max()}; num_classes must be above it, and is {num_classes}")
        return F.one_hot(label.long(), num_classes).to(batch["x"].dtype)


class ImageColumns(Condition):
    """c = x[..., columns]: a part of the image, which p(x|z, c) then holds with certainty; z and c explain the rest.

    Column 13 of MNIST is the task of Doersch 2016 (https://arxiv.org/abs/1606.05908).
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
            raise UserError(f"ImageColumns: all {width} columns are given, and none is left to model")
        self.shape = (channels, height, len(self.columns))
        mask = torch.zeros(image_shape, dtype=torch.bool)
        mask[..., self.columns] = True
        self.register_buffer("known", mask, persistent=False)
        self.register_buffer("examples", torch.zeros(self.num_examples, *self.shape))

    def forward(self, batch: Batch) -> Tensor:
        return batch["x"][..., self.columns]

    def complete(self, p_x: Distribution, c: Tensor) -> Distribution:
        values = c.new_zeros(*c.shape[:-1], self.known.shape[-1])  # [B, C, H, W]
        values[..., self.columns] = c
        return given(p_x, self.known, values)

    def remember(self, batch: Batch) -> None:
        seen = self(batch)[: self.num_examples]
        self.examples.copy_(seen[torch.arange(self.num_examples) % len(seen)])


class CVAE(LatentVariableModel):
    """p(x, z|c) = p(x|z, c) p(z|c), with q(z|x, c) beside it (Sohn, Lee & Yan 2015, NeurIPS 28).

    The slots of the VAE, and three more. `condition` takes c from the batch. `embedding` maps c to a plane that the
    encoder reads beside x, so that any network for images will do; the decoder reads [z, c], flat. p(z|c) is `prior`,
    the same for every c, unless `prior_network` is given: then p(z|c) = N(mu(c), diag sigma(c)^2).
    With `latent_size=0` there is no z: p(x|c) is a regression with the same decoder, and every bound is exact.
    All of a Trace is given c: its ELBO and its importance-weighted bound are bounds of log p(x|c).
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
        objective: ObjectiveRecipe = ELBO,
        optimizer: OptimizerRecipe = torch.optim.Adam,
        scheduler: SchedulerRecipe | None = None,
        scheduler_interval: Literal["epoch", "step"] = "epoch",
    ) -> None:
        super().__init__(objective, optimizer, scheduler, scheduler_interval)
        self.save_hyperparameters(logger=False)
        if latent_size < 0:
            raise UserError(
                f"CVAE: latent_size is {latent_size}; it must be at least 0, which is a regression without z"
            )
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

    def trace(self, batch: Batch, num_samples: int = 1) -> Trace:
        x, c = batch["x"], self.condition(batch)  # [B, C, H, W], [B, *c]
        if not self.latent_size:
            return Trace(x, self._p_x(x.new_zeros(num_samples, len(x), 0), c))
        q_z = self.posterior(self.encoder(torch.cat([x, self.embedding(c)], dim=1)))  # batch [B], event [D]
        z = draw(q_z, num_samples)  # [K, B, D]
        return Trace(x, self._p_x(z, c), {"z": Latent(z, q_z, self._p_z(c))})

    @torch.no_grad()
    def sample(self, n: int, c: Tensor | None = None) -> Tensor:
        """Means of p(x|z, c) at the n conditions `c`; without them at examples: each class in turn, columns seen."""
        check_count("CVAE", n)
        c = self.condition.spread(n) if c is None else c
        if c.shape != (n, *self.condition.shape):
            raise UserError(f"CVAE.sample: c is {list(c.shape)}; {n} conditions are {[n, *self.condition.shape]}")
        if not self.latent_size:
            return self._p_x(c.new_zeros(n, 0), c).mean
        p_z = self._p_z(c)
        return self._p_x(p_z.sample(() if p_z.batch_shape else (n,)), c).mean

    def _p_z(self, c: Tensor) -> Distribution:
        return self.prior() if self.prior is not None else self.prior_family(self.prior_network(c))

    def _p_x(self, z: Tensor, c: Tensor) -> Distribution:
        flat = c.flatten(1).expand(*z.shape[:-1], -1)  # [K, B, D'] or [n, D']
        p_x = self.likelihood(self.decoder(torch.cat([z, flat], dim=-1)))
        return self.condition.complete(p_x, c)

    def on_train_batch_start(self, batch: Batch | list[Batch], batch_idx: int) -> None:
        if self.global_step == 0:
            self.condition.remember(batch[0] if isinstance(batch, list) else batch)
