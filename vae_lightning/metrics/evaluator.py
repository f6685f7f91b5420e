"""The base class of the evaluation metrics, and what they share: logging, and the order of rows over ranks."""

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

from vae_lightning.data import DataModule
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import Batch

T = TypeVar("T")
Finding: TypeAlias = float | list[float] | str
"""A number is logged as `test/<name>`; a list or a text is only written to results.json (`details`). NaN: unknown."""

_DRAWS = 64


class Evaluator(ABC):
    """A metric of the traces of the test set; it returns its results by name.

    To add a metric, subclass `Evaluator` and name the class in `evaluation.py` or in a YAML file. Every rank calls
    `begin` before the first test batch and `compute` after the last one; `compute` must return the same on every rank.
    `units` maps the first part of a result's name to its unit (`psnr`, not `psnr_stderr`).
    """

    units: ClassVar[Mapping[str, str]]

    def why_not_applicable(self, trace: Trace, data: DataModule | None) -> str | None:
        """The reason why the metric does not apply, as the end of a sentence; None if the metric applies.

        Args:
            trace: the trace of two test images.
            data: the data module, if there is one.
        """
        return None

    def why_not_of_model(self, model: LatentVariableModel) -> str | None:
        """The reason why the metric does not apply to the model; asked after `why_not_applicable`.

        Args:
            model: the model.
        """
        return None

    def why_not_of_batch(self, trace: Trace, batch: Batch) -> str | None:
        """The reason why the metric does not apply to what a batch holds beside x; asked after `why_not_of_model`.

        Args:
            trace: the trace of two test images.
            batch: these images, and what stands beside them.
        """
        return None

    @abstractmethod
    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        """Reset the metric's state at the start of a test."""

    def update(self, trace: Trace, batch: Batch) -> None:  # noqa: B027 - a metric of samples needs no update
        """Add a batch of test images and its trace to the state."""

    @abstractmethod
    def compute(self) -> dict[str, Finding]:
        """The results by name, over all test images of all ranks."""


def log_numbers(module: pl.LightningModule, numbers: Mapping[str, float]) -> None:
    """Log the numbers of a test; every rank must hold equal numbers.

    Lightning warns about each number that is not reduced over ranks. The maximum of equal numbers keeps the last bit; a
    mean over three ranks would not. An unknown standard error (NaN) becomes null in results.json and is not passed to
    the loggers, so that its cell in metrics.csv is empty and W&B draws no point.
    """
    unknown = {name for name, value in numbers.items() if name.endswith("_stderr") and math.isnan(value)}
    for name, value in numbers.items():
        module.log(name, float(value), logger=False if name in unknown else None, sync_dist=True, reduce_fx="max")


def in_order(batches: Sequence[Tensor]) -> Tensor:
    """Concatenate the batches of all ranks, [n, ...] each, to [N, ...] in the order that a single rank has.

    Rank r of W evaluates the batches r, r + W, r + 2 W, ... (see `ImageLoader`).
    """
    sizes = from_all_ranks(torch.tensor([len(batch) for batch in batches], device=batches[0].device))
    rows = from_all_ranks(torch.cat(list(batches)))
    parts = [rank_rows.split(size.tolist()) for rank_rows, size in zip(rows, sizes, strict=True)]
    return torch.cat([batch for turn in zip_longest(*parts) for batch in turn if batch is not None])


def from_all_ranks(values: Tensor) -> list[Tensor]:
    """Gather this tensor from each rank, in the order of the ranks; the first dimensions may differ."""
    return [values] if rank_and_world_size()[1] == 1 else list(gather_all_tensors(values))


def objects_from_all_ranks(value: T) -> list[T]:
    """Gather this value (plain, picklable data) from each rank, in the order of the ranks."""
    world_size = rank_and_world_size()[1]
    values = [value] * world_size
    if world_size > 1:
        torch.distributed.all_gather_object(values, value)
    return values


def rank_and_world_size() -> tuple[int, int]:
    """The rank and the number of ranks: 0 and 1 if there is a single process."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def closed_form_mean(q: Distribution) -> Tensor | None:
    """E_q[z] in closed form; None if q has none, as a flow."""
    try:
        return q.mean
    except NotImplementedError:
        return None


def mean_draws(trace: Trace, latent: Latent) -> Tensor:
    """Values [S, B, D] whose mean over S is an unbiased estimate of E_q[z|x], with z flattened.

    S is 1 if q has a closed-form mean that depends on x alone. A q that depends on an earlier latent has one mean for
    each of the trace's samples. A q without a closed-form mean is sampled 64 times.

    Args:
        trace: the trace.
        latent: one of the trace's latents, which is not enumerated.
    """
    mean, conditional = closed_form_mean(latent.q), len(latent.q.batch_shape) > 1
    if mean is None:
        draws = (
            latent.z if conditional else copy(latent.q).sample((_DRAWS,))
        )  # a copy, because some distributions keep their last sample
    else:
        draws = mean if conditional else mean[None]
    draws = trace.sampled_rows(draws) if conditional else draws
    return draws.reshape(*draws.shape[:2], -1)
