"""What a model reads off x (`Trace.found`), compared with the truth in the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from vae_lightning.data import DataModule
from vae_lightning.metrics.evaluator import Evaluator, Finding
from vae_lightning.metrics.latents import update_mean, with_stderr
from vae_lightning.metrics.likelihood import MeanAndError
from vae_lightning.models import LatentVariableModel
from vae_lightning.trace import Trace
from vae_lightning.types import Batch

_LEFT_OUT = {
    "segmentation": "the numbers of segments have no order",  # segment 1 of the model may be segment 3 of the truth
    "count": "the count is scored as count_accuracy",  # by SceneScores
}
"""Entries that are not compared here, and why."""


class FoundAccuracy(Evaluator):
    """The share of whole numbers that the model finds as they are in the batch, by name: `found_accuracy/label`.

    Use it for labels and tokens. An entry of `Trace.found` is compared with the entry of the batch of the same
    name and shape, [B] or [B, ...]. A negative truth is unknown and is left out. The share is taken over the known
    numbers of an example, and averaged over the examples that have any; NaN if none has. The numbers of segments are
    not compared, because their order is free; `SceneScores` compares them, and the counts.
    """

    units: ClassVar[Mapping[str, str]] = {"found_accuracy": "share, 1 at best"}

    def why_not_of_batch(self, trace: Trace, batch: Batch) -> str | None:
        if not trace.found:
            return "the model finds nothing (Trace.found is empty)"
        reasons = {name: _why_not(name, found, batch) for name, found in trace.found.items()}
        return None if None in reasons.values() else "; ".join(filter(None, reasons.values()))

    def begin(self, model: LatentVariableModel, data: DataModule | None) -> None:
        self._right: dict[str, MeanAndError] = {}

    def update(self, trace: Trace, batch: Batch) -> None:
        for name, found in trace.found.items():
            if _why_not(name, found, batch) is None:
                truth = batch[name].to(found.device).view(len(found), -1)
                known = truth >= 0
                right = (known & (found.view(len(found), -1) == truth)).sum(1) / known.sum(1)  # [B]
                update_mean(self._right, name, right[known.any(1)])

    def compute(self) -> dict[str, Finding]:
        found: dict[str, Finding] = {}
        for name, right in self._right.items():
            found |= with_stderr(f"found_accuracy/{name}", right)
        return found


def _why_not(name: str, found: Tensor, batch: Batch) -> str | None:
    """Why an entry of `Trace.found` cannot be compared with the batch; None if it can."""
    if name in _LEFT_OUT:
        return _LEFT_OUT[name]
    truth = batch.get(name)
    if truth is None:
        return f"found has {name}, and the batch has no {name}"
    if not (_is_whole(found) and _is_whole(truth)):
        return f"{name} is not of whole numbers: found is {found.dtype}, the batch's is {truth.dtype}"
    if found.shape != truth.shape:
        shapes = [["B", *value.shape[1:]] for value in (found, truth)]
        return f"found {name} is [{', '.join(map(str, shapes[0]))}], the batch's is [{', '.join(map(str, shapes[1]))}]"
    return None


def _is_whole(value: Tensor) -> bool:
    return not (value.is_floating_point() or value.is_complex())
