"""Importance-sampled estimates of the marginal likelihood log p(x), the number that papers report."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributions import Distribution
from torchmetrics import Metric

from vae_lightning.distributions import bits_per_dimension, is_mass, num_unknown
from vae_lightning.metrics.evaluator import log_numbers
from vae_lightning.models import LatentVariableModel
from vae_lightning.types import Batch, Shape, UserError

_ROWS_ON_CPU = 1000
"""Images times samples in one pass on a CPU: few enough that a layer's outputs of an MNIST-sized network fit the cache,
and enough for matrix products at full speed."""


class ImportanceEstimate(NamedTuple):
    """`log_p` in nats, the effective number of the K samples, how many numbers of x are unknown: float64 [B] each."""

    log_p: Tensor
    effective_samples: Tensor
    num_unknown: Tensor


@torch.no_grad()
def importance_estimate(
    model: LatentVariableModel, batch: Batch, num_samples: int, chunk_size: int = 20
) -> ImportanceEstimate:
    """log 1/K sum_k w_k and (sum_k w_k)^2 / sum_k w_k^2, with w_k = p(x, z_k) / q(z_k|x), z_k ~ q(z|x).

    The first number is on average a lower bound of log p(x), tighter as K grows (Burda et al. 2016,
    https://arxiv.org/abs/1509.00519). The second is the effective sample size of Kong (1992). It is 1 if one
    sample outweighs all others, so that the bound is loose, and K if q(z|x) is the posterior. Sums are in float64 and
    in log space; each weight has the model's own full precision.

    Args:
        model: the model.
        batch: the images, [B, C, H, W] under `x`.
        num_samples: K.
        chunk_size: the number of samples evaluated at once, which bounds the memory. On a CPU a pass is also limited to
            a thousand images times samples.
    """
    num_images = len(batch["x"])
    at_once = max(1, _ROWS_ON_CPU // min(chunk_size, num_samples)) if batch["x"].is_cpu else num_images
    parts = [slice(start, start + at_once) for start in range(0, num_images, at_once)]
    estimates = [
        _streamed(model, {name: values[part] for name, values in batch.items()}, num_samples, chunk_size)
        for part in parts
    ]
    return ImportanceEstimate(*map(torch.cat, zip(*estimates, strict=True)))


def _streamed(model: LatentVariableModel, batch: Batch, num_samples: int, chunk_size: int) -> ImportanceEstimate:
    """`importance_estimate` of all images of `batch` at once, `chunk_size` samples at a time."""
    log_sum = torch.full((len(batch["x"]),), -math.inf, dtype=torch.float64, device=batch["x"].device)
    log_squares = log_sum
    for start in range(0, num_samples, chunk_size):
        trace = model.trace(batch, min(chunk_size, num_samples - start))
        log_w = trace.log_weight().double()  # [chunk, B]
        log_sum = torch.logaddexp(log_sum, torch.logsumexp(log_w, dim=0))
        log_squares = torch.logaddexp(log_squares, torch.logsumexp(2 * log_w, dim=0))
    unknown = num_unknown(trace.p_x).to(log_sum.device).expand(trace.p_x.batch_shape).mean(0)  # [K, B] -> [B]
    return ImportanceEstimate(log_sum - math.log(num_samples), torch.exp(2 * log_sum - log_squares), unknown)


def log_marginal_likelihood(model: LatentVariableModel, batch: Batch, num_samples: int, chunk_size: int = 20) -> Tensor:
    """log 1/K sum_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x), K = `num_samples`: float64 [B], in nats."""
    return importance_estimate(model, batch, num_samples, chunk_size).log_p


class MeanAndError(Metric):
    """Mean and standard error over examples, exact over any number of batches and ranks (sums in float64).

    The values of a batch are [B, *shape]; mean and error are [*shape]. The error of fewer than two examples is NaN.

    Args:
        shape: the shape of one example's value.
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, shape: Shape = ()) -> None:
        super().__init__()
        for name, size in (("count", ()), ("total", shape), ("squares", shape)):
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        values = values.double()
        self.count += len(values)
        self.total += values.sum(0)
        self.squares += values.square().sum(0)

    def compute(self) -> tuple[Tensor, Tensor]:
        mean = self.total / self.count
        variance = (self.squares / self.count - mean**2).clamp(min=0) * self.count / (self.count - 1).clamp(min=1)
        return mean, (variance / self.count).sqrt().where(self.count > 1, torch.nan)

    def set_dtype(self, dst_type: Any) -> MeanAndError:
        """Keep the states in float64 if the module around them is cast to another type."""
        return self


