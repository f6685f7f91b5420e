"""Two ways to train a network: the bare loop, which is the ceiling, and a LightningModule written in the usual way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from benchmarks.timing import Stopwatch
from vae_lightning.__main__ import keep_memory


@dataclass(frozen=True)
class Setting:
    """The settings of the arithmetic, named like the CLI's."""

    matmul_precision: str = "highest"
    bf16: bool = False
    channels_last: bool = False
    compile: bool = False


def bare_loop(
    step_loss: Callable[[Tensor], Tensor],
    network: nn.Module,
    pixels: Tensor,
    to_float: Callable[[Tensor], Tensor],
    batch_size: int,
    epochs: int,
    learning_rate: float,
) -> Stopwatch:
    """Train with fused Adam for `epochs` epochs, on uint8 images on the device, and return the stopwatch.

    The loop has no logging and no callbacks. It has the same allocator setting as our CLI (`keep_memory`), so that the
    comparison does not depend on it.

    Args:
        step_loss: returns the mean loss of a batch x.
        network: the module whose parameters are trained.
        pixels: uint8 [N, ...] on the device.
        to_float: converts a batch of pixels to x.
        batch_size: the images of a step.
        epochs: the number of epochs.
        learning_rate: Adam's learning rate.
    """
    keep_memory()
    fused = pixels.device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=fused)
    watch = Stopwatch()
    watch.start()
    for _ in range(epochs):
        for index in torch.randperm(len(pixels)).to(pixels.device).split(batch_size):
            optimizer.zero_grad()
            step_loss(to_float(pixels.index_select(0, index))).backward()
            optimizer.step()
            watch.step(len(index))
        watch.end_epoch()
    return watch


class PlainLightning(pl.LightningModule):
    """A VAE as an ordinary LightningModule: all terms logged at each step, the loss in the progress bar.

    Args:
        net: the network.
        terms: returns -log p(x|z) and the KL, in nats per image, of the network and a batch x.
        learning_rate: Adam's learning rate.
    """

    def __init__(
        self, net: nn.Module, terms: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]], learning_rate: float
    ) -> None:
        super().__init__()
        self.net, self.terms, self.learning_rate = net, terms, learning_rate

    def training_step(self, batch: Tensor | list[Tensor], batch_idx: int) -> Tensor:
        x = batch[0] if isinstance(batch, list) else batch  # batch[1] is the labels
        reconstruction, divergence = self.terms(self.net, x)
        loss = reconstruction + divergence
        self.log("train_loss", loss, prog_bar=True)
        self.log_dict({"train_reconstruction": reconstruction, "train_kl": divergence})
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
