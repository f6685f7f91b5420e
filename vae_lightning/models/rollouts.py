"""`Rollout`: the frames and the places of objects that a model of video predicts after a clip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """The objects of the frames that a model saw, and the frames that it predicts after them.

    A place is (x, y) in [-1, 1]: the column first, from left to right, and the row second, from top to bottom. Object k
    is the same object in all frames, seen and predicted.

    Args:
        seen: The places of the objects inferred in the frames seen, [B, T, O, 2].
        positions: The places of the same objects in the frames predicted, [B, H, O, 2].
        frames: The means of p(x_t|z_t) of the frames predicted, [B, H, C, height, width].
    """

    seen: Tensor
    positions: Tensor
    frames: Tensor


@runtime_checkable
class PredictsFrames(Protocol):
    """A model of video that predicts the frames after a clip."""

    def predict_frames(self, x_seen: Tensor, horizon: int, sampled: bool = False) -> Rollout:
        """Predict the frames after a clip, without gradients.

        Args:
            x_seen: The clip, [B, T, C, height, width].
            horizon: The number of frames to predict.
            sampled: Draw each transition, with noise from torch's global generator; else each takes its mean.
        """
        ...
