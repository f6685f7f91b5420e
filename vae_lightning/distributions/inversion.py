"""The density of a flow at points that it did not draw: checks of every inverse, and of the memory that it takes."""

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
"""context (or None) -> a transform of events."""

_TOLERANCE = 0.01
_DENSITIES_PER_STEP = 3
_FEW = 4096
"""The memory of fewer points than this is not checked."""


class InexactError(ValueError):
    """An inverse that does not map back to its argument x. The message is the error, relative to |x| + 1."""


def call_and_log_det(transform: Transform, x: Tensor) -> tuple[Tensor, Tensor]:
    """y = f(x) and log |det dy/dx|, step by step.

    A step that is the inverse of some g is solved for in many passes, so rounding may spoil y. Therefore g(y) is
    compared with x; log |det| needs this pass of g anyway.

    Raises:
        InexactError: if g(y) is not x.
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
    """Whether some step of the transform is the inverse of a map that can be computed."""
    return any(_is_inverse(step) for step in getattr(transform, "transforms", [transform]))


def _is_inverse(step: Transform) -> bool:
    return isinstance(step, _InverseTransform) or isinstance(getattr(step, "base", None), _InverseTransform)


def _compare(back: Tensor, x: Tensor) -> None:
    error = (back - x).abs() / (1 + x.abs())
    if not bool((error < _TOLERANCE).all()):
        raise InexactError(f"{error.max():.2g}")


def check_memory(flow: Conditional, context: Tensor | None, value: Tensor, event_dims: int) -> None:
    """Refuse a density that takes more memory than is free, because autograd keeps every pass of the inverse.

    A training step counts as three densities: DReG computes two, and its backward pass took half as much again.

    Raises:
        UserError: in one line, before the memory is allocated.
    """
    points = value.numel() // max(1, value.shape[-event_dims:].numel())
    if points < _FEW or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return
    free = _free_memory(value.device)
    bytes_per_point = _kept_bytes(flow, context, value, event_dims, 2) - _kept_bytes(
        flow, context, value, event_dims, 1
    )
    needed = _DENSITIES_PER_STEP * points * bytes_per_point
    if free is not None and needed > free:
        raise UserError(
            f"flow: its density at {points:,} points that it did not draw takes {needed / 2**30:.0f} GiB in a step, "
            f"but {free / 2**30:.1f} are free; choose a posterior that needs no inverse (LinearIAF, FullNormal), fewer "
            "components of a VampPrior (--model.prior.num_components), fewer samples, or a smaller batch"
        )


def _kept_bytes(flow: Conditional, context: Tensor | None, value: Tensor, event_dims: int, points: int) -> int:
    """The bytes that autograd keeps of the density at `points` points, weights included."""
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
