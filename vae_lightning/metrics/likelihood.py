"""The marginal likelihood log p(x), estimated by importance sampling: the number that papers report."""

from __future__ import annotations

import math
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributions import Distribution
from torchmetrics import Metric

from vae_lightning.distributions import bits_per_dimension, is_mass
from vae_lightning.models import LatentVariableModel
from vae_lightning.types import Batch, UserError


@torch.no_grad()
def log_marginal_likelihood(model: LatentVariableModel, batch: Batch, num_samples: int, chunk_size: int = 20) -> Tensor:
    """log 1/K sum_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x), K = `num_samples`: float64 [B] nats.

    On average a lower bound of log p(x), tighter as K grows (Burda et al. 2016). Streamed: the memory is that of
    `chunk_size` samples, whatever K is. Sums are in float64, each weight in the model's own full precision.
    """
    log_sum = torch.full((len(batch["x"]),), -math.inf, dtype=torch.float64, device=batch["x"].device)
    for start in range(0, num_samples, chunk_size):
        log_w = model.trace(batch, min(chunk_size, num_samples - start)).log_weight()  # [chunk, B]
        log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_w.double(), dim=0))
    return log_sum - math.log(num_samples)


class MeanAndError(Metric):
    """Mean and standard error over examples, exact over any number of batches and ranks (sums in float64)."""

    full_state_update = False
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("count", "total", "squares"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        self.count += values.numel()
        self.total += values.sum()
        self.squares += values.square().sum()

    def compute(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        variance = (self.squares / self.count - mean**2).clamp(min=0) * self.count / (self.count - 1).clamp(min=1)
        return mean, (variance / self.count).sqrt()

    def set_dtype(self, dst_type: Any) -> MeanAndError:
        """The states stay float64, whatever the module around them is cast to."""
        return self


class MarginalLikelihood(pl.Callback):
    """At test: `test/nll` = -log p(x) by `num_samples` importance samples, and its standard error over images.

    `test/nll_bpd`, in bits per dimension, where they mean something: under a likelihood over grey levels, or for
    dequantised data. `bits_per_dimension`: true insists on them, and refuses any other likelihood before training.
    """

    def __init__(self, num_samples: int = 200, chunk_size: int = 20, bits_per_dimension: bool = False) -> None:
        if num_samples < 1 or chunk_size < 1:
            raise UserError(f"nll: num_samples {num_samples} and chunk_size {chunk_size} must be at least 1")
        self.num_samples, self.chunk_size = num_samples, chunk_size
        self.bits_per_dimension = bits_per_dimension
        self._nll = MeanAndError()
        self._p_x: Distribution | None = None

    @torch.no_grad()
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch | list[Batch], batch_idx: int
    ) -> None:
        if self.bits_per_dimension and trainer.global_step == 0:
            assert isinstance(pl_module, LatentVariableModel)
            p_x = pl_module.trace(batch[0] if isinstance(batch, list) else batch).p_x
            bits_per_dimension(torch.zeros(()), p_x, _dequantised_levels(trainer, "train"))

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._nll = MeanAndError().to(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, LatentVariableModel)
        self._nll.update(-log_marginal_likelihood(pl_module, batch, self.num_samples, self.chunk_size))
        if batch_idx == 0:  # after the samples above, whose noise it would change
            self._p_x = pl_module.trace(batch).p_x

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        mean, error = self._nll.compute()
        values = {"test/nll": mean.float(), "test/nll_stderr": error.float()}
        levels, p_x = _dequantised_levels(trainer, "test"), self._p_x
        if p_x is not None and (self.bits_per_dimension or is_mass(p_x) or levels is not None):
            values["test/nll_bpd"] = bits_per_dimension(mean, p_x, levels).float()
        pl_module.log_dict(values, rank_zero_only=False)


def _dequantised_levels(trainer: pl.Trainer, split: str) -> int | None:
    levels = getattr(getattr(trainer, "datamodule", None), "dequantised_levels", lambda _: None)
    return levels(split)
