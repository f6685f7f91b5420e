"""Checks of a model's inputs: a loader's batch, latents to decode, a number of samples, sizes of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_lightning.types import Shape, UserError


def check_batch(batch: Any, shape: Shape | None, dtype: torch.dtype, stage: str) -> None:
    """Check that a batch is a dict with images x and, optionally, one label for each image.

    Args:
        batch: A loader's first batch.
        shape: (C, H, W) that x must have; None for any shape.
        dtype: The dtype that x must have.
        stage: The loader's name for the message, such as "train".

    Raises:
        UserError: with the batch's types and shapes, and a remedy.
    """
    x: Any = batch.get("x") if isinstance(batch, Mapping) else None
    remedy = _remedy(x, shape, dtype)
    if remedy is None and not _is_label(batch.get("label"), len(x)):
        remedy = "let label be a tensor with a number, or a row of them, for each image, or leave it out"
    if remedy is None:
        return
    sizes = ["B", *(("C", "H", "W") if shape is None else shape)]
    raise UserError(
        f"the {stage} loader's first batch is {describe(batch)}; a batch is a dict with x: {_name(dtype)} "
        f"[{', '.join(map(str, sizes))}], its values in [0, 1], and optionally label: int64 [B]; {remedy}"
    )


def _is_label(label: Any, num_images: int) -> bool:
    return label is None or (isinstance(label, Tensor) and label.dim() > 0 and len(label) == num_images)


def _remedy(x: Any, shape: Shape | None, dtype: torch.dtype) -> str | None:
    if not isinstance(x, Tensor):
        return 'let the data set return {"x": image} or {"x": image, "label": label}'
    if not x.is_floating_point():
        return "divide the bytes: image.float() / 255"
    if x.dtype != dtype:
        return f"convert the images: image.to({dtype})"
    if shape is not None and x.shape[1:] != shape:
        return f"resize the images, or build the model with image_shape={tuple(x.shape[1:])}"
    return None


def range_note(x: Tensor) -> str | None:
    """Return a note if x has values outside [0, 1], else None. Synchronises with the device."""
    low, high = (value.item() for value in x.aminmax()) if x.numel() else (0.0, 1.0)
    if low >= 0 and high <= 1:
        return None
    return f"x has values from {low:.4g} to {high:.4g}: pictures, PSNR and SSIM take them to be in [0, 1]"


def describe(value: Any) -> str:
    """Return types and shapes as text: `a list of float32 [16, 1, 8, 8], int64 [16]`."""
    if isinstance(value, Tensor):
        return f"{_name(value.dtype)} {list(value.shape)}"
    if isinstance(value, Mapping):
        entries = ", ".join(f"{name}: {describe(entry)}" for name, entry in value.items())
        return f"a {type(value).__name__} with {entries or 'nothing in it'}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        more = ", ..." if len(value) > 3 else ""
        return f"a {type(value).__name__} of {', '.join(map(describe, value[:3])) or 'nothing'}{more}"
    return f"a {type(value).__name__}"


def named_latents(owner: str, latents: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    """Return the latents called `names`, in this order; raise UserError if one is missing."""
    if isinstance(latents, Mapping) and all(isinstance(latents.get(name), Tensor) for name in names):
        return [latents[name] for name in names]
    wanted = ", ".join(f'"{name}": {name}' for name in names)
    raise UserError(
        f"{owner}.decode takes a dict of latents, with the names of a Trace: {{{wanted}}}; found {describe(latents)}"
    )


def check_count(owner: str, n: int) -> None:
    """Raise UserError if `n` is not a whole number of at least 1."""
    if isinstance(n, bool) or not hasattr(n, "__index__") or n < 1:
        raise UserError(f"{owner}.sample(n) draws n images: n is {n!r}; it must be a whole number of at least 1")


def layer_sizes(owner: str, latent_sizes: Sequence[int]) -> list[int]:
    """Return the sizes of a hierarchy's latents as a list; raise UserError if one is not positive or none is given."""
    sizes = list(latent_sizes)
    if not sizes or min(sizes) < 1:
        raise UserError(f"{owner}: latent_sizes {sizes}: needs one positive size or more, the layer next to x first")
    return sizes


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
