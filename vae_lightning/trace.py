"""The record of one run of a model. A model makes a `Trace` and an objective reads it; nothing else connects them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, constraints, kl_divergence

from vae_lightning.types import UserError


@dataclass(frozen=True)
class Latent:
    """A sample z ~ q(z|x), with q(z|x) and p(z).

    A variable with several objects (the digits of a canvas) has the objects as the last dimensions of its batch shape.

    Args:
        z: The samples, [K, B, *objects, *event]: K for each of B examples.
        q: The posterior; its batch shape is [B, *objects], or [K, B, *objects] if q depends on a sample of another
            latent.
        p: The prior; its batch shape is [], [B, *objects] or [K, B, *objects].
        p_depends_on_z: Whether p(z|z') was made from a z' that was drawn given this z, as in bottom-up inference. The
            closed form of KL(q || p) would then average over values of z that this p has not seen, which is a different
            number. So `kl` samples instead. Also set this if the probability that another variable exists depends on
            this z or on what was drawn from it.
        exists: Whether the variable exists in this row, [K, B, *objects]: 0 or 1, never a probability. None if it
            always exists. A variable that does not exist has no density and costs nothing.
        enumerated: Whether the rows of the trace run over all values of this variable (`Trace.log_shares`).
        draws: The parts that z was put together from, if z is a chain: samples [K, B, ...], each drawn given the ones
            before. Empty if z was drawn at once. Gradients through the samples alone are taken part by part.
    """

    z: Tensor
    q: Distribution
    p: Distribution
    p_depends_on_z: bool = False
    exists: Tensor | None = None
    enumerated: bool = False
    draws: tuple[Tensor, ...] = ()

    def log_q(self, z: Tensor | None = None) -> Tensor:
        """log q(z|x) at the sample, or at another value of the same shape: [K, B] nats, summed over objects."""
        return self._of_existing(self.q.log_prob(self.z if z is None else z))

    def log_p(self) -> Tensor:
        """log p(z) at the sample: [K, B] nats, summed over objects."""
        return self._of_existing(self.p.log_prob(self.z))

    def log_ratio(self) -> Tensor:
        """log q(z|x) - log p(z) at the sample: [K, B] nats, summed over objects."""
        return self._of_existing(self.q.log_prob(self.z) - self.p.log_prob(self.z))

    def kl(self) -> Tensor:
        """KL(q || p) = E_q[log q(z|x) - log p(z)] in nats: [K, B], [B] or [], summed over the objects that exist.

        The closed form is used if torch has one; otherwise the value at the sample, [K, B].
        """
        closed_form = self._closed_form_kl()
        return self.log_ratio() if closed_form is None else self._of_existing(closed_form)

    def kl_by_dimension(self) -> Tensor | None:
        """KL(q_d || p_d) of every dimension: [K, B, *event] nats; None if the dimensions are not independent."""
        pointwise = self.pointwise()
        if pointwise is None:
            return None
        return self._of_existing(pointwise.kl().expand(self.z.shape), len(self.q.event_shape))

    @property
    def kl_estimator(self) -> str:
        """`closed form` or `sampled`: how `kl` is computed. A model reports this once per run: the variances differ."""
        return "sampled" if self._closed_form_kl() is None else "closed form"

    def pointwise(self) -> Latent | None:
        """The same latent, dimension by dimension, with every object: its `kl` and `log_ratio` have z's shape.

        None if the dimensions of q or of p are not independent.
        """
        q, p = factors(self.q), factors(self.p)
        return None if q is None or p is None else replace(self, q=q, p=p, exists=None)

    def _of_existing(self, value: Tensor, num_event_dims: int = 0) -> Tensor:
        """Replace the values of objects that do not exist by 0, and sum over objects: [K, B, *event]."""
        if self.exists is None:
            return value
        exists = self.exists[(..., *[None] * num_event_dims)]  # [K, B, *objects, 1...]
        objects = tuple(range(2, self.exists.dim()))
        value = exists * torch.where(exists == 0, 0.0, value)
        return value.sum(objects) if objects else value

    def _closed_form_kl(self) -> Tensor | None:
        if self.p_depends_on_z:
            return None
        try:
            return kl_divergence(self.q, self.p)
        except NotImplementedError:
            return None


@dataclass(frozen=True)
class Observed:
    """What is seen and explained beside x, such as a reward or a label: log p(value|z) counts in the bound.

    Args:
        value: What was seen, [B, *event].
        p: p(value|z), with batch shape [K, B] or [B].
        known: Whether the value was seen, [B]: 0 or 1. None if it was seen in every example. The value of an unknown
            example is not used.
    """

    value: Tensor
    p: Distribution
    known: Tensor | None = None

    def log_likelihood(self) -> Tensor:
        """log p(value|z): [K, B] or [B] nats; 0 if the value is unknown."""
        if self.known is None:
            return self.p.log_prob(self.value)
        known = self.known.bool()
        # an unknown value may lie outside the support (a label of -1): it is replaced before the density, not after
        inside = torch.as_tensor(value_inside(self.p, self.value), device=self.value.device).to(self.value.dtype)
        value = torch.where(known.view(-1, *[1] * (self.value.dim() - 1)), self.value, inside)
        return torch.where(known, self.p.log_prob(value), 0.0)


@dataclass(frozen=True)
class Trace:
    """x, p(x|z) and every latent.

    A discrete variable c can be enumerated: for each of S samples of the other latents the trace then has C rows, one
    for each value of c, and K = S C. Row k = s C + c has the log share l_k = log q(c|x, z_s) - log S. Every expectation
    is a sum over rows with these weights (`mean`), and its gradient is exact in c.

    Args:
        x: The data, [B, *event].
        p_x: p(x|z), with batch shape [K, B] and the event shape of one example.
        latents: The latents by name.
        log_shares: l, [K, B], with its gradient; None if nothing is enumerated. The shares of an example sum to 1.
        num_values: C, the number of values of the enumerated variable.
        observed: What else is seen and explained beside x, by name.
        costs: Terms of the loss that belong to no bound, by name, [K, B] or [B]: in `loss`, never in `elbo` nor in an
            estimate of the likelihood. Example: the density of q at an observed label.
        example_weight: The weight of each example in `loss` alone, [B]; None for 1.
        found: What the model reads off x in evaluation, by name, [B, ...]; a metric compares it with the entry of the
            batch that has the same name.
    """

    x: Tensor
    p_x: Distribution
    latents: Mapping[str, Latent] = field(default_factory=dict)
    log_shares: Tensor | None = None
    num_values: int = 1
    observed: Mapping[str, Observed] = field(default_factory=dict)
    costs: Mapping[str, Tensor] = field(default_factory=dict)
    example_weight: Tensor | None = None
    found: Mapping[str, Tensor] = field(default_factory=dict)
    _computed: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def log_likelihoods(self) -> dict[str, Tensor]:
        """log p(x|z) as `x`, and log p(value|z) of everything else that is observed: [K, B] nats each.

        The results are kept, because several terms of an objective ask for them.
        """
        if not self._computed:
            self._computed["x"] = self.p_x.log_prob(self.x)
            for name, observed in self.observed.items():
                self._computed[name] = observed.log_likelihood().expand(self.p_x.batch_shape)
        return dict(self._computed)

    def log_likelihood(self) -> Tensor:
        """log p of everything observed, given the latents: [K, B] nats. Without `observed` this is log p(x|z)."""
        first, *others = self.log_likelihoods().values()
        return sum(others, first)

    def mean(self, value: Tensor) -> Tensor:
        """E_q[value] = sum_k e^(l_k) value_k: [K, B, ...] -> [B, ...]. The expectation of every objective and metric.

        A row of share 0 contributes nothing, even if its value is infinite or NaN.
        """
        if self.log_shares is None:
            return value.mean(0)
        log_shares = self.log_shares.view(*self.log_shares.shape, *[1] * (value.dim() - 2))  # [K, B, 1...]
        return (log_shares.exp() * torch.where(log_shares.isneginf(), 0.0, value)).sum(0)

    def kl(self) -> dict[str, Tensor]:
        """KL(q || p) of every latent: [B] nats each.

        `Latent.kl` has shape [K, B] if it depends on the row (a sampled KL, or a q or p that depends on another
        latent's value), and shape [B] or [] if not. The rule is therefore: two dimensions mean that the first is K, and
        the KL is averaged over the rows; fewer dimensions mean that all rows share the KL, which is expanded to [B].
        """
        kls = {name: latent.kl() for name, latent in self.latents.items()}
        shape = self.p_x.batch_shape[1:]  # [B]
        return {name: self.mean(kl) if kl.dim() > len(shape) else kl.expand(shape) for name, kl in kls.items()}

    def kl_by_dimension(self) -> dict[str, Tensor]:
        """KL(q_d || p_d) of every dimension: [B, *event] nats. Latents without independent dimensions are left out."""
        kls = {name: latent.kl_by_dimension() for name, latent in self.latents.items()}
        return {name: self.mean(kl) for name, kl in kls.items() if kl is not None}

    def log_weight(self) -> Tensor:
        """log w_s = log sum_c p(x, z_s, c) / q(z_s|x, c), without any closed form: [S, B] nats, E_q[w_s] = p(x).

        The values of the enumerated variable are summed out: log w_s = log S + logsumexp_c(l_k + r_k), with r_k = the
        log likelihood minus the log ratios of all latents. If nothing is enumerated, S = K and log w = r.
        """
        log_w = self.log_likelihood()
        for latent in self.latents.values():
            log_w = log_w - latent.log_ratio()
        if self.log_shares is None:
            return log_w
        terms = self.log_shares + torch.where(self.log_shares.isneginf(), 0.0, log_w)  # [K, B]
        return self.by_sample(terms).logsumexp(1) + math.log(self.num_samples)

    @property
    def num_samples(self) -> int:
        """S: the number of samples of the latents that are not enumerated."""
        return self.p_x.batch_shape[0] // self.num_values

    def by_sample(self, value: Tensor) -> Tensor:
        """[K, B, ...] -> [S, C, B, ...]."""
        return value.unflatten(0, (self.num_samples, self.num_values))

    def row(self, value: Tensor) -> Tensor:
        """The value in the row of the largest share, the first of equals: [K, B, ...] -> [B, ...].

        Use this for one picture or one z of each example.
        """
        if self.log_shares is None:
            return value[0]
        best = self.log_shares.argmax(0)  # [B]
        return value[best, torch.arange(len(best), device=best.device)]

    def continuous(self) -> dict[str, Latent]:
        """The latents that are sampled and exist in every row: those whose dimensions a metric can look at."""
        return {name: one for name, one in self.latents.items() if not one.enumerated and one.exists is None}

    def sampled_rows(self, value: Tensor) -> Tensor:
        """For each sample s the value in one row, drawn with the shares: [K, B, ...] -> [S, B, ...]."""
        if self.log_shares is None:
            return value
        shares = self.by_sample(self.log_shares.detach()).movedim(1, -1)  # [S, B, C]
        c = Categorical(logits=shares).sample()  # [S, B]
        index = c.view(*c.shape, *[1] * (value.dim() - 2))[:, None]  # [S, 1, B, 1...]
        values = self.by_sample(value)
        return values.gather(1, index.expand(-1, 1, *values.shape[2:])).squeeze(1)

    def reconstruction(self) -> Tensor | None:
        """`point` of p(x|z) in the row of the largest share: [B, *event]; None if p(x|z) has no such value."""
        value = point(self.p_x)
        return None if value is None else self.row(value)

    @torch.no_grad()
    def outside_support(self) -> float | None:
        """A value of x that p(x|z) gives no probability or an infinite density; None if there is no such value.

        torch counts the ends of an interval (0 and 1 for Beta) to the support, although the density there is 0 or
        infinite. Only infinities are reported, because a NaN comes from the networks. Synchronises with the device, so
        call it rarely.
        """
        try:
            constraint, pointwise = self.p_x.support, factors(self.p_x)
        except NotImplementedError:  # a distribution of a user's own need not define its support
            return None
        assert constraint is not None
        inside = getattr(constraint, "base_constraint", constraint).check(self.x)
        bad = ~inside.view(*inside.shape, *[1] * (self.x.dim() - inside.dim())).expand(self.x.shape)
        if pointwise is not None and not bad.any():  # outside the support log_prob may raise
            infinite = pointwise.log_prob(self.x).isinf()  # [K, B, *event]
            if self.log_shares is not None:
                infinite &= ~self.log_shares.isneginf().view(*infinite.shape[:2], *[1] * (infinite.dim() - 2))
            bad = infinite.any(0)  # [B, *event]
        values = self.x[bad]
        return values[0].item() if torch.numel(values) else None


_VALUES_OF: list[Callable[[Distribution], Tensor]] = []  # what `drawing` has set, the last one innermost


@contextmanager
def drawing(value_of: Callable[[Distribution], Tensor]) -> Iterator[None]:
    """Let `draw` return the value that `value_of(q)`, [*batch, *event], gives, in place of samples.

    A model's `trace` then takes the mean of each posterior, one latent after the other, where it would draw a sample.

    Args:
        value_of: For example the mean of q.
    """
    _VALUES_OF.append(value_of)
    try:
        yield
    finally:
        _VALUES_OF.pop()


def draw(q: Distribution, *sample_shape: int) -> Tensor:
    """z ~ q, with the pathwise gradient that trains an encoder: [*sample_shape, *batch, *event].

    Raises:
        UserError: if samples of q have no pathwise gradient.
    """
    if _VALUES_OF:
        value = _VALUES_OF[-1](q)
        return value.expand(*sample_shape, *value.shape)
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
        distribution = distribution.factors() if hasattr(distribution, "factors") else distribution.base_dist
    return None if distribution.event_shape else distribution


def point(distribution: Distribution) -> Tensor | None:
    """One value that stands for the distribution, [*batch, *event]: the mean; of classes the mode; None without either.

    Args:
        distribution: For example p(x|z), whose point is a reconstruction.
    """
    if isinstance(_base(distribution), Categorical):  # torch's mean of class numbers is NaN
        return distribution.mode
    return distribution.mean if has_mean(distribution) else None


def has_mean(distribution: Distribution) -> bool:
    """Whether the distribution's class defines the mean.

    The mean itself is not computed, because many levels make it slow.
    """
    return type(_base(distribution)).mean is not Distribution.mean


def value_inside(p: Distribution, like: Tensor) -> Tensor | float:
    """A value at which a density over the support of p is finite: it replaces a value that was not seen.

    Args:
        p: The distribution of the value.
        like: A value of p, for the dtype and the device.
    """
    try:
        support: Any = p.support
    except NotImplementedError:  # a distribution need not define its support
        return 0
    support = getattr(support, "base_constraint", support)  # of a mixture
    if hasattr(support, "element"):
        element: Tensor = support.element(like)
        return element
    if support is constraints.simplex:
        return 1 / like.shape[-1]
    if support is constraints.one_hot:
        return (torch.arange(like.shape[-1], device=like.device) == 0).to(like.dtype)
    low, high = (getattr(support, f"{end}_bound", None) for end in ("lower", "upper"))
    if support.is_discrete or low is None:
        return 0
    return low + 1 if high is None else (low + high) / 2


def is_masked(distribution: Distribution) -> bool:
    """Whether a `Masked` hides positions of the distribution, so that its examples may lie in different spaces."""
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return hasattr(distribution, "seen")


def _base(distribution: Distribution) -> Distribution:
    base: Any = distribution
    while isinstance(base, Independent) or hasattr(base, "seen"):
        base = base.base_dist
    return cast(Distribution, base)


def distribution_name(distribution: Distribution) -> str:
    """The name of a distribution in messages: its `distribution_name` (see `name_distribution`), or its class.

    Wrappers such as `Independent` are looked through.
    """
    while not hasattr(distribution, "distribution_name"):
        wrapped = getattr(distribution, "base_dist", getattr(distribution, "base", None))
        if wrapped is None:
            return type(distribution).__name__
        distribution = wrapped
    name: str = distribution.distribution_name
    return name
