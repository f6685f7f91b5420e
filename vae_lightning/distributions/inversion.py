"""A flow at points that it did not draw: every inverse is checked, and its memory is known before it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform
from torch.distributions.transforms import _InverseTransform

from vae_lightning.runs.machine import available_memory
from vae_lightning.types import UserError

Conditional = Callable[[Tensor | None], Transform]
"""From a context, or None, to a transform of events."""

_TOLERANCE = 0.01
_IN_A_STEP = 3  # times what one density keeps
_FEW = 4096
"""Points whose memory nobody need know."""


class InexactError(ValueError):
    """An inverse that leads back elsewhere, by how much of |x| + 1."""


def call_and_log_det(transform: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
    """y = f(x) and log |det dy/dx|, step by step.

    A step that is the inverse of g is solved for, in as many passes as it takes, so that rounding may spoil it: g(y)
    must be x, of which log |det| needs the pass anyway.

    Raises:
        InexactError: where it is not.
    """
    total = x.new_zeros(())
    for step in getattr(transform, "transforms", [transform]):
        if _is_inverse(step):
            y = step(x)
            back, log_det = step.inv.call_and_ladj(y)
            _compare(back.detach(), x.detach())
            x, total = y, total - log_det
        else:
            x, log_det = step.call_and_ladj(x)
            total = total + log_det
    return x, total


def needs_solving(transform: Transform) -> bool:
    """Whether some step of it is the inverse of what can be computed."""
    return any(_is_inverse(step) for step in getattr(transform, "transforms", [transform]))


def _is_inverse(step: Transform) -> bool:
    return isinstance(step, _InverseTransform) or isinstance(getattr(step, "base", None), _InverseTransform)


def _compare(back: Tensor, x: Tensor) -> None:
    error = (back - x).abs() / (1 + x.abs())
    if not bool((error < _TOLERANCE).all()):
        raise InexactError(f"{error.max():.2g}")


def check_memory(flow: Conditional, context: Tensor | None, value: Tensor, event_dims: int) -> None:
    """Refuse a density that takes more memory than there is: all passes are kept for the way back.

    A step of DReG keeps two such densities, and its backward pass took half as much again.

    Raises:
        UserError: in one line, before anything of that size is asked for.
    """
    points = value.numel() // max(1, value.shape[-event_dims:].numel())
    if points < _FEW or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    free = _free_memory(value.device)
    a_point = _kept(flow, context, value, event_dims, 2) - _kept(flow, context, value, event_dims, 1)
    needed = _IN_A_STEP * points * a_point
    if free is not None and needed > free:
        raise UserError(
            f"flow: its density at {points:,} points that it did not draw takes {needed / 2**30:.0f} GiB in a step, "
            f"and {free / 2**30:.1f} are free; choose a posterior that needs no inverse (LinearIAF, FullNormal), fewer "
            "components of a VampPrior (--model.prior.num_components), fewer samples, or a smaller batch"
        )


def _kept(flow: Conditional, context: Tensor | None, value: Tensor, event_dims: int, points: int) -> int:
    """Bytes that autograd keeps of the density at so many points, weights included."""
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def zeros(like: Tensor) -> Tensor:
        return torch.zeros(points, *like.shape[-event_dims:], dtype=like.dtype, device=like.device)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        inverse: Any = flow(None if context is None else zeros(context)).inv
        kept = inverse.call_and_ladj(zeros(value))
    del kept
    return sum(sizes.values())


def _free_memory(device: torch.device) -> int | None:
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return available_memory() if device.type == "cpu" else None
