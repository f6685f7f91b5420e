"""What the code says of the image: the rate, cut into mutual information and the aggregate posterior's distance."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, TransformedDistribution

from vae_lightning.data import ImageDataModule
from vae_lightning.distributions import Flowed
from vae_lightning.metrics.estimate import Estimate, mean_and_error
from vae_lightning.metrics.evaluator import Evaluator, Finding, from_all_ranks, in_order
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Latent, Trace
from vae_lightning.types import Batch, UserError

_AT_THE_LIMIT = 0.05  # nats below log N
_NUMBERS_AT_ONCE = 2**21  # of the differences z_i - mu_n: 8 MiB, which a cache still holds


class Information(Evaluator):
    """I(x;z) = E_x KL(q(z|x) || q(z)) and the gap KL(q(z) || p(z)), q(z) = 1/N sum_n q(z|x_n): they add up to the rate.

    Hoffman & Johnson 2016, "ELBO surgery" (http://approximateinference.org/accepted/HoffmanJohnson2016.pdf); the
    decomposition is exact at the same samples. Estimator: q(z) is the mixture over all N test images, with nothing left
    out; the outer mean is over one z ~ q(z|x_i) for each of `num_points` images, evenly spread over the test set, and
    has the standard error stated. Without bias for the N images themselves. Taken for the distribution that these were
    drawn from, I is too low (it cannot exceed log N, `information_limit`) and the gap too high, by as much.

    Within 0.05 nats of log N the error of I is left out: nearly every image gives log N to the last digit, and all that
    is uncertain lies in the few whose codes meet others', of which the `num_points` hold too few to tell how many there
    are. What the number then says is that I is at least about log N.

    For every latent whose q(z|x) depends on x alone; the gap where its prior depends on nothing.
    """

    units: ClassVar[Mapping[str, str]] = {"mutual_information": "nats", "aggregate_gap": "nats"}

    def __init__(self, num_points: int = 1000) -> None:
        if num_points < 2:
            raise UserError(f"Information: num_points is {num_points}; it must be at least 2")
        self.num_points = num_points

    def misfit(self, trace: Trace, data: ImageDataModule | None) -> str | None:
        reasons = [f"of {name} {self._misfit(latent)}" for name, latent in trace.latents.items()]
        fitting = [latent for latent in trace.latents.values() if self._misfit(latent) is None]
        return None if fitting else "; ".join(reasons) or "the model has no latents"

    @staticmethod
    def _misfit(latent: Latent) -> str | None:
        if len(latent.q.batch_shape) != 1:
            return "q depends on another latent, so that q(z) is no mixture over images alone"
        if isinstance(latent.q, (Flowed, TransformedDistribution)):
            return "q is a flow, whose density at the codes of other images costs too much"
        try:
            latent.q.log_prob(latent.z[0][:, None])
        except (NotImplementedError, UserError):
            return "q has no density at the codes of other images"
        return None

    def begin(self, model: LatentVariableModel, data: ImageDataModule | None) -> None:
        self._seen: dict[str, list[_Seen]] = {}
        self._fits: dict[str, bool] = {}

    def update(self, trace: Trace, batch: Batch) -> None:
        for name, latent in trace.latents.items():
            if name not in self._fits:  # asked once: it evaluates q at every pair of images
                self._fits[name] = self._misfit(latent) is None
            if self._fits[name]:
                z = latent.z[0]
                self._seen.setdefault(name, []).append(_Seen(z, latent.q.log_prob(z), latent.q, latent.p))

    def compute(self) -> dict[str, Finding]:
        found: dict[str, Finding] = {}
        for name, seen in self._seen.items():
            z, own = in_order([s.z for s in seen]), in_order([s.log_q for s in seen])
            chosen = torch.linspace(0, len(z) - 1, min(self.num_points, len(z)), device=z.device).round().long()
            log_q_z = log_aggregate([s.q for s in seen], z[chosen], len(z))
            limit = math.log(len(z))
            information = mean_and_error(own[chosen].double() - log_q_z)
            if information.mean > limit - _AT_THE_LIMIT:
                information = information._replace(error=math.nan)
            found |= _named(f"mutual_information/{name}", information)
            prior = seen[0].p
            if len(prior.batch_shape) == 0:
                found |= _named(f"aggregate_gap/{name}", mean_and_error(log_q_z - prior.log_prob(z[chosen]).double()))
            found["information_limit"] = (
                f"log {len(z)} = {limit:.3f} nats: I cannot be measured above it, and within {_AT_THE_LIMIT} of it has "
                "no standard error"
            )
        return found


class _Seen(NamedTuple):
    """Of a batch and a latent: z [B, *event], log q(z|x) [B], q and p."""

    z: Tensor
    log_q: Tensor
    q: Distribution
    p: Distribution


def log_aggregate(posteriors: Iterable[Distribution], z: Tensor, num_images: int) -> Tensor:
    """log q(z_i) = log 1/N sum_n q(z_i|x_n) of points z [M, *event]: float64 [M]; the sum is over the ranks too."""
    log_sum = torch.full((len(z),), -math.inf, dtype=torch.float64, device=z.device)
    for q in posteriors:
        step = max(1, _NUMBERS_AT_ONCE // (q.batch_shape.numel() * q.event_shape.numel()))
        densities = [q.log_prob(part[:, None]).double().logsumexp(1) for part in z.split(step)]  # [m, B] -> [m]
        log_sum = torch.logaddexp(log_sum, torch.cat(densities))
    return torch.stack(from_all_ranks(log_sum)).logsumexp(0) - math.log(num_images)


def _named(name: str, found: Estimate) -> dict[str, Finding]:
    return {name: found.mean, f"{name}_stderr": found.error}
