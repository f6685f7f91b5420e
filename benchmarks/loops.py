"""The ceiling: a loop of training steps without logging or callbacks, on uint8 images on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    """Train with fused Adam for `epochs` epochs and return the stopwatch.

    The loop has the same allocator setting as our CLI (`keep_memory`), so that the comparison does not depend on it.

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


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
