"""Roll-outs of a model of video: what it predicts after the first frames of a clip, beside the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from vae_lightning.models import LatentVariableModel, PredictsFrames
from vae_lightning.pictures.curves import line_chart
from vae_lightning.pictures.drawing import Picture, moving
from vae_lightning.pictures.grids import evaluating
from vae_lightning.pictures.sheets import Block, sheet
from vae_lightning.pictures.shown import NoPictureError, no_picture, on_device, show
from vae_lightning.pictures.sizes import resize
from vae_lightning.types import Batch

_NUM_SEEN = 8
_IN_STRIP = (1, 4, 8, 9, 12, 16, 24, 32, 64, 100)  # the frames of the still picture
_CLIPS_IN_STRIP = 3
_MOST_FRAMES = 128  # of the moving picture
_SIDE = 80  # pixels, at least, of a frame, so that a cross is seen
_ARM, _HALF_WIDTH = 5, 1  # of a cross, in these pixels
_FRAME, _GREY = 4, 0.55  # the border of frames that were seen
_CLAMP = 0.8  # of the linear prediction, as in RolloutScores
_DIMMED = 0.45  # the truth behind the crosses of the linear prediction
_COLOURS = ((0.95, 0.35, 0.1), (0.15, 0.6, 0.95), (0.2, 0.8, 0.35), (0.9, 0.4, 0.85), (0.95, 0.8, 0.1), (0.5, 0.45, 1))


def rollouts(model: LatentVariableModel, data: object, batch: Batch, seed: int, title: str) -> Picture:
    """Draw how a model goes on after the first eight frames of clips; of clips with less than ten frames, after half.

    The rows are the truth, the mean roll-out, a sampled roll-out, and crosses of the linear prediction upon the truth:
    each object keeps its velocity between the last two frames seen. Frames that the model saw have a grey border; the
    frames drawn there are its reconstructions. Crosses are at the places of the objects, one colour an object.

    Args:
        model: The model, which has `predict_frames`; its mode and the random state are restored afterwards.
        data: The data module, whose `show` is used; None for the way that `show` has without one.
        batch: Clips, `x` [n, T, C, H, W].
        seed: The seed of the sampled roll-out.
        title: The text above the picture.

    Raises:
        NoPictureError: if the model predicts no frames, the clips have one frame, or x has no picture.
    """
    if not isinstance(model, PredictsFrames):
        raise NoPictureError(f"{type(model).__name__} has no predict_frames, so there is no roll-out to draw")
    with evaluating(model, seed):
        batch = on_device(batch, model.device, model.dtype)  # type: ignore[arg-type]
        x = batch["x"]
        if x.dim() != 5 or x.shape[1] < 2:
            raise no_picture(x)
        seen = _NUM_SEEN if x.shape[1] >= _NUM_SEEN + 2 else x.shape[1] // 2
        horizon = x.shape[1] - seen
        before = model.trace({name: value[:, :seen] if name == "x" else value for name, value in batch.items()})
        frames, places = {"truth": x}, {}
        for row, sampled in (("mean roll-out", False), ("sampled roll-out", True)):
            found = model.predict_frames(x[:, :seen], horizon, sampled)
            reconstruction = before.reconstruction()
            first = x[:, :seen] if reconstruction is None else reconstruction
            frames[row] = torch.cat((first, found.frames), 1)
            places[row] = torch.cat((found.seen, found.positions), 1)
        frames["linear"], places["linear"] = x * _DIMMED, _linear(places["mean roll-out"], seen)
    clips = {row: _drawn(data, several, x, places.get(row), seen) for row, several in frames.items()}
    note = f"{title}; {seen} frames seen (grey border)"
    return Picture(_strip(note, clips, seen), moving(note, clips, (), _MOST_FRAMES))


def error_chart(found: Mapping[str, object], title: str = "") -> str | None:
    """Draw the error of predictions over the number of the predicted frame, with their speed at the end: SVG text.

    Args:
        found: What a test has found, by name: of it `rollout_curve/<row>` and `rollout_speed/<row>/<H>`.
        title: The text above the chart.

    Returns:
        None if there are no such curves.
    """
    series = {}
    for name, errors in found.items():
        first, _, row = name.partition("/")
        if first == "rollout_curve" and isinstance(errors, list):
            speed = found.get(f"rollout_speed/{row}/{len(errors)}")
            label = f"{row} (speed {speed:.2f})" if isinstance(speed, float) else row
            series[label] = [(float(h), e if isinstance(e, float) else math.nan) for h, e in enumerate(errors, 1)]
    return line_chart(series, title, "predicted frame", "distance from the truth", 640, 360) if series else None


def _linear(places: Tensor, seen: int) -> Tensor:
    """Places seen, then each object on its way of the last two frames seen, clamped: [n, T, O, 2]."""
    last, before = places[:, seen - 1], places[:, max(0, seen - 2)]
    steps = torch.arange(1, places.shape[1] - seen + 1, device=places.device)[:, None, None]
    after = (last[:, None] + steps * (last - before)[:, None]).clamp(-_CLAMP, _CLAMP)
    return torch.cat((places[:, :seen], after), 1)


def _drawn(data: object, frames: Tensor, x: Tensor, places: Tensor | None, seen: int) -> Tensor:
    """Frames as they are shown, enlarged, with crosses, and with a border around those seen: [n, T, 3, H', W']."""
    shown = show(data, frames, like=x)
    if not isinstance(shown, Tensor) or shown.dim() != 5:
        raise no_picture(x)
    times = -(-_SIDE // max(shown.shape[-2:]))
    height, width = (side * times for side in shown.shape[-2:])
    images = resize(shown.flatten(0, 1), height, width).expand(-1, 3, -1, -1).unflatten(0, shown.shape[:2])
    if places is not None:
        images = _with_crosses(images, places.cpu())
    white = F.pad(images, (_FRAME,) * 4, value=1.0)
    inside = F.pad(torch.ones(height, width, dtype=torch.bool), (_FRAME,) * 4)
    was_seen = (torch.arange(images.shape[1]) < seen)[:, None, None, None]
    return torch.where(was_seen & ~inside, _GREY, white)


def _with_crosses(images: Tensor, places: Tensor) -> Tensor:
    """Draw a cross at each place (x, y) in [-1, 1]; a place outside of the picture has none.

    Args:
        images: [n, T, 3, H, W].
        places: [n, T, O, 2].
    """
    height, width = images.shape[-2:]
    centre = (places + 1) / 2 * places.new_tensor([width, height])  # in pixels, [n, T, O, 2]
    across = (torch.arange(width) + 0.5 - centre[..., :1])[..., None, :].abs()  # [n, T, O, 1, W]
    down = (torch.arange(height) + 0.5 - centre[..., 1:])[..., :, None].abs()  # [n, T, O, H, 1]
    cross = (across <= _HALF_WIDTH) & (down <= _ARM) | (across <= _ARM) & (down <= _HALF_WIDTH)
    for k in range(places.shape[2]):
        colour = images.new_tensor(_COLOURS[k % len(_COLOURS)])[:, None, None]
        images = torch.where(cross[:, :, k, None], colour, images)
    return images


def _strip(title: str, clips: Mapping[str, Tensor], seen: int) -> Tensor:
    """Some frames of the first clips side by side: uint8 [3, H, W]."""
    count, length = next(iter(clips.values())).shape[:2]
    numbers = sorted({number for number in (*_IN_STRIP, seen, seen + 1, length) if number <= length})
    times = [number - 1 for number in numbers]
    names = [f"{number}" for number in numbers]
    blocks = [
        Block({row: several[i, times] for row, several in clips.items()}, names, "frame")
        for i in range(min(count, _CLIPS_IN_STRIP))
    ]
    return sheet(title, blocks)
