"""A check of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vae_lightning.types import UserError


def check_finite(owner: str | Path, state: Mapping[str, Tensor]) -> None:
    """Raise if a weight or buffer is NaN or infinite, because every result of such a model is wrong.

    Args:
        owner: The beginning of the message: the checkpoint's path, or the model's class.
        state: The tensors by name, as in a `state_dict`.

    Raises:
        UserError: with the name of the first such tensor.
    """
    for name, value in state.items():
        bad = int(value.numel() - torch.isfinite(value).sum())
        if bad:
            raise UserError(
                f"{owner}: {name} is not finite ({bad} of its {value.numel()} values are NaN or infinite): the model "
                "computes nothing. Use an earlier checkpoint, or train again with a smaller learning rate"
            )
