"""Checks of a model's inputs: a loader's batch, latents to decode, a number of samples, sizes of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vae_lightning.distributions import Family
from vae_lightning.trace import distribution_name, point
from vae_lightning.types import Shape, UserError


def check_batch(batch: Any, images: Shape | None, shape: Shape | None, dtype: torch.dtype, stage: str) -> None:
    """Check that a batch is a dict with a tensor x and, optionally, a label for each example.

    Args:
        batch: A loader's first batch.
        images: (C, H, W), if x must be images of this shape; None if the model takes x of another kind.
        shape: The shape that one x must have, with -1 for a size that may differ; None for any shape.
        dtype: The dtype that an x of floating-point numbers must have.
        stage: The loader's name for the message, such as "train".

    Raises:
        UserError: with the batch's types and shapes, and a remedy.
    """
    x: Any = batch.get("x") if isinstance(batch, Mapping) else None
    wanted = images or shape
    remedy = _remedy(x, images, wanted, dtype) or _label_remedy(
        batch.get("label"), len(x), "image" if images else "example"
    )
    if remedy is None:
        return
    sizes = ", ".join(["B", *("any" if size == -1 else str(size) for size in wanted)] if wanted else ["B", "..."])
    kind = f"x: {_name(dtype)} [{sizes}], its values in [0, 1]," if images else f"x: a tensor [{sizes}],"
    others = "label: int64 [B]" if images else "other tensors [B, ...], such as label: int64 [B]"
    raise UserError(
        f"the {stage} loader's first batch is {describe(batch)}; a batch is a dict with {kind} and optionally "
        f"{others}; {remedy}"
    )


def _label_remedy(label: Any, size: int, unit: str) -> str | None:
    if label is None or (isinstance(label, Tensor) and label.dim() > 0 and len(label) == size):
        return None
    return f"let label be a tensor with a number, or a row of them, for each {unit}, or leave it out"


def _remedy(x: Any, images: Shape | None, shape: Shape | None, dtype: torch.dtype) -> str | None:
    if not isinstance(x, Tensor):
        return 'let the data set return {"x": image} or {"x": image, "label": label}'
    if images and not x.is_floating_point():
        return "divide the bytes: image.float() / 255"
    if x.is_floating_point() and x.dtype != dtype:
        return f"convert {'the images: image' if images else 'x: x'}.to({dtype})"
    if shape is not None and not _fits(x.shape[1:], shape):
        name, kind = ("image_shape", "resize the images") if images else ("x_shape", "change the data")
        return f"{kind}, or build the model with {name}={tuple(x.shape[1:])}"
    return None


def _fits(found: Shape, shape: Shape) -> bool:
    return len(found) == len(shape) and all(wanted in (-1, size) for size, wanted in zip(found, shape, strict=True))


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


def check_labels(batch: Mapping[str, Tensor], num_classes: int | None, stage: str) -> None:
    """Check that the labels are classes of the model; a label below 0 is unknown. Synchronises with the device.

    Args:
        batch: A loader's first batch.
        num_classes: The number of classes that the model was built for; None if it has no such argument.
        stage: The loader's name for the message, such as "train".

    Raises:
        UserError: if a label is too large.
    """
    label = batch.get("label")
    if num_classes is None or label is None or label.dim() != 1 or label.is_floating_point() or not len(label):
        return
    if (largest := int(label.max())) >= num_classes:
        raise UserError(
            f"the {stage} loader's first batch has the label {largest}; the model has num_classes={num_classes}, so "
            f"that labels are 0 .. {num_classes - 1}; set num_classes in the data set's class"
        )


class KnownFields(dict[str, Tensor]):
    """A batch that names a field that it does not have, where a dict raises KeyError.

    Args:
        owner: The model's class, for the message.
        batch: The batch.
    """

    def __init__(self, owner: str, batch: Mapping[str, Tensor]) -> None:
        super().__init__(batch)
        self.owner = owner

    def __missing__(self, name: str) -> Tensor:
        raise UserError(
            f"{self.owner} needs {name} of each example, and the batch has {', '.join(self)}; choose other data, or "
            f"return a field {name} from the data set's load"
        )


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


@torch.no_grad()
def centred(owner: str, likelihood: Family) -> Family:
    """Return the likelihood if its mean is its features: a painted canvas is no logit.

    Args:
        owner: The model's class, for the message.
        likelihood: The family of an image.

    Raises:
        UserError: if the mean is something else.
    """
    canvas = torch.full(likelihood.event_shape, 0.25)
    if likelihood.param_shape == likelihood.event_shape:
        p_x = likelihood(canvas)
        mean = point(p_x)
        if mean is not None and torch.allclose(mean, canvas, atol=1e-3):
            return likelihood
        name = distribution_name(p_x)
    else:
        name = type(likelihood).__name__
    raise UserError(
        f"{owner}: the mean of the likelihood {name} is not the canvas; choose one with a fixed scale, "
        "--model.likelihood=DiagonalNormal --model.likelihood.sigma=0.3, or Laplace or StudentT with "
        "--model.likelihood.scale=0.3"
    )


def layer_sizes(owner: str, latent_sizes: Sequence[int]) -> list[int]:
    """Return the sizes of a hierarchy's latents as a list; raise UserError if one is not positive or none is given."""
    sizes = list(latent_sizes)
    if not sizes or min(sizes) < 1:
        raise UserError(f"{owner}: latent_sizes {sizes}: needs one positive size or more, the layer next to x first")
    return sizes


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
