"""The rate, the distortion, and the activity and KL of each latent dimension."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from vae_lightning.data import DataModule
from vae_lightning.metrics.evaluator import Evaluator, Finding, mean_draws
from vae_lightning.metrics.likelihood import MeanAndError
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Trace
from vae_lightning.types import Batch


class RateDistortion(Evaluator):
    """R = E_x KL(q(z|x) || p(z)) and D = -E_x E_q log p(x|z), in nats per image: -ELBO = R + D.

    Use both numbers to compare models at equal ELBO. They estimate `test/kl` and minus `test/log_likelihood` from
    further samples, with standard errors over images. Alemi et al. 2018, "Fixing a broken ELBO"
    (https://arxiv.org/abs/1711.00464).
    """

    units: ClassVar[Mapping[str, str]] = {"rate": "nats per image", "distortion": "nats per image"}

    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        self._rate, self._distortion = MeanAndError().to(model.device), MeanAndError().to(model.device)

    def update(self, trace: Trace, batch: Batch) -> None:
        self._distortion.update(-trace.mean(trace.log_likelihood()))
        self._rate.update(torch.stack(list(trace.kl().values())).sum(0))

    def compute(self) -> dict[str, Finding]:
        return {**with_stderr("rate", self._rate), **with_stderr("distortion", self._distortion)}

    def why_not_applicable(self, trace: Trace, data: DataModule | None) -> str | None:
        return None if trace.latents else "the model has no latents"


class LatentUnits(Evaluator):
    """`active_units/<latent>`: the number of dimensions with Var_x(E_q[z|x]) > 0.01, over the test images.

    Use the count to see how many dimensions carry information. Burda, Grosse & Salakhutdinov 2016
    (https://arxiv.org/abs/1509.00519), section 5.2. The details hold this variance for each dimension and, if q and p
    both factorise over the dimensions, the KL of each dimension in nats per image with its standard error. If q or p
    does not factorise, only the sum exists: `test/kl/<latent>`.
    """

    units: ClassVar[Mapping[str, str]] = {
        "active_units": "dimensions",
        "variance_of_means": "squared units of the latent",
        "kl_per_dimension": "nats per image",
    }
    threshold = 0.01

    def why_not_applicable(self, trace: Trace, data: DataModule | None) -> str | None:
        return None if trace.continuous() else "the model has no latent with dimensions in every row"

    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        self._means: dict[str, MeanAndError] = {}
        self._kls: dict[str, MeanAndError] = {}

    def update(self, trace: Trace, batch: Batch) -> None:
        for name, latent in trace.continuous().items():
            draws = mean_draws(trace, latent).double()  # [S, B, D]
            mean = draws.mean(0)
            # the squared mean of S draws is too large, on average by their variance / S
            square = mean.square() - (draws.var(0) / len(draws) if len(draws) > 1 else 0)
            update_mean(self._means, name, torch.stack((mean, square), 1))  # [B, 2, D]
        for name, kl in trace.kl_by_dimension().items():
            if name not in self._means:
                continue
            update_mean(self._kls, name, kl.reshape(len(kl), -1))

    def compute(self) -> dict[str, Finding]:
        found: dict[str, Finding] = {}
        for name, moments in self._means.items():
            (mean, square), (error, _) = moments.compute()
            variance = (square - mean.square()).where(~error.isnan(), torch.nan)  # unknown for one image
            active = float((variance > self.threshold).sum())
            found[f"active_units/{name}"] = math.nan if variance.isnan().any() else active
            found[f"variance_of_means/{name}"] = variance.tolist()
        for name, moments in self._kls.items():
            mean, error = (value.flatten() for value in moments.compute())  # torchmetrics returns [1] as a scalar
            found |= {f"kl_per_dimension/{name}": mean.tolist(), f"kl_per_dimension_stderr/{name}": error.tolist()}
        return found


def update_mean(means: dict[str, MeanAndError], name: str, values: Tensor) -> None:
    """Add the values [B, *shape] to the mean called `name`; create the mean at its first values."""
    if name not in means:
        means[name] = MeanAndError(tuple(values.shape[1:])).to(values.device)
    means[name].update(values)


def with_stderr(name: str, metric: MeanAndError) -> dict[str, Finding]:
    """The mean as `name` and its standard error over examples as `name_stderr`."""
    mean, error = metric.compute()
    return {name: mean.item(), f"{name}_stderr": error.item()}
