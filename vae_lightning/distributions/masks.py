"""Masked distributions: positions of an event, such as the padding of a sentence, that have no density."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints

from vae_lightning.trace import value_inside
from vae_lightning.types import UserError


class Masked(Independent):
    """p(x) = prod over seen positions t of p_t(x_t): a padded or hidden position has 0 nats, without a gradient.

    Use this for sentences of several lengths in one batch, for frames that were not seen, and for objects that are not
    there. `log_prob`, `entropy` and the KL count the seen positions; `mean`, `mode` and the samples are those of p. The
    value of a hidden position may lie outside the support (a padding token of -1): it is replaced before the density.
    Of a latent, mask q and p alike.

    Args:
        p: Batch shape [..., B], event shape [T, *event], with independent positions; for example of a `Repeated`.
        mask: Which positions are seen, bool or 0 and 1: [B, T], or any leading part of the event behind B.
        event_dims: The number of leading dimensions of the event that the mask has, if its batch part is not [B]: 1
            for a mask [T] or [K, B, T].

    Raises:
        UserError: if the shapes do not fit, or if masked positions of p depend on each other.
    """

    def __init__(self, p: Distribution, mask: Tensor, event_dims: int | None = None) -> None:
        whole = p if isinstance(p, Independent) else Independent(p, 0, validate_args=False)
        if type(whole).log_prob not in (Independent.log_prob, Masked.log_prob):
            raise UserError(
                f"Masked: {type(p).__name__} has a density of its own; mask the distribution that it was made from"
            )
        event_dims = mask.dim() - 1 if event_dims is None else event_dims
        reinterpreted = whole.reinterpreted_batch_ndims
        _check_mask(whole, mask, event_dims)
        seen = mask.bool()[(..., *[None] * (reinterpreted - event_dims))]  # against the batch shape of the base
        base: Distribution = whole.base_dist
        if isinstance(base, MaskedPositions):
            seen = base.seen & seen
            base = base.base_dist
        super().__init__(MaskedPositions(base, seen), reinterpreted, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Independent:
        base = self.base_dist.expand((*batch_shape, *self.event_shape[: self.reinterpreted_batch_ndims]))
        return Independent(base, self.reinterpreted_batch_ndims, validate_args=False)


def _check_mask(p: Independent, mask: Tensor, event_dims: int) -> None:
    if not 0 <= event_dims <= min(mask.dim(), p.reinterpreted_batch_ndims):
        raise UserError(
            f"Masked: a mask {list(mask.shape)} does not fit an event {list(p.event_shape)} of which "
            f"{p.reinterpreted_batch_ndims} leading dimensions are independent; give [B, T], T the first of them"
        )
    batch, event = mask.shape[: mask.dim() - event_dims], mask.shape[mask.dim() - event_dims :]
    try:
        torch.broadcast_shapes(batch, p.batch_shape)
        fits = event == p.event_shape[:event_dims]
    except RuntimeError:
        fits = False
    if not fits:
        raise UserError(
            f"Masked: the mask is {list(mask.shape)}; p has the batch shape {list(p.batch_shape)} and the event shape "
            f"{list(p.event_shape)}, so a mask of its first {event_dims} dimensions is "
            f"{[*p.batch_shape[-1:], *p.event_shape[:event_dims]]}"
        )


class MaskedPositions(Distribution):
    """p of each position alone, with 0 nats where a position is not seen; the base of a `Masked`.

    Args:
        base_dist: The distribution of one position, with batch shape [..., B, T, ...].
        seen: bool, broadcasts against this batch shape; a larger batch expands `base_dist`.
    """

    arg_constraints: ClassVar = {}  # `base_dist` checks its own arguments

    def __init__(self, base_dist: Distribution, seen: Tensor) -> None:
        shape = torch.broadcast_shapes(base_dist.batch_shape, seen.shape)
        self.base_dist = base_dist if shape == base_dist.batch_shape else base_dist.expand(shape)
        self.seen = seen
        super().__init__(shape, base_dist.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MaskedPositions:
        return MaskedPositions(self.base_dist.expand(torch.Size(batch_shape)), self.seen)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_rsample

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        assert self.base_dist.support is not None
        return SeenSupport(self.base_dist.support, self.seen)

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def mode(self) -> Tensor:
        return self.base_dist.mode

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.sample(torch.Size(sample_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.base_dist.rsample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        value = torch.where(self.seen_values(), value, value_inside(self.base_dist, value))
        return self.only_seen(self.base_dist.log_prob(value))

    def entropy(self) -> Tensor:
        return self.only_seen(self.base_dist.entropy())

    def only_seen(self, nats: Tensor) -> Tensor:
        """The nats of each position, and 0 where a position is not seen."""
        return torch.where(self.seen, nats, 0.0)

    def seen_values(self) -> Tensor:
        """`seen`, broadcasting against values [..., B, T, ..., *event]."""
        return self.seen[(..., *[None] * len(self.event_shape))]


class SeenSupport(constraints.Constraint):
    """The support of a position that is seen; any value where it is not.

    Args:
        of_seen: The support of a position.
        seen: bool, [..., B, T, ...].
    """

    def __init__(self, of_seen: constraints.Constraint, seen: Tensor) -> None:
        self.of_seen, self.seen = of_seen, seen
        self.is_discrete, self.event_dim = of_seen.is_discrete, of_seen.event_dim

    def check(self, value: Tensor) -> Tensor:
        inside = self.of_seen.check(value)
        hidden = ~self.seen
        while hidden.dim() > inside.dim():  # a mask for each sample, one value of x: every sample must hide it
            hidden = hidden.all(0)
        return inside | hidden

    def __repr__(self) -> str:
        return f"{self.of_seen!r} where seen"


def seen_positions(p: Distribution) -> Tensor | None:
    """Which numbers of an event a `Masked` p counts: bool, broadcasts against [..., B, *event]; None if p is another.

    Args:
        p: For example p(x|z).
    """
    base = p.base_dist if isinstance(p, Independent) else p
    return base.seen_values() if isinstance(base, MaskedPositions) else None


def seen_in_neighbour(p: Distribution, shift: int) -> Distribution:
    """p with those positions alone that the example `shift` places on in the batch has, too; p itself without a mask.

    So the density of an example's value can be taken under the distribution of another example.

    Args:
        p: For example p(x|z).
        shift: 1 for the next example, -1 for the one before; the batch is a ring.
    """
    if not isinstance(p, Independent) or not isinstance(p.base_dist, MaskedPositions):
        return p
    base, num_dims = p.base_dist, p.reinterpreted_batch_ndims
    if base.seen.dim() == num_dims:  # one mask for all examples
        return p
    seen = base.seen & base.seen.roll(-shift, -num_dims - 1)
    return Independent(MaskedPositions(base.base_dist, seen), num_dims, validate_args=False)
