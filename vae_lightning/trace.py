"""The record of one run of a model. A model makes a `Trace` and an objective reads it; nothing else connects them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, kl_divergence

from vae_lightning.types import UserError


@dataclass(frozen=True)
class Latent:
    """A sample z ~ q(z|x), with q(z|x) and p(z).

    Args:
        z: The samples, [K, B, *event]: K for each of B examples.
        q: The posterior; its batch shape is [B], or [K, B] if q depends on a sample of another latent.
        p: The prior; its batch shape is [], [B] or [K, B].
        p_depends_on_z: Whether p(z|z') was made from a z' that was drawn given this z, as in bottom-up inference. The
            closed form of KL(q || p) would then average over values of z that this p has not seen, which is a different
            number. So `kl` samples instead.
    """

    z: Tensor
    q: Distribution
    p: Distribution
    p_depends_on_z: bool = False

    def log_ratio(self) -> Tensor:
        """log q(z|x) - log p(z) at the sample: [K, B] nats."""
        return self.q.log_prob(self.z) - self.p.log_prob(self.z)

    def kl(self) -> Tensor:
        """KL(q || p) = E_q[log q(z|x) - log p(z)] in nats, with the batch shape of q and p broadcast.

        The closed form is used if torch has one; otherwise the value at the sample, [K, B].
        """
        closed_form = self._closed_form_kl()
        return self.log_ratio() if closed_form is None else closed_form

    @property
    def kl_estimator(self) -> str:
        """`closed form` or `sampled`: how `kl` is computed. A model reports this once per run: the variances differ."""
        return "sampled" if self._closed_form_kl() is None else "closed form"

    def pointwise(self) -> Latent | None:
        """The same latent, dimension by dimension: its `kl` and `log_ratio` have shape [..., *event].

        None if the dimensions of q or of p are not independent.
        """
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
    """x, p(x|z) and every latent.

    Args:
        x: The data, [B, *event].
        p_x: p(x|z), with batch shape [K, B] and the event shape of one example.
        latents: The latents by name.
    """

    x: Tensor
    p_x: Distribution
    latents: Mapping[str, Latent] = field(default_factory=dict)
    _computed: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def log_likelihood(self) -> Tensor:
        """log p(x|z) at the samples: [K, B] nats.

        The result is kept, because several terms of an objective ask for it.
        """
        if "log_likelihood" not in self._computed:
            self._computed["log_likelihood"] = self.p_x.log_prob(self.x)
        return self._computed["log_likelihood"]

    def kl(self) -> dict[str, Tensor]:
        """KL(q || p) of every latent: [B] nats each.

        `Latent.kl` has shape [K, B] if it depends on the samples (a sampled KL, or a q or p that depends on another
        latent's sample), and shape [B] or [] if not. The rule is therefore: two dimensions mean that the first is K,
        and the KL is averaged over K; fewer dimensions mean that all samples share the KL, which is expanded to [B].
        """
        shape = self.p_x.batch_shape  # [K, B]
        kls = {name: latent.kl() for name, latent in self.latents.items()}
        return {n: kl.mean(0) if kl.dim() == len(shape) else kl.expand(shape[1:]) for n, kl in kls.items()}

    def kl_by_dimension(self) -> dict[str, Tensor]:
        """KL(q_d || p_d) of every dimension: [B, *event] nats. Latents without independent dimensions are left out."""
        pointwise = {name: latent.pointwise() for name, latent in self.latents.items()}
        return {name: one.kl().expand(one.z.shape).mean(0) for name, one in pointwise.items() if one is not None}

    def log_weight(self) -> Tensor:
        """log w = log p(x|z) + log p(z) - log q(z|x), without any closed form: [K, B] nats."""
        log_w = self.log_likelihood()
        for latent in self.latents.values():
            log_w = log_w - latent.log_ratio()
        return log_w

    @torch.no_grad()
    def outside_support(self) -> float | None:
        """A value of x that p(x|z) gives no probability or an infinite density; None if there is no such value.

        torch counts the ends of an interval (0 and 1 for Beta) to the support, although the density there is 0 or
        infinite. Only infinities are reported, because a NaN comes from the networks. Synchronises with the device, so
        call it rarely.
        """
        constraint, pointwise = self.p_x.support, factors(self.p_x)
        assert constraint is not None
        bad = ~getattr(constraint, "base_constraint", constraint).check(self.x).expand(self.x.shape)
        if pointwise is not None and not bad.any():  # outside the support log_prob may raise
            bad = pointwise.log_prob(self.x).isinf().any(0)  # [K, B, *event] -> [B, *event]
        values = self.x[bad]
        return values[0].item() if torch.numel(values) else None


def draw(q: Distribution, *sample_shape: int) -> Tensor:
    """z ~ q, with the pathwise gradient that trains an encoder: [*sample_shape, *batch, *event].

    Raises:
        UserError: if samples of q have no pathwise gradient.
    """
    if not q.has_rsample:
        raise UserError(
            f"posterior {distribution_name(q)}: its samples have no pathwise gradient, so they cannot train an "
            "encoder; choose DiagonalNormal, or for classes RelaxedCategorical or Categorical with "
            "straight_through=true (biased)"
        )
    return q.rsample(torch.Size(sample_shape))


def factors(distribution: Distribution) -> Distribution | None:
    """q_d of q(z) = prod_d q_d(z_d), with batch shape [..., *event]; None if the dimensions are not independent."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return None if distribution.event_shape else distribution


def has_mean(distribution: Distribution) -> bool:
    """Whether the distribution's class defines the mean.

    The mean itself is not computed, because many levels make it slow.
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return type(distribution).mean is not Distribution.mean


def distribution_name(distribution: Distribution) -> str:
    """The name of a distribution in messages: its `distribution_name` (see `name_distribution`), or its class.

    Wrappers such as `Independent` are looked through.
    """
    for wrapped in ("base_dist", "base"):
        if not hasattr(distribution, "distribution_name"):
            distribution = getattr(distribution, wrapped, distribution)
    return getattr(distribution, "distribution_name", type(distribution).__name__)
