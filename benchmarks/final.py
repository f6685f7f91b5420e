"""The ELBO of MNIST's test images after a run, by the same code for every contender. This part is not timed."""

from __future__ import annotations

from collections.abc import Callable

import lightning.pytorch as pl
import torch
from torch import Tensor

from benchmarks.timing import record
from vae_lightning.models import LatentVariableModel


def test_images(data_dir: str, pixels: str) -> Tensor:
    """The test set, float [N, 1, 28, 28]; `pixels`: `grey`, `threshold` (above 127) or `dynamic` (a Bernoulli draw)."""
    from torchvision import datasets  # imported here, because our start-up time includes the imports of this file

    grey = datasets.MNIST(data_dir, train=False).data[:, None].float() / 255
    if pixels == "dynamic":
        return torch.bernoulli(grey, generator=torch.Generator().manual_seed(0))
    return (grey > 0.5).float() if pixels == "threshold" else grey


@torch.no_grad()
def record_elbo(
    terms: Callable[[Tensor], tuple[Tensor, Tensor]], data_dir: str, pixels: str, where: torch.device
) -> None:
    """Record `elbo`, in nats per test image with one sample of z.

    `terms(x)` returns -log p(x|z) and the KL, each summed over the batch.
    """
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(0)
    images = test_images(data_dir, pixels)
    total = sum(float(term) for x in images.split(500) for term in terms(x.to(where)))
    record(elbo=-total / len(images), pixels=pixels)


class TestELBO(pl.Callback):
    """Call `record_elbo` at the end of one of our fits, by `trace`.

    Args:
        data_dir: The folder with MNIST in torchvision's layout.
        pixels: The pixels of the test images: grey, threshold or dynamic.
    """

    def __init__(self, data_dir: str, pixels: str) -> None:
        self.data_dir, self.pixels = data_dir, pixels

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, LatentVariableModel)

        def terms(x: Tensor) -> tuple[Tensor, Tensor]:
            trace = pl_module.trace({"x": x})
            return -trace.log_likelihood().sum(), sum(trace.kl().values(), torch.zeros(())).sum()

        record_elbo(terms, self.data_dir, self.pixels, pl_module.device)
