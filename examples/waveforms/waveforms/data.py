"""Damped oscillations with noise: signals [64] that three numbers determine, but for the noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from vae_lightning.data import DataModule, Examples
from vae_lightning.data.base import Split

STEPS, HEIGHT, LIMIT = 64, 32, 1.5
NOISE = 0.05


class DampedWaves(DataModule):
    """x(t) = exp(-decay t) sin(2 pi frequency t + phase) + 0.05 noise, for 64 times t in [0, 1).

    `frequency` stands beside x in the batch: a model may use it, and a metric may compare with it.

    Args:
        num_signals: Number of training signals; `val` and `test` have a fifth as many each.
        kwargs: Arguments of `DataModule`.
    """

    x_shape = (STEPS,)

    def __init__(self, num_signals: int = 4000, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_signals = num_signals

    def load(self, split: Split) -> Examples:
        """Return the signals of a split: `x` [N, 64] and `frequency` [N].

        Args:
            split: `train`, `val` or `test`.
        """
        n = self.num_signals if split == "train" else self.num_signals // 5
        random = torch.Generator().manual_seed({"train": 0, "val": 1, "test": 2}[split])
        frequency, decay, phase, noise = (torch.rand(n, 1, generator=random) for _ in range(4))
        frequency, decay, phase = 2 + 4 * frequency, 4 * decay, 2 * math.pi * phase
        time = torch.arange(STEPS) / STEPS
        noise = NOISE * torch.randn(n, STEPS, generator=random)
        x = torch.exp(-decay * time) * torch.sin(2 * math.pi * frequency * time + phase) + noise
        return Examples({"x": x, "frequency": frequency[:, 0]})

    def show(self, x: Tensor) -> Tensor:
        """Return pictures of signals [n, 64]: images [n, 1, 32, 64] of their curves, white on black.

        With this method, a run's pictures and the commands `sample` and `reconstruct` draw signals, too.

        Args:
            x: Signals.
        """
        height = (LIMIT - x.clamp(-LIMIT, LIMIT)) / (2 * LIMIT) * (HEIGHT - 1)  # [n, 64], in rows from the top
        row = torch.arange(HEIGHT, device=x.device)[:, None]
        return torch.exp(-((row - height[:, None]) ** 2))[:, None]
