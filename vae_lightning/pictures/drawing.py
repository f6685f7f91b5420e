"""Draw what a model makes of its data: reconstructions, samples, and the model's own scenes."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vae_lightning.models import LatentVariableModel
from vae_lightning.models.temperature import at_temperature
from vae_lightning.pictures.encoding import gif_bytes, png_bytes
from vae_lightning.pictures.grids import evaluating
from vae_lightning.pictures.sheets import at_times, image_sheet, spread, strip_sheet
from vae_lightning.pictures.shown import (
    Shown,
    checked,
    in_colours,
    is_map,
    names_of_classes,
    no_picture,
    on_device,
    show,
    show_field,
)
from vae_lightning.types import Batch

_MAX_FRAMES = 64  # of a moving picture
_MAX_MOVING_SIDE = 1000  # pixels


@dataclass(frozen=True)
class Picture:
    """What is drawn under one name. A notebook shows it where it is the last line of a cell.

    Args:
        still: uint8 [3, H, W]; of clips, some of their frames side by side. None if everything is text.
        frames: The moving picture, uint8 [T, 3, H, W]; None if there are no clips.
        text: A table of the texts; None if there are none.
    """

    still: Tensor | None = None
    frames: Tensor | None = None
    text: str | None = None

    def __repr__(self) -> str:
        parts = {"still": self.still, "frames": self.frames}
        shapes = [f"{name}=uint8 {list(value.shape)}" for name, value in parts.items() if value is not None]
        return f"Picture({', '.join([*shapes, *([] if self.text is None else ['text'])])})"

    def _repr_png_(self) -> bytes | None:
        """Return the still picture for a notebook."""
        return None if self.still is None else png_bytes(self.still)

    def _repr_html_(self) -> str | None:
        """Return the moving picture and the table for a notebook; None if there is neither."""
        moving = b"" if self.frames is None else base64.b64encode(gif_bytes(self.frames))
        image = f'<img src="data:image/gif;base64,{moving.decode()}">' if moving else ""
        table = "" if self.text is None else f"<pre>{html.escape(self.text)}</pre>"
        return image + table or None


def draw(title: str, rows: Mapping[str, Shown], labels: Sequence[str] = ()) -> Picture:
    """Draw the rows of each example below one another, each row with its caption.

    Images and clips make a picture, texts a table.

    Args:
        title: The text above the picture and the table.
        rows: Images, clips or texts by caption, of as many examples each.
        labels: The class of each example; empty if unknown.
    """
    pixels = {caption: shown for caption, shown in rows.items() if isinstance(shown, Tensor)}
    texts = {caption: shown for caption, shown in rows.items() if not isinstance(shown, Tensor)}
    text = _table(title, texts, labels) if texts else None
    if any(shown.dim() == 5 for shown in pixels.values()):
        clips = {caption: shown if shown.dim() == 5 else shown[:, None] for caption, shown in pixels.items()}
        return Picture(strip_sheet(title, clips, labels), moving(title, clips, labels), text)
    return Picture(image_sheet(title, pixels, labels) if pixels else None, None, text)


def reconstructions(model: LatentVariableModel, data: object, batch: Batch, seed: int, title: str) -> Picture:
    """Draw originals above their reconstructions, the map of the true objects, and the model's rows (`panes`).

    A reconstruction is the mean of p(x|z), or its mode of classes, at one z ~ q(z|x): of an enumerated variable, at the
    most probable value. There is no such row if p(x|z) has neither.

    Args:
        model: The model; its mode and the random state are restored afterwards.
        data: The data module, whose `show` is used; None for the way that `show` has without one.
        batch: The originals, `x` [n, ...]; `segmentation`, whole numbers [n, H, W], if the true objects are known.
        seed: The seed of the noise of z.
        title: The text above the picture.

    Raises:
        NoPictureError: if neither x nor the model's own rows can be drawn.
        UserError: if `show` or `panes` returned something that cannot be drawn.
    """
    with evaluating(model, seed):
        batch = on_device(batch, model.device, model.dtype)  # type: ignore[arg-type]
        trace = model.trace(batch)
        x, reconstruction = batch["x"], trace.reconstruction()
        rows = {"original": show(data, x)}
        if reconstruction is not None:
            rows["reconstruction"] = show(data, reconstruction, like=x)
        truth = {"true objects": batch["segmentation"]} if is_map(batch.get("segmentation")) else {}
        for caption, value in {**truth, **model.panes(trace)}.items():
            shown = in_colours(value) if is_map(value) else show_field(data, value)
            rows[caption] = checked(shown, len(x), f"{type(model).__name__}.panes(trace), {caption}")
        drawable = {caption: shown for caption, shown in rows.items() if shown is not None}
        if not drawable:
            raise no_picture(x)
        return draw(title, drawable, names_of_classes(data, batch, len(x)))


def samples(
    model: LatentVariableModel,
    data: object,
    n: int,
    seed: int,
    title: str,
    temperature: float = 1.0,
    label: Tensor | None = None,
) -> Picture:
    """Draw samples of the model.

    Args:
        model: The model; its mode and the random state are restored afterwards.
        data: The data module, whose `show` is used; None for the way that `show` has without one.
        n: The number of samples.
        seed: The seed of the samples.
        title: The text above the picture.
        temperature: What the standard deviations of the prior are multiplied by.
        label: The labels of the samples of a conditional model, [n]; None for the way of `model.sample(n)`.

    Raises:
        NoPictureError: if x has no picture.
        UserError: if `show` returned something that cannot be drawn, if the model takes no label, or if its prior has
            no temperature.
    """
    with evaluating(model, seed), at_temperature(model, temperature):
        x = draw_x(model, n, label)
        shown = show(data, x)
        if shown is None:
            raise no_picture(x)
        return draw(title, {"": shown})


def draw_x(model: LatentVariableModel, n: int, label: Tensor | None) -> Tensor:
    """Draw x as `samples` shows it: [n, *event], means of p(x|z) at z from the prior, unless the model says otherwise.

    Args:
        model: The model.
        n: The number of samples.
        label: The labels of the samples of a conditional model, [n]; None for the way of `model.sample(n)`.
    """
    return model.sample(n) if label is None else model.sample_given(label.to(model.device))


def scene(model: LatentVariableModel, shown: Shown, name: str, title: str) -> Picture:
    """Draw one of the pictures that a model's `scenes` returned.

    Args:
        model: The model, for messages.
        shown: The images, the clips or the texts.
        name: The name of the scene.
        title: The text above the picture.

    Raises:
        UserError: if the scene cannot be drawn.
    """
    count = len(shown) if isinstance(shown, Tensor | list | tuple) else 0
    known = checked(shown, count, f"{type(model).__name__}.scenes(data), {name}")
    return Picture() if known is None or not count else draw(title, {"": known})


def scenes_of(model: LatentVariableModel, data: object, seed: int) -> Mapping[str, Shown]:
    """Return the model's own scenes by name, in evaluation mode.

    Args:
        model: The model; its mode and the random state are restored afterwards.
        data: The data module, or None.
        seed: The seed of the noise.
    """
    with evaluating(model, seed):
        return model.scenes(data)


def moving(title: str, clips: Mapping[str, Tensor], labels: Sequence[str], most: int = _MAX_FRAMES) -> Tensor:
    """Draw all rows of all examples playing together: uint8 [T, 3, H, W].

    Args:
        title: The text above the picture, before the number of the frame.
        clips: Clips [n, T, C, H, W] in [0, 1] by caption.
        labels: The class of each example; empty if unknown.
        most: The largest number of frames, spread over the clips.
    """
    length = max(shown.shape[1] for shown in clips.values())
    frames = []
    for time in spread(length, most):
        images = {caption: at_times(shown.movedim(1, 0), [time])[0] for caption, shown in clips.items()}
        frames.append(image_sheet(f"{title}, frame {time + 1} of {length}", images, labels, _MAX_MOVING_SIDE))
    widest = max(frame.shape[2] for frame in frames)  # a title of more digits may be wider
    return torch.stack(
        [torch.nn.functional.pad(frame, (0, widest - frame.shape[2], 0, 0), value=255) for frame in frames]
    )


def _table(title: str, texts: Mapping[str, list[str]], labels: Sequence[str]) -> str:
    """One line for each text: the number of the example, its class, the caption, the text."""
    count = len(next(iter(texts.values())))
    names = [f"{i + 1}" + (f" {labels[i]}" if labels else "") for i in range(count)]
    widths = (max(map(len, names)), max(map(len, texts)))
    lines = [title, ""]
    for i, name in enumerate(names):
        for j, (caption, shown) in enumerate(texts.items()):
            line = shown[i].replace("\r", "").replace("\n", "\\n")
            lines.append(f"{name if j == 0 else '':<{widths[0]}}  {caption:<{widths[1]}}  {line}".rstrip())
        lines += [""] if len(texts) > 1 else []
    return "\n".join(lines).rstrip("\n") + "\n"
