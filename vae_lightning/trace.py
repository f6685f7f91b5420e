"""What one run of a model leaves behind. A model makes a `Trace`, an objective reads it; nothing else connects them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from vae_lightning.types import UserError


@dataclass(frozen=True)
class Latent:
    """z ~ q(z|x) with the densities that judge it.

    Shapes: `z` is [K, B, *event] for K samples of each of B examples; `q` has batch shape [B] (or [K, B] where it
    depends on an earlier sample); `p` has batch shape [], [B] or [K, B].
    `p_depends_on_z`: p(z|z') was made of a z' that had been drawn given this very z, as in bottom-up inference. Then
    KL(q || p) in closed form would average over a z that this p has not seen, which is another number: it is sampled.
    """

    z: Tensor
    q: Distribution
    p: Distribution
    p_depends_on_z: bool = False

    def log_ratio(self) -> Tensor:
        """log q(z|x) - log p(z), at the sample: [K, B] nats."""
        return self.q.log_prob(self.z) - self.p.log_prob(self.z)

    def kl(self) -> Tensor:
        """KL(q || p) = E_q[log q(z|x) - log p(z)] in nats: in closed form where torch has one, else at the sample."""
        closed_form = self._closed_form_kl()
        return self.log_ratio() if closed_form is None else closed_form

    @property
    def kl_estimator(self) -> str:
        """`closed form` or `sampled`: what `kl` is. The model says it once per run, for the two differ in variance."""
        return "sampled" if self._closed_form_kl() is None else "closed form"

    def pointwise(self) -> Latent | None:
        """The latent dimension by dimension, `kl` and `log_ratio` [..., *event]; None where q or p is no product."""
        q, p = factors(self.q), factors(self.p)
        return None if q is None or p is None else replace(self, q=q, p=p)

    def _closed_form_kl(self) -> Tensor | None:
        if self.p_depends_on_z:
            return None
        try:
            return kl_divergence(self.q, self.p)
        except NotImplementedError:
            return None


@dataclass(frozen=True)
class Trace:
    """x, p(x|z) and every latent by name. `p_x` has batch shape [K, B] and the event shape of `x` ([B, *event])."""

    x: Tensor
    p_x: Distribution
    latents: Mapping[str, Latent] = field(default_factory=dict)
    _known: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def log_likelihood(self) -> Tensor:
        """log p(x|z), at the samples: [K, B] nats."""
        if "log_likelihood" not in self._known:  # once, however many terms of an objective ask for it
            self._known["log_likelihood"] = self.p_x.log_prob(self.x)
        return self._known["log_likelihood"]

    def kl(self) -> dict[str, Tensor]:
        """KL(q || p) of every latent, averaged over the samples where it depends on them: [B] nats each."""
        shape = self.p_x.batch_shape  # [K, B]
        kls = {name: latent.kl() for name, latent in self.latents.items()}
        return {n: kl.mean(0) if kl.dim() == len(shape) else kl.expand(shape[1:]) for n, kl in kls.items()}

    def kl_by_dimension(self) -> dict[str, Tensor]:
        """KL(q_d || p_d) of every dimension of the latents whose q and p are products: [B, *event] nats each."""
        parts = {name: (latent.z.shape, latent.pointwise()) for name, latent in self.latents.items()}
        return {name: one.kl().expand(shape).mean(0) for name, (shape, one) in parts.items() if one is not None}

    def log_weight(self) -> Tensor:
        """log w = log p(x|z) + log p(z) - log q(z|x), with no closed form anywhere: [K, B] nats."""
        log_w = self.log_likelihood()
        for latent in self.latents.values():
            log_w = log_w - latent.log_ratio()
        return log_w

    @torch.no_grad()
    def outside_support(self) -> float | None:
        """A value of x that p(x|z) gives no probability to, or an infinite density; None where there is none.

        torch's supports have ends, such as 0 and 1 for Beta, where the density is 0 or infinite. Infinite alone: a
        density that is NaN says that the networks are. Reads the tensor: not for every step.
        """
        constraint, pointwise = self.p_x.support, factors(self.p_x)
        assert constraint is not None
        bad = ~getattr(constraint, "base_constraint", constraint).check(self.x).expand(self.x.shape)
        if pointwise is not None and not bad.any():  # elsewhere a density need not answer
            bad = pointwise.log_prob(self.x).isinf().any(0)  # [K, B, *event] -> [B, *event]
        values = self.x[bad]
        return values[0].item() if torch.numel(values) else None


def draw(q: Distribution, *sample_shape: int) -> Tensor:
    """z ~ q, with the pathwise gradient that trains an encoder: [*sample_shape, *batch, *event]."""
    if not q.has_rsample:
        raise UserError(
            f"posterior {kind(q)}: a sample of it has no pathwise gradient, so an encoder could not be trained through "
            "it; choose DiagonalNormal, for classes RelaxedCategorical, or Categorical with straight_through=true "
            "(biased)"
        )
    return q.rsample(torch.Size(sample_shape))


def factors(distribution: Distribution) -> Distribution | None:
    """q_d of q(z) = prod_d q_d(z_d), with batch shape [..., *event]; None where the dimensions are not independent."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return None if distribution.event_shape else distribution


def has_mean(distribution: Distribution) -> bool:
    """Whether its class says what the mean is: asked of the class, for the mean of many levels takes a while."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return type(distribution).mean is not Distribution.mean


def kind(distribution: Distribution) -> str:
    """What a message calls a distribution: the family or prior that made it, else the class within the wrappers."""
    for wrapped in ("base_dist", "base"):
        if not hasattr(distribution, "made_by"):
            distribution = getattr(distribution, wrapped, distribution)
    return getattr(distribution, "made_by", type(distribution).__name__)
