"""A video VAE: clips of a square that moves and bounces, with a latent for each frame and a prior that moves on."""

from typing import Any

import torch
from torch import Tensor, nn

from vae_lightning.data import DataModule, Examples, Split, Transform, join, windows
from vae_lightning.distributions import Bernoulli, DiagonalNormal, Repeated
from vae_lightning.models import LatentVariableModel, Rollout
from vae_lightning.networks import MLP
from vae_lightning.noise import uniform16
from vae_lightning.trace import Latent, Trace, draw
from vae_lightning.types import Batch


class MovingSquare(DataModule):
    x_shape, num_frames = (-1, 1, 10, 10), 6  # windows in training, whole clips in the test

    def load(self, split: Split) -> Examples:
        seed, count = {"train": (0, 200), "val": (1, 40), "test": (2, 50)}[split]
        start, speed = uniform16(torch.arange(count), 4, seed).view(count, 1, 2, 2).unbind(2)  # functions of the index
        path = 7 - (7 - (start + (1 + speed % 2) * torch.arange(12)[:, None]) % 14).abs()  # bounces: [N, T, 2]
        inside = (torch.arange(10) - path[..., None]) // 3 == 0  # [N, T, 2, 10]
        clips = 255 * (inside[:, :, :1, :, None] & inside[:, :, 1:, None, :]).byte()  # uint8 [N, T, 1, H, W]
        steps, lengths = join(clips)
        return Examples({"x": clips}) if split == "test" else windows({"x": steps}, lengths, self.num_frames)

    def batch_transform(self, split: Split) -> Transform:
        return Transform()

    def show(self, x: Tensor) -> Tensor:
        return x


class VideoVAE(LatentVariableModel):
    def __init__(self, x_shape: tuple[int, ...], num_frames: int, latent_size: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.save_hyperparameters(logger=False)
        self.family, self.likelihood = Repeated((latent_size,), DiagonalNormal), Repeated(x_shape[1:], Bernoulli)
        self.encoder, self.decoder = MLP(x_shape[1:], (64,)), MLP((latent_size,), self.likelihood.param_shape, (64,))
        self.memory = nn.GRU(64, 32, batch_first=True, bidirectional=True)
        self.posterior = nn.Linear(64, 2 * latent_size)
        self.prior = MLP((latent_size,), self.family.param_shape, (64,))  # of a frame, from the frame before

    def trace(self, batch: Batch, num_samples: int = 1, step: int | None = None) -> Trace:
        q = self.family(self.posterior(self.memory(self.encoder(batch["x"]))[0]))  # batch [B], event [T, D]
        z = draw(q, num_samples)  # [K, B, T, D]
        p = self.family(self.prior(torch.cat([torch.zeros_like(z[..., :1, :]), z[..., :-1, :]], dim=-2)))
        return Trace(batch["x"], self.likelihood(self.decoder(z)), {"z": Latent(z, q, p, p_depends_on_z=True)})

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        z = [torch.zeros(n, 1, *self.family.event_shape, device=self.device)]
        for _ in range(self.hparams["num_frames"]):
            z.append(self.family(self.prior(z[-1])).sample())
        return self.likelihood(self.decoder(torch.cat(z[1:], dim=1))).mean

    @torch.no_grad()
    def predict_frames(self, x_seen: Tensor, horizon: int, sampled: bool = False) -> Rollout:
        z = [draw(self.family(self.posterior(self.memory(self.encoder(x_seen))[0])), 1)[0][:, -1:]]  # [B, 1, D]
        for _ in range(horizon):
            p = self.family(self.prior(z[-1]))
            z.append(p.sample() if sampled else p.mean)
        frames = self.likelihood(self.decoder(torch.cat(z[1:], dim=1))).mean
        return Rollout(centre_of_ink(x_seen), centre_of_ink(frames), frames)


def centre_of_ink(frames: Tensor) -> Tensor:
    """The one object of frames [B, T, 1, H, W]: (x, y) in [-1, 1], [B, T, 1, 2]."""
    along = torch.linspace(-0.9, 0.9, frames.shape[-1], device=frames.device)
    ink = frames / frames.sum((3, 4), keepdim=True).clamp(min=1e-6)
    return torch.stack(((ink.sum(3) * along).sum(-1), (ink.sum(4) * along).sum(-1)), -1)
