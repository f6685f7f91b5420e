"""The real world and its dream side by side under the same actions, as a moving picture or as curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.data.transitions import Transitions
from vae_lightning.pictures import Picture, draw, show
from vae_lightning.worlds.agents import Policy
from vae_lightning.worlds.dream import WorldModel
from vae_lightning.worlds.real import RealWorld

_TOLERANCE = 0.1  # of pixels in [0, 1]: a mean image is never exact
_SIDE = 112  # pixels, at least, of one state in the moving picture
_FRAME, _GAP = 4, 8  # pixels
_GREY = 0.8  # of frame and gap where the states agree, so that the floor, which is white, has an edge
_RED = (0.9, 0.1, 0.1)
_MOST_CURVES = 8

CAPTION = "real | dream under the same actions; red: they differ"
"""What the moving picture shows."""


@dataclass(frozen=True)
class SideBySide:
    """States of the real world and of its dream under the same actions, from the same first state.

    Args:
        real: [T, *x_shape].
        dreamt: [T, *x_shape].
        differ: bool [T]; whether the two states differ, or one episode is done and the other is not. Vectors never do.
    """

    real: Tensor
    dreamt: Tensor
    differ: Tensor


@torch.no_grad()
def side_by_side(model: WorldModel, world: RealWorld, policy: Policy, seed: int, most: int = 64) -> SideBySide:
    """Act in the real world, and dream the same actions, until the episode is done in one of them.

    The dream begins at the real first state and never sees a later one.

    Args:
        model: The world model.
        world: The real world.
        policy: What acts; it sees the real world.
        seed: The seed of the real world and of the dream.
        most: The largest number of states.
    """
    seen, _ = world.reset(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    real, dreamt, differ = [world.state], [world.state], [False]
    done = False
    while not done and len(real) < most:
        action = policy(seen)
        seen, _, terminated, truncated, _ = world.step(action)
        step = model.step(dreamt[-1], torch.tensor([action]), generator)
        real.append(world.state)
        dreamt.append(step.state)
        ends_alike = bool(step.done) == terminated or world.state.dim() == 2  # the end of a vector's dream is soft
        differ.append(not (_equal(real[-1], dreamt[-1]) and ends_alike))
        done = terminated or truncated or bool(step.done)
    return SideBySide(torch.cat(real), torch.cat(dreamt), torch.tensor(differ))


def _equal(real: Tensor, dreamt: Tensor) -> bool:
    if not real.is_floating_point():
        return bool((real == dreamt).all())
    return real.dim() == 2 or bool((real - dreamt).abs().max() <= _TOLERANCE)


def moving_picture(scenes: Mapping[str, SideBySide], data: Transitions) -> Picture | None:
    """Draw scenes side by side: in each, the real state left, the dreamt one right, a red frame where they differ.

    Args:
        scenes: The scenes by name; a shorter one stands still at its end.
        data: The data, whose `show` is used.

    Returns:
        The picture; None if states are not shown as images.
    """
    clips = [_clip(scene, data) for scene in scenes.values()]
    shown = [clip for clip in clips if clip is not None]
    if len(shown) < len(clips) or not clips:
        return None
    length = max(len(clip) for clip in shown)
    alike = [torch.cat((clip, clip[-1:].expand(length - len(clip), -1, -1, -1))) for clip in shown]
    return draw(CAPTION, {"": torch.stack(alike)}, list(scenes))


def _clip(scene: SideBySide, data: Transitions) -> Tensor | None:
    """The frames of one scene, [T, 3, H, W] in [0, 1]; None if there are no images."""
    pair = []
    for states in (scene.real, scene.dreamt):
        images = show(data, states)
        if not isinstance(images, Tensor) or images.dim() != 4:
            return None
        pair.append(images if images.shape[1] == 3 else images[:, :1].expand(-1, 3, -1, -1))
    times = -(-_SIDE // max(pair[0].shape[-2:]))
    left, right = (F.interpolate(images.float(), scale_factor=times, mode="nearest") for images in pair)
    both = torch.cat((left, left.new_full((*left.shape[:3], _GAP), _GREY), right), 3)
    framed = F.pad(both, (_FRAME,) * 4, value=_GREY)
    inside = F.pad(torch.ones(both.shape[-2:], dtype=torch.bool), (_FRAME,) * 4)
    red = framed.new_tensor(_RED)[:, None, None]
    return torch.where(scene.differ[:, None, None, None] & ~inside, red, framed)


def curves(scene: SideBySide) -> list[Mapping[str, Sequence[tuple[float, float]]]]:
    """Return the numbers of a vector, or the one of a discrete state, over time: a real and a dreamt curve of each.

    Args:
        scene: The scene.
    """
    real, dreamt = (
        states.float().flatten(1) if states.dim() > 1 else states.float()[:, None]
        for states in (scene.real, scene.dreamt)
    )
    return [
        {name: list(enumerate(states[:, i].tolist())) for name, states in (("real", real), ("dream", dreamt))}
        for i in range(min(real.shape[1], _MOST_CURVES))
    ]
