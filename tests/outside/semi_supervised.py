"""A semi-supervised classifier (M2 of Kingma et al. 2014, https://arxiv.org/abs/1406.5298) of the digits."""

import math
from typing import Any

import torch
from torch import Tensor

from vae_lightning.data import Digits, Images, Split
from vae_lightning.distributions import Binomial, Classes, DiagonalNormal, StandardNormal
from vae_lightning.models import LatentVariableModel
from vae_lightning.networks import MLP
from vae_lightning.trace import Latent, Observed, Trace
from vae_lightning.types import Batch, Shape


class FewLabels(Digits):
    num_classes = 10

    def load(self, split: Split) -> Images:
        images = super().load(split)
        if split == "train":  # every tenth image keeps its label; -1 is a missing label
            images.fields["label"] = images.fields["label"].where(torch.arange(len(images)) % 10 == 0, -1)
        return images


class SemiSupervised(LatentVariableModel):
    """p(x|label, z) p(label) p(z), with q(label|x) q(z|x, label). A missing label is enumerated."""

    def __init__(self, image_shape: Shape, num_classes: int, latent_size: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.q_label, self.q_z = Classes((), num_classes), DiagonalNormal((latent_size,))
        self.prior, self.likelihood = StandardNormal((latent_size,)), Binomial(tuple(image_shape), num_steps=16)
        self.classifier = MLP(tuple(image_shape), self.q_label.param_shape, (64,))
        self.encoder = MLP((math.prod(image_shape) + num_classes,), self.q_z.param_shape, (64,))
        self.decoder = MLP((latent_size + num_classes,), self.likelihood.param_shape, (64,))
        self.register_buffer("classes", torch.eye(num_classes), persistent=False)

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x, (size, num_classes) = batch["x"], (len(batch["x"]), len(self.classes))
        q, p = self.q_label(self.classifier(x)), self.q_label(x.new_zeros(size, num_classes))
        value = torch.arange(num_classes, device=x.device).repeat(num_samples)[:, None].expand(-1, size)  # [K, B]
        one_hot = self.classes[value]  # [K, B, C]
        q_z = self.q_z(self.encoder(torch.cat((x.flatten(1).expand(len(value), -1, -1), one_hot), -1)))
        z = q_z.rsample()
        label = batch["label"] if self.training else value.new_full((size,), -1)  # evaluation hides the label
        known, observed = label >= 0, torch.where(label == value, 0.0, -torch.inf)
        shares = torch.where(known, observed, q.log_prob(value)) - math.log(num_samples)
        y = Latent(value, q, p, exists=(~known).to(x.dtype).expand_as(value), enumerated=True)
        p_x = self.likelihood(self.decoder(torch.cat((z, one_hot), -1)))
        seen, cost = Observed(label, p, known), -Observed(label, q, known).log_likelihood()
        trained = {"observed": {"label": seen}, "costs": {"classifier": cost}} if self.training else {}
        latents = {"label": y, "z": Latent(z, q_z, self.prior())}
        return Trace(x, p_x, latents, shares, num_classes, **trained, found={"label": q.mode})

    def sample(self, n: int) -> Tensor:
        one_hot = self.classes[torch.arange(n, device=self.device) % len(self.classes)]
        return self.likelihood(self.decoder(torch.cat((self.prior().sample((n,)), one_hot), -1))).mean