class MarginalLikelihood(pl.Callback):
    """Estimate `test/nll` = -log p(x) at test by importance sampling, in nats with a standard error over images.

    The callback logs two further numbers, each with its standard error:

    - `test/nll_ess`: the effective sample size, averaged over images. If it is near 1, more samples lower `test/nll`.
    - `test/nll_bpd`: bits per dimension, for a likelihood over grey levels or for dequantised data; not if the model
      explains more than x (`Trace.observed`), because `test/nll` is then of all of it.

    Args:
        num_samples: The number K of importance samples for each image; 0 makes no estimate and takes no time.
        chunk_size: The number of samples evaluated at once; a smaller number takes less memory.
        bits_per_dimension: Require `test/nll_bpd`: a likelihood without bits per dimension is refused before training.
    """

    def __init__(self, num_samples: int = 200, chunk_size: int = 20, bits_per_dimension: bool = False) -> None:
        if num_samples < 0 or chunk_size < 1:
            raise UserError(
                f"nll: num_samples {num_samples} must be at least 1, or 0 for no estimate; chunk_size {chunk_size} at "
                "least 1"
            )
        if bits_per_dimension and not num_samples:
            raise UserError("nll: bits_per_dimension are of the estimate, which num_samples 0 leaves out")
        self.num_samples, self.chunk_size = num_samples, chunk_size
        self.bits_per_dimension = bits_per_dimension
        self.nll_of_examples: list[Tensor] = []  # [B] for each test batch of this rank, on the CPU
        self._nll, self._ess, self._unknown = MeanAndError(), MeanAndError(), MeanAndError()
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
        self.nll_of_examples = []
        self._nll, self._ess, self._unknown = (MeanAndError().to(pl_module.device) for _ in range(3))

    @torch.no_grad()
    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if (
            batch_idx == 0 and self.num_samples
        ):  # at the start, so that this trace does not change the noise of the callbacks at the batch's end
            assert isinstance(pl_module, LatentVariableModel)
            trace = pl_module.trace(batch)
            if self.bits_per_dimension and trace.observed:
                raise UserError(
                    f"nll: bits_per_dimension are of x alone, and nll is of x, {', '.join(trace.observed)}; leave the "
                    "setting out"
                )
            self._p_x = None if trace.observed else trace.p_x  # nll of x and a reward is no number of bits of x

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not self.num_samples:
            return
        assert isinstance(pl_module, LatentVariableModel)
        found = importance_estimate(pl_module, batch, self.num_samples, self.chunk_size)
        self.nll_of_examples.append(-found.log_p.cpu())
        self._nll.update(-found.log_p)
        self._ess.update(found.effective_samples)
        self._unknown.update(found.num_unknown)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self.num_samples:
            return
        mean, error = self._nll.compute()
        ess, ess_error = self._ess.compute()
        dimensions = self._unknown.compute()[0].item()
        values = {"test/nll": mean, "test/nll_stderr": error, "test/nll_ess": ess, "test/nll_ess_stderr": ess_error}
        levels, p_x = _dequantised_levels(trainer, "test"), self._p_x
        if p_x is not None and (self.bits_per_dimension or is_mass(p_x) or levels is not None):
            bits = bits_per_dimension(torch.stack((mean, mean + error)), p_x, levels, dimensions)
            values |= {"test/nll_bpd": bits[0], "test/nll_bpd_stderr": bits[1] - bits[0]}
        log_numbers(pl_module, {name: value.item() for name, value in values.items()})


def _dequantised_levels(trainer: pl.Trainer, split: str) -> int | None:
    levels = getattr(getattr(trainer, "datamodule", None), "dequantised_levels", lambda _: None)
    return levels(split)
