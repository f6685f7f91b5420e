"""How much a code carries: the rate, the distortion, and what each latent dimension has of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from vae_lightning.data import ImageDataModule
from vae_lightning.metrics.evaluator import Evaluator, Finding, mean_draws
from vae_lightning.metrics.likelihood import MeanAndError
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Trace
from vae_lightning.types import Batch


class RateDistortion(Evaluator):
    """R = E_x KL(q(z|x) || p(z)) and D = -E_x E_q log p(x|z), in nats per image: -ELBO = R + D.

    Alemi et al. 2018, "Fixing a broken ELBO" (https://arxiv.org/abs/1711.00464). `test/kl` and minus
    `test/log_likelihood` by samples of their own, with standard errors over images.
    """

    units: ClassVar[Mapping[str, str]] = {"rate": "nats per image", "distortion": "nats per image"}

    def begin(self, model: LatentVariableModel, data: ImageDataModule | None) -> None:
        self._rate, self._distortion = MeanAndError().to(model.device), MeanAndError().to(model.device)

    def update(self, trace: Trace, batch: Batch) -> None:
        self._distortion.update(-trace.log_likelihood().mean(0))
        self._rate.update(torch.stack(list(trace.kl().values())).sum(0))

    def compute(self) -> dict[str, Finding]:
        return {**named("rate", self._rate), **named("distortion", self._distortion)}

    def misfit(self, trace: Trace, data: ImageDataModule | None) -> str | None:
        return None if trace.latents else "the model has no latents"


class LatentUnits(Evaluator):
    """`active_units/<latent>`: how many dimensions have Var_x(E_q[z|x]) > 0.01, over the test images.

    Burda, Grosse & Salakhutdinov 2016 (https://arxiv.org/abs/1509.00519), section 5.2. In the details: that variance,
    and the KL of each dimension, in nats per image with its standard error, where q and p both factorise over the
    dimensions (in closed form, or at the sample). Of a density that does not factorise only the sum exists, which is
    `test/kl/<latent>`.
    """

    units: ClassVar[Mapping[str, str]] = {
        "active_units": "dimensions",
        "variance_of_means": "squared units of the latent",
        "kl_per_dimension": "nats per image",
    }
    threshold = 0.01

    def misfit(self, trace: Trace, data: ImageDataModule | None) -> str | None:
        return None if trace.latents else "the model has no latents"

    def begin(self, model: LatentVariableModel, data: ImageDataModule | None) -> None:
        self._means: dict[str, MeanAndError] = {}
        self._kls: dict[str, MeanAndError] = {}

    def update(self, trace: Trace, batch: Batch) -> None:
        for name, latent in trace.latents.items():
            draws = mean_draws(latent).double()  # [S, B, D]
            mean = draws.mean(0)
            # the square of a mean of S draws is too large by their variance over S
            square = mean.square() - (draws.var(0) / len(draws) if len(draws) > 1 else 0)
            add(torch.stack((mean, square), 1), self._means, name)  # [B, 2, D]
        for name, kl in trace.kl_by_dimension().items():
            add(kl.flatten(1), self._kls, name)

    def compute(self) -> dict[str, Finding]:
        found: dict[str, Finding] = {}
        for name, moments in self._means.items():
            (mean, square), (error, _) = moments.compute()
            variance = (square - mean.square()).where(~error.isnan(), torch.nan)  # of one image it is not known
            active = float((variance > self.threshold).sum())
            found[f"active_units/{name}"] = math.nan if variance.isnan().any() else active
            found[f"variance_of_means/{name}"] = variance.tolist()
        for name, moments in self._kls.items():
            mean, error = (value.flatten() for value in moments.compute())  # torchmetrics makes of [1] a number
            found |= {f"kl_per_dimension/{name}": mean.tolist(), f"kl_per_dimension_stderr/{name}": error.tolist()}
        return found


def add(values: Tensor, to: dict[str, MeanAndError], name: str) -> None:
    """Values [B, *shape] to the mean of that name, which is begun where there is none."""
    if name not in to:
        to[name] = MeanAndError(tuple(values.shape[1:])).to(values.device)
    to[name].update(values)


def named(name: str, metric: MeanAndError) -> dict[str, Finding]:
    """`name` and `name_stderr`, its standard error over examples."""
    mean, error = metric.compute()
    return {name: mean.item(), f"{name}_stderr": error.item()}
