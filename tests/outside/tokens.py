"""A VAE of sentences of several lengths: padded token numbers, an end token that counts, and 0 nats for the padding."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lightning.data import DataModule, Examples, Split
from vae_lightning.distributions import Classes, DiagonalNormal, Masked, Repeated, StandardNormal
from vae_lightning.models import LatentVariableModel
from vae_lightning.networks import MLP
from vae_lightning.noise import uniform16
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch


class Sentences(DataModule):
    words = (".", "a", "the", "small", "cat", "dog", "bird", "sees", "likes", "sleeps", "sings")  # 0 ends a sentence
    x_shape, vocabulary = (8,), len(words)

    def load(self, split: Split) -> Examples:
        seed, count = {"train": (0, 1500), "val": (1, 200), "test": (2, 200)}[split]
        x = torch.full((count, 8), -1)
        for i, r in enumerate(uniform16(torch.arange(count), 8, seed).tolist()):  # pure functions of (seed, index)
            nouns = [[1 + a % 2, *[3][: b % 2], 4 + c % 3] for a, b, c in (r[:3], r[3:6])]
            words = [*nouns[0], *([7 + r[7] % 2, *nouns[1]] if r[6] % 2 else [9 + r[7] % 2]), 0]
            x[i, : len(words)] = torch.tensor(words)
        return Examples({"x": x, "length": (x >= 0).sum(1)})

    def show(self, x: Tensor) -> list[str]:
        return [" ".join(self.words[word] for word in words[: [*words, 0].index(0)]) for words in x.tolist()]


class SentenceVAE(LatentVariableModel):
    def __init__(self, x_shape: tuple[int, ...], vocabulary: int, latent_size: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.posterior, self.prior = DiagonalNormal((latent_size,)), StandardNormal((latent_size,))
        self.likelihood = Repeated((), partial(Classes, num_classes=vocabulary))
        self.encoder = MLP((*x_shape, vocabulary), self.posterior.param_shape, (128,))
        self.decoder = MLP((latent_size,), (*x_shape, vocabulary), (128,))

    def words(self, z: Tensor) -> Distribution:
        logits = self.decoder(z)  # [..., T, vocabulary]
        logits[..., -1, 1:] = -torch.inf  # the end comes at the last step, if not before
        return self.likelihood(logits)

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        num_steps, vocabulary = self.decoder.out_shape
        seen = torch.arange(num_steps, device=self.device) < batch["length"][:, None]  # [B, T]
        x = torch.nn.functional.one_hot(batch["x"].clamp(min=0), vocabulary) * seen[..., None].float()
        z = draw(q := self.posterior(self.encoder(x)), num_samples)  # [K, B, D]
        return Trace(batch["x"], Masked(self.words(z), seen), {"z": Latent(z, q, self.prior())})

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        return self.words(self.prior().sample((n,))).mode
