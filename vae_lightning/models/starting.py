"""Start a model from the weights of another run, which may have other slots or other data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from vae_lightning.models.restoring import shape_in
from vae_lightning.types import UserError

_ANEW = "objective."  # multipliers and averages belong to the fit that they were found in


class Started(NamedTuple):
    """What a model has taken from a checkpoint.

    Args:
        loaded: The names of the tensors that were loaded.
        share: The share of the model's numbers that these tensors hold, in [0, 1].
        misfits: A line for each tensor that was not loaded: its name, and its shape there and here.
    """

    loaded: list[str]
    share: float
    misfits: list[str]

    def __str__(self) -> str:
        """A line that says how much was loaded, and a line for each tensor that was not."""
        first = f"{len(self.loaded)} tensors loaded, {100 * self.share:.3g} % of the model's numbers"
        return "\n".join([first, *(f"  not loaded  {line}" for line in self.misfits)])


def start_from(model: nn.Module, checkpoint: Mapping[str, Any], path: object) -> Started:
    """Load each tensor of a checkpoint whose name and shape are those of a tensor of `model`.

    The rest of the model keeps the values that it was built with. The state of the objective always begins anew.

    Args:
        model: The new model; changed in place.
        checkpoint: The contents of the checkpoint.
        path: The checkpoint's file, for the message.

    Raises:
        UserError: if no tensor fits.
    """
    saved, own = (_weights(state) for state in (checkpoint["state_dict"], model.state_dict()))
    shapes = {name: (shape_in(saved, name), shape_in(own, name)) for name in (*own, *(saved.keys() - own.keys()))}
    fitting = {name: saved[name] for name, (there, here) in shapes.items() if there == here}
    misfits = [f"{name}: {there} there, {here} here" for name, (there, here) in sorted(shapes.items()) if there != here]
    if not fitting:
        raise UserError(f"{path}: no tensor fits the model of the config; {'; '.join(misfits[:3])}, ...")
    model.load_state_dict(fitting, strict=False)
    numbers = {name: value.numel() for name, value in own.items()}
    share = sum(numbers[name] for name in fitting) / sum(numbers.values())
    return Started(sorted(fitting), share, misfits)


def _weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not name.startswith(_ANEW)}
