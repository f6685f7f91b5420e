"""What a model of video foresees."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rollout:
    """What a model sees in T frames, and what it expects of the following frames.

    Positions are (x, y) from -1 at the left and upper edge of a frame to 1 at the right and lower edge. Object i is the
    same in every frame.

    Args:
        seen: The positions inferred in the frames that were seen, [B, T, O, 2].
        positions: The positions expected in the frames that follow, [B, horizon, O, 2].
        frames: The means of p(x_t|z_t) of the frames that follow, [B, horizon, C, H, W].
    """

    seen: Tensor
    positions: Tensor
    frames: Tensor
