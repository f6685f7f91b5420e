"""Ways through the space of a latent: to its points, along one dimension, and from one point to another.

In R^D a way is straight. On spheres, simplices and one-hot vectors (`Groups`) every point of the way lies in the same
space, because a decoder has seen no other.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, constraints
from torch.nn import functional as F

from vae_lightning.distributions.groups import Groups, GroupSupport
from vae_lightning.distributions.masks import MaskedPositions
from vae_lightning.distributions.sphere import UniformOnSphere, unit_sphere
from vae_lightning.trace import point

DRAWS = 64
_SMALL = 1e-6


def centre(q: Distribution) -> Tensor | None:
    """Return the point that stands for q, in the space of q: [*batch, *event]; None if q has no such point.

    It is the mean; on a sphere the mean direction, of one-hot vectors the likeliest. A flow has no closed-form mean,
    and the uniform distribution on a sphere has no mean direction.

    Args:
        q: The distribution of a latent.
    """
    try:
        value = point(q)
    except NotImplementedError:  # of groups whose distribution has no mean
        return None
    if value is None or (isinstance(q, Groups) and isinstance(q.base, UniformOnSphere)):
        return None
    return inside(q, value)


def centre_or_estimate(q: Distribution) -> Tensor:
    """Return `centre(q)`, or the mean of 64 draws, in the space of q, if q has no such point.

    Args:
        q: The distribution of a latent.
    """
    value = centre(q)
    if value is not None:
        return value
    draws = copy(q).sample(torch.Size((DRAWS,)))  # of a copy, because some distributions store their last sample
    return inside(q, draws.mean(0))


def inside(q: Distribution, z: Tensor) -> Tensor:
    """Return the point of q's space that is nearest to z, [..., *event]; one of them if several are.

    Args:
        q: The distribution of a latent.
        z: Values of the latent, such as a mean of several.
    """
    space = group_support(q)
    if space is None:
        return z
    groups = z.unflatten(-1, (-1, space.group_size))  # [..., G, K]
    if space.base is unit_sphere:
        return _unit(groups, F.one_hot(groups.abs().argmax(-1), space.group_size).to(z)).flatten(-2)
    if space.base is constraints.one_hot:
        return F.one_hot(groups.argmax(-1), space.group_size).to(z).flatten(-2)
    positive = groups.clamp(min=0)
    return (positive / positive.sum(-1, keepdim=True).clamp(min=_SMALL)).flatten(-2)


def limits(q: Distribution) -> tuple[float, float]:
    """Return the least and the largest value that one number of the latent can have.

    Args:
        q: The distribution of the latent.
    """
    space = group_support(q)
    if space is None:
        return -torch.inf, torch.inf
    return (-1.0, 1.0) if space.base is unit_sphere else (0.0, 1.0)


def moved(q: Distribution, z: Tensor, dimension: int, values: Tensor) -> Tensor:
    """Return z with one of its numbers set to each of the values: [*z.shape[:-n], S, *event], n = len(event).

    On a sphere the other numbers of the group shrink or grow so that its length stays 1; on a simplex, so that its sum
    does.

    Args:
        q: The distribution of the latent.
        z: The start, [..., *event].
        dimension: The number of the dimension, in the flattened event.
        values: [S].
    """
    num_event_dims = len(q.event_shape)
    flat = z.flatten(-num_event_dims) if num_event_dims else z[..., None]  # [..., D]
    copies = flat[..., None, :].repeat(*[1] * (flat.dim() - 1), len(values), 1)  # [..., S, D]
    space = group_support(q)
    if space is not None:
        first = dimension - dimension % space.group_size
        group = copies[..., first : first + space.group_size]
        others = torch.arange(space.group_size, device=z.device) != dimension - first
        group.copy_(_others(space, group * others, others.to(z), values.to(z)))
    copies[..., dimension] = values.to(z)
    return copies.unflatten(-1, q.event_shape) if num_event_dims else copies[..., 0]


def between(q: Distribution, a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Return the points of the way from a to b: [S, ..., *event], the first at share 0 and the last at share 1.

    The way is straight; on a sphere it is the shorter arc, at constant speed.

    Args:
        q: The distribution of the latent.
        a: The start, [..., *event].
        b: The end, [..., *event].
        share: The share of the way, [S], from 0 to 1.
    """
    t = share.to(a).view(-1, *[1] * a.dim())
    space = group_support(q)
    if space is None or space.base is not unit_sphere:
        return inside(q, (1 - t) * a + t * b)
    from_, to = (z.unflatten(-1, (-1, space.group_size)) for z in (a, b))  # [..., G, K]
    t = t[..., None]
    angle = 2 * torch.atan2((from_ - to).norm(dim=-1, keepdim=True), (from_ + to).norm(dim=-1, keepdim=True))
    sine = angle.sin().clamp(min=_SMALL)
    arc = (((1 - t) * angle).sin() * from_ + (t * angle).sin() * to) / sine
    near = (1 - t) * from_ + t * to  # the arc is straight where the angle is 0
    way = torch.where(angle < 1e-3, near, arc)
    return _unit(way, from_.expand_as(way)).flatten(-2)


def group_support(q: Distribution) -> GroupSupport | None:
    """Return the space of the groups that z is cut into; None if z lies in R^D or another space without groups.

    Args:
        q: The distribution of the latent.
    """
    while isinstance(q, Independent | MaskedPositions):
        q = q.base_dist
    return GroupSupport(q.base.support, q.group_size) if isinstance(q, Groups) and q.base.support is not None else None


def _others(space: GroupSupport, others: Tensor, alike: Tensor, values: Tensor) -> Tensor:
    """The other numbers of a group [..., S, K] when one of them has each of the values [S]; alike if all were 0."""
    if space.base is unit_sphere:
        return _unit(others, alike / alike.norm()) * (1 - values.square()).clamp(min=0).sqrt()[:, None]
    total = others.sum(-1, keepdim=True)
    shares = torch.where(total > _SMALL, others / total.clamp(min=_SMALL), alike / alike.sum())
    return shares * (1 - values)[:, None]


def _unit(vectors: Tensor, otherwise: Tensor) -> Tensor:
    """The vectors [..., K] at length 1; `otherwise` in place of a vector without a direction."""
    length = vectors.norm(dim=-1, keepdim=True)
    return torch.where(length > _SMALL, vectors / length.clamp(min=_SMALL), otherwise)
