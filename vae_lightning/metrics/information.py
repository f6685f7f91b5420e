"""The rate, split into mutual information and the distance of the aggregate posterior from the prior."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from vae_lightning.data import DataModule
from vae_lightning.distributions import Flowed
from vae_lightning.metrics.estimate import Estimate, mean_and_error
from vae_lightning.metrics.evaluator import Evaluator, Finding, from_all_ranks, in_order
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Latent, Trace, is_masked
from vae_lightning.types import Batch, UserError

_AT_THE_LIMIT = 0.05  # nats below log N
_NUMBERS_AT_ONCE = 2**21  # differences z_i - mu_n: 8 MiB, which fit a cache


class Information(Evaluator):
    """Rate = I(x;z) + gap: I = E_x KL(q(z|x) || q(z)), gap = KL(q(z) || p(z)), q(z) = 1/N sum_n q(z|x_n).

    Use the two numbers to see how much of the rate is information about the image, and how far the codes as a whole are
    from the prior. Hoffman & Johnson 2016, "ELBO surgery"
    (http://approximateinference.org/accepted/HoffmanJohnson2016.pdf); the sum is exact at the same samples. The metric
    covers every latent whose q(z|x) depends on x alone; the gap needs a prior that depends on nothing.

    q(z) is the mixture over all N test images. The outer mean is over one z ~ q(z|x_i) of `num_points` images. Both
    numbers are unbiased for these N images. As estimates for the data's distribution, I is too low (its maximum is
    log N, `information_limit`) and the gap is too high by the same amount.

    Within 0.05 nats of log N the standard error of I is unknown: nearly every image gives log N to the last digit, and
    the uncertainty lies in the few images whose codes overlap with others. I is then at least about log N.

    Args:
        num_points: The number of images of the outer mean, evenly spread over the test set.
    """

    units: ClassVar[Mapping[str, str]] = {"mutual_information": "nats", "aggregate_gap": "nats"}

    def __init__(self, num_points: int = 1000) -> None:
        if num_points < 2:
            raise UserError(f"Information: num_points is {num_points}; it must be at least 2")
        self.num_points = num_points

    def why_not_applicable(self, trace: Trace, data: DataModule | None) -> str | None:
        if trace.log_shares is not None:
            return "the model enumerates a variable, so that q(z) is no mixture over images alone"
        reasons = [f"latent {name}: {self._why_not_measurable(latent)}" for name, latent in trace.latents.items()]
        measurable = [latent for latent in trace.latents.values() if self._why_not_measurable(latent) is None]
        return None if measurable else "; ".join(reasons) or "the model has no latents"

    @staticmethod
    def _why_not_measurable(latent: Latent) -> str | None:
        if latent.exists is not None:
            return "z does not exist for every image"
        if is_masked(latent.q):
            return "z has other positions in each example"
        if len(latent.q.batch_shape) != 1:
            return "q depends on another latent, so that q(z) is no mixture over images alone"
        if isinstance(latent.q, (Flowed, TransformedDistribution)):
            return "q is a flow, whose density at the codes of other images costs too much"
        try:
            latent.q.log_prob(latent.z[0][:, None])
        except (NotImplementedError, UserError):
            return "q has no density at the codes of other images"
        return None

    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        self._seen: dict[str, list[_Seen]] = {}
        self._is_measurable: dict[str, bool] = {}

    def update(self, trace: Trace, batch: Batch) -> None:
        for name, latent in trace.latents.items():
            if name not in self._is_measurable:  # checked once, because the check evaluates q at every pair of images
                self._is_measurable[name] = self._why_not_measurable(latent) is None
            if self._is_measurable[name]:
                z = latent.z[0]
                self._seen.setdefault(name, []).append(_Seen(z, latent.q.log_prob(z), latent.q, latent.p))

    def compute(self) -> dict[str, Finding]:
        found: dict[str, Finding] = {}
        for name, seen in self._seen.items():
            z, log_q = in_order([s.z for s in seen]), in_order([s.log_q for s in seen])
            chosen = torch.linspace(0, len(z) - 1, min(self.num_points, len(z)), device=z.device).round().long()
            log_q_z = log_aggregate([s.q for s in seen], z[chosen], len(z))
            limit = math.log(len(z))
            information = mean_and_error(log_q[chosen].double() - log_q_z)
            if information.mean > limit - _AT_THE_LIMIT:
                information = information._replace(error=math.nan)
            found |= _with_stderr(f"mutual_information/{name}", information)
            prior = seen[0].p
            if len(prior.batch_shape) == 0:
                found |= _with_stderr(
                    f"aggregate_gap/{name}", mean_and_error(log_q_z - prior.log_prob(z[chosen]).double())
                )
            found["information_limit"] = (
                f"log {len(z)} = {limit:.3f} nats: the mutual information cannot be measured above it, and has no "
                f"standard error within {_AT_THE_LIMIT} of it"
            )
        return found


class _Seen(NamedTuple):
    """One latent of one batch: z [B, *event], log q(z|x) [B], q and p."""

    z: Tensor
    log_q: Tensor
    q: Distribution
    p: Distribution


def log_aggregate(posteriors: Iterable[Distribution], z: Tensor, num_images: int) -> Tensor:
    """log q(z_i) = log 1/N sum_n q(z_i|x_n) at the points z [M, *event]: float64 [M]. The sum includes all ranks."""
    log_sum = torch.full((len(z),), -math.inf, dtype=torch.float64, device=z.device)
    for q in posteriors:
        step = max(1, _NUMBERS_AT_ONCE // (q.batch_shape.numel() * q.event_shape.numel()))
        densities = [q.log_prob(part[:, None]).double().logsumexp(1) for part in z.split(step)]  # [m, B] -> [m]
        log_sum = torch.logaddexp(log_sum, torch.cat(densities))
    return torch.stack(from_all_ranks(log_sum)).logsumexp(0) - math.log(num_images)


def _with_stderr(name: str, found: Estimate) -> dict[str, Finding]:
    return {name: found.mean, f"{name}_stderr": found.error}
