"""A trained model from its checkpoint, whatever its class, and what is said of its weights and settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae_lightning.models.base import LatentVariableModel
from vae_lightning.models.weights import check_finite
from vae_lightning.runs.differences import differing_settings

_NOT_SHOWN = ("optimizer", "scheduler", "_")


def load_model(path: str | Path, trusted: Sequence[str] = ()) -> LatentVariableModel:
    """The model in a checkpoint, whatever its class, in evaluation mode on the CPU.

    Args:
        path: the checkpoint.
        trusted: packages of the user's own, whose classes the checkpoint may name.

    Raises:
        UserError: if the file is missing or damaged, names an untrusted class, or has a weight that is not finite.
    """
    model = LatentVariableModel.load_from_checkpoint(path, map_location="cpu", trusted=trusted)
    check_finite(path, model.state_dict())
    return model.eval()


def check_weights(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Raise UserError if a weight of a checkpoint is not finite, of its model or of the model being averaged."""
    for state in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):
        check_finite(path, state)


def differences(checkpoint: dict[str, Any], model: LatentVariableModel) -> list[str]:
    """The settings of the checkpoint's model that `model` was built without: `key: there -> here`."""
    return differing_settings(dict(checkpoint["hyper_parameters"]), dict(model.hparams), hidden=_NOT_SHOWN)
