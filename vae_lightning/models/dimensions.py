"""The dimensions of a model's latents: how much each of them is used, and where its values lie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_lightning.distributions.paths import limits
from vae_lightning.models.codes import DRAWS, estimated, posterior_codes
from vae_lightning.models.looking import Looking
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import Batch, UserError

DEAD = 0.01
"""Nats per image: a dimension with a smaller KL is dead. Ten dimensions at this limit have 0.1 nats, the limit below
which a whole latent counts as collapsed."""
_ROWS_AT_ONCE, _PRIOR_DRAWS = 100, 4000


@dataclass(frozen=True)
class Dimension:
    """One dimension of a latent, measured over N images.

    Args:
        latent: The name of the latent.
        number: The number of the dimension, from 0, in the flattened latent.
        kl: E_x KL(q_d(z|x) || p_d(z)) in nats per image; of several objects their sum.
        estimator: How `kl` was computed: `closed form`; `sampled`, as log q_d - log p_d at one z an image; `moments`.
            The KL of one dimension exists only if q and p have independent dimensions. If not, `moments` is
            given instead: the KL of two normals that have the means and the variances of q_d and p_d.
        mean: The mean of the aggregate posterior 1/N sum_n q(z_d|x_n).
        std: Its standard deviation.
        low, high: The values that z_d can have.
        event_shape: The shape of the latent without its objects, for the dimension's name.
    """

    latent: str
    number: int
    kl: float
    estimator: str
    mean: float
    std: float
    low: float = -math.inf
    high: float = math.inf
    event_shape: tuple[int, ...] = ()

    @property
    def is_exact(self) -> bool:
        """Whether `kl` estimates the KL of this dimension, and no substitute."""
        return self.estimator != "moments"

    @property
    def is_dead(self) -> bool:
        return self.kl < DEAD

    def __str__(self) -> str:
        """The name in words for a latent [S, D], such as `slot 2, dimension 3` of `slots`; else the short name."""
        if len(self._place) != 2:
            return self.short_name
        return f"{self.latent.removesuffix('s')} {self._place[0]}, dimension {self._place[1]}"

    @property
    def short_name(self) -> str:
        """The index in the latent: `z[3]`, or `slots[2, 3]`."""
        return f"{self.latent}[{', '.join(map(str, self._place))}]"

    @property
    def _place(self) -> tuple[int, ...]:
        return tuple(map(int, np.unravel_index(self.number, self.event_shape or (self.number + 1,))))

    def values(self, steps: int, reach: float) -> Tensor:
        """Return `steps` values from mean - reach std to mean + reach std, within what z_d can be: [steps].

        Args:
            steps: The number of values.
            reach: The distance of the ends, in standard deviations of the aggregate posterior.
        """
        return (self.mean + torch.linspace(-reach, reach, steps) * self.std).clamp(self.low, self.high)


@torch.no_grad()
def dimensions(model: Looking, batch: Batch) -> list[Dimension]:
    """Return every dimension of every latent that is not enumerated, the largest KL first.

    Use it to see which dimensions of a trained model carry information. Call `eval()` and seed torch first.

    Args:
        model: The model.
        batch: N images, and what stands beside them: a few hundred that are spread over the data.

    Raises:
        UserError: if the model has no such latent.
    """
    sums: dict[str, list[Tensor]] = {}
    traces = list(_traces(model, batch))
    for trace, part in traces:
        for name, kl in _kls(model, trace, part).items():
            sums.setdefault(name, []).append(kl.reshape(len(part["x"]), -1))  # [B, D]
    latents = traces[0][0].latents
    found = []
    for name, kls in sums.items():
        kl = torch.cat(kls).double().mean(0).clamp(min=0)  # [D]
        z = torch.cat([_existing(trace, trace.latents[name]) for trace, _ in traces]).double()  # [M, D]
        numbers = zip(kl.tolist(), z.mean(0).tolist(), z.std(0, correction=0).tolist(), strict=True)
        pointwise, ends = latents[name].pointwise(), limits(latents[name].q)
        estimator = "moments" if pointwise is None else pointwise.kl_estimator
        shape = tuple(latents[name].q.event_shape)
        found += [
            Dimension(name, i, kl_i, estimator, mean, std, *ends, shape) for i, (kl_i, mean, std) in enumerate(numbers)
        ]
    if not found:
        raise UserError(f"{type(model).__name__} has no latent whose dimensions could be looked at")
    return sorted(found, key=lambda one: -one.kl)


def _traces(model: Looking, batch: Batch) -> Iterator[tuple[Trace, Batch]]:
    for first in range(0, len(batch["x"]), _ROWS_AT_ONCE):
        part = {name: values[first : first + _ROWS_AT_ONCE] for name, values in batch.items()}
        yield model.checked_trace(part), part


def _kls(model: Looking, trace: Trace, batch: Batch) -> dict[str, Tensor]:
    """The KL of every dimension, or its substitute: [B, *event] by latent."""
    exact = {name: kl for name, kl in trace.kl_by_dimension().items() if not trace.latents[name].enumerated}
    others = {name: latent for name, latent in trace.continuous().items() if name not in exact}
    if not others:
        return exact
    codes = posterior_codes(model.trace, batch, trace)
    drawn = set(estimated(trace))
    return exact | {
        name: moment_kl(codes[f"{name}_mean"], codes[f"{name}_scale"], latent.p, DRAWS if name in drawn else 0)
        for name, latent in others.items()
    }


def moment_kl(mean: Tensor, scale: Tensor, p: Distribution, num_draws: int = 0) -> Tensor:
    """Return KL(N(mean, scale^2) || N(m, s^2)) with the mean m and the deviation s of p, by dimension: nats.

    It stands in for the KL of a dimension where q or p does not factorise, and equals it where both are normal. The
    bias of moments that were estimated from draws is removed.

    Args:
        mean, scale: The moments of q, [B, *event].
        p: The prior.
        num_draws: The number of draws that the moments of q were estimated from; 0 if they are exact.
    """
    p_mean, p_scale = _moments(p)
    square = (mean - p_mean).square()
    log_scale = scale.clamp(min=1e-12).log()
    if num_draws:
        square = square - scale.square() / num_draws  # E of the squared error of the mean
        log_scale = log_scale + 0.5 / (num_draws - 1)  # E log of the variance of n draws is too small by 1 / (n - 1)
    return p_scale.log() - log_scale + (scale.square() + square) / (2 * p_scale.square()) - 0.5


def _moments(p: Distribution) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of p, [..., *event]; from 4,000 draws if p knows none."""
    try:
        return p.mean, p.stddev
    except NotImplementedError:
        draws = copy(p).sample(torch.Size((_PRIOR_DRAWS,)))
        return draws.mean(0), draws.std(0)


def _existing(trace: Trace, latent: Latent) -> Tensor:
    """Values of z in the likeliest row of each example, of the objects that exist, of all if none does: [M, D]."""
    z = trace.row(latent.z).reshape(-1, latent.q.event_shape.numel())  # [B objects, D]
    if latent.exists is None:
        return z
    exists = trace.row(latent.exists).bool().reshape(-1)
    return z[exists] if exists.any() else z
