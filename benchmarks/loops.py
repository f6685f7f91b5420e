"""The ceiling: training steps and nothing else, on uint8 images that live on the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.timing import Stopwatch
from vae_lightning.__main__ import keep_memory


@dataclass(frozen=True)
class Setting:
    """How the arithmetic is done; the same words as the CLI's."""

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
    """`step_loss(x)`: the mean loss of a batch. `pixels`: uint8 [N, ...] on the device; `to_float`: makes x of it.

    With the allocator's setting that ours has: what it spares is no merit of ours over a bare loop.
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
