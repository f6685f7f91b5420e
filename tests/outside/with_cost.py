"""A VQ-VAE (van den Oord et al. 2017, https://arxiv.org/abs/1711.00937), whose codes are trained by two costs."""

import math
from typing import Any

import torch
from torch import Tensor

from vae_lightning.data import DataModule, Examples, Split
from vae_lightning.distributions import Bernoulli, Classes
from vae_lightning.models import LatentVariableModel
from vae_lightning.networks import MLP
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import Batch, Shape


class NoisyBars(DataModule):
    """A bar in one of four places; a twentieth of the pixels is flipped. The truth is `bar`."""

    image_shape = (1, 8, 8)

    def load(self, split: Split) -> Examples:
        size = {"train": 512, "val": 100, "test": 100}[split]
        random = torch.Generator().manual_seed(size + len(split))
        bar = torch.randint(4, (size,), generator=random)
        clean = torch.eye(4)[bar].repeat_interleave(2, 1)[:, None, :, None].expand(-1, 1, 8, 8)
        flipped = torch.rand(size, 1, 8, 8, generator=random) < 0.05
        return Examples({"x": (clean - flipped.float()).abs(), "bar": bar})


class Codes(LatentVariableModel):
    """p(x|code) p(code) with q(code|x) = 1 at the code nearest to the encoder's output: one row has all the share."""

    def __init__(self, image_shape: Shape, num_codes: int = 8, code_size: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.likelihood, self.q_code = Bernoulli(tuple(image_shape)), Classes((), num_codes)
        self.encoder = MLP(tuple(image_shape), (code_size,), (64,))
        self.decoder = MLP((code_size,), self.likelihood.param_shape, (64,))
        self.codes = torch.nn.Parameter(torch.randn(num_codes, code_size))

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        x, encoded = batch["x"], self.encoder(batch["x"]).float()  # [B, D]
        distance = (encoded[:, None] - self.codes).square().sum(-1)  # [B, C]
        nearest, num_codes = distance.argmin(1), len(self.codes)
        value = torch.arange(num_codes, device=x.device).repeat(num_samples)[:, None].expand(-1, len(x))  # [K, B]
        log_q = torch.where(value == nearest, 0.0, -torch.inf)
        q, p = (self.q_code(logits) for logits in (log_q[:num_codes].T, torch.zeros_like(distance)))
        straight_through = self.codes[value].detach() + encoded - encoded.detach()
        p_x, code = self.likelihood(self.decoder(straight_through)), self.codes[nearest]
        costs = {
            "commitment": (encoded - code.detach()).square().sum(1),
            "codebook": (encoded.detach() - code).square().sum(1),
        }
        latents = {"code": Latent(value, q, p, enumerated=True)}
        return Trace(x, p_x, latents, log_q - math.log(num_samples), num_codes, costs=costs, found={"codes": nearest})

    def sample(self, n: int) -> Tensor:
        return self.likelihood(self.decoder(self.codes[torch.randint(len(self.codes), (n,))])).mean
