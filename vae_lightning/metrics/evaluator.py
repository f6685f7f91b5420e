"""What an evaluation metric is: it sees the traces of the test set, and says a few numbers and what they are in."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import zip_longest
from typing import ClassVar, TypeAlias, TypeVar

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributions import Distribution
from torchmetrics.utilities.distributed import gather_all_tensors

from vae_lightning.data import ImageDataModule
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import Batch

T = TypeVar("T")
Finding: TypeAlias = float | list[float] | str
"""A number is logged as `test/<name>`; a list or a text stands in results.json alone, under `details`. NaN: unknown."""

_DRAWS = 64


class Evaluator(ABC):
    """traces of the test set -> findings by name. To add one: subclass it, and name it in `evaluation.py` or a YAML.

    `begin` is called once a test, on every rank, before its first batch; `compute` once after the last, on every rank,
    and returns the same on each. `units` by the first part of a finding's name (`psnr`, not `psnr_stderr`).
    """

    units: ClassVar[Mapping[str, str]]

    def misfit(self, trace: Trace, data: ImageDataModule | None) -> str | None:
        """Why this does not apply to the model or the data, as the end of a sentence; None where it does.

        `trace`: of two test images.
        """
        return None

    @abstractmethod
    def begin(self, model: LatentVariableModel, data: ImageDataModule | None) -> None:
        """Forget what was before."""

    def update(self, trace: Trace, batch: Batch) -> None:  # noqa: B027 - one that looks at samples alone needs none
        """Look at a batch of test images."""

    @abstractmethod
    def compute(self) -> dict[str, Finding]: ...


def log_numbers(module: pl.LightningModule, numbers: Mapping[str, float]) -> None:
    """Log the numbers of a test, which every rank has found alike.

    Lightning warns of each number that is not reduced over ranks. The maximum of equal numbers is that number to the
    last bit, which their mean over three ranks is not. A standard error that is not known (NaN) is null in
    results.json, and is kept from the loggers: metrics.csv leaves its cell empty, W&B draws no point.
    """
    unknown = {name for name, value in numbers.items() if name.endswith("_stderr") and math.isnan(value)}
    for name, value in numbers.items():
        module.log(name, float(value), logger=False if name in unknown else None, sync_dist=True, reduce_fx="max")


def in_order(batches: Sequence[Tensor]) -> Tensor:
    """The rows of this rank's batches, [n, ...] each, and of all other ranks', [N, ...], in the order of one rank.

    Rank r of W evaluates the batches r, r + W, r + 2 W, ... (see `ImageLoader`).
    """
    sizes = from_all_ranks(torch.tensor([len(batch) for batch in batches], device=batches[0].device))
    rows = from_all_ranks(torch.cat(list(batches)))
    parts = [own.split(size.tolist()) for own, size in zip(rows, sizes, strict=True)]
    return torch.cat([batch for turn in zip_longest(*parts) for batch in turn if batch is not None])


def from_all_ranks(values: Tensor) -> list[Tensor]:
    """This tensor of each rank, rank by rank; their first dimensions may differ."""
    return [values] if rank_and_world_size()[1] == 1 else list(gather_all_tensors(values))


def objects_from_all_ranks(value: T) -> list[T]:
    """This value of each rank, rank by rank: plain data that a rank may lack parts of."""
    world_size = rank_and_world_size()[1]
    values = [value] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def rank_and_world_size() -> tuple[int, int]:
    """0 and 1 where there is one process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def closed_form_mean(q: Distribution) -> Tensor | None:
    """E_q[z] where the distribution knows it: a flow does not."""
    try:
        return q.mean
    except NotImplementedError:
        return None


def mean_draws(latent: Latent) -> Tensor:
    """[S, B, D] of which the mean over S estimates E_q[z|x] without bias, with z flattened; S = 1 where that is exact.

    A q that depends on an earlier sample has one mean for each of the trace's K samples; a q without a mean in closed
    form is sampled 64 times more.
    """
    mean, conditional = closed_form_mean(latent.q), len(latent.q.batch_shape) > 1
    if mean is None:
        draws = latent.z if conditional else copy(latent.q).sample((_DRAWS,))  # a copy: some remember their last sample
    else:
        draws = mean if conditional else mean[None]
    return draws.flatten(2)
