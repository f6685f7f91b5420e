"""Pictures of a model's latents: each dimension moved, the way between two images, and a sheet of a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vae_lightning.distributions.paths import inside
from vae_lightning.models import LatentVariableModel
from vae_lightning.models.dimensions import DEAD, Dimension, dimensions
from vae_lightning.pictures.drawing import Picture, draw
from vae_lightning.pictures.grids import evaluating, lay
from vae_lightning.pictures.planes import beside, principal_directions, scatter
from vae_lightning.pictures.sheets import Block, image_sheet, sheet
from vae_lightning.pictures.shown import label_in_words, no_picture, on_device, show
from vae_lightning.pictures.sizes import BORDER, cell_size, resize
from vae_lightning.runs.suggestions import hint
from vae_lightning.trace import Trace
from vae_lightning.types import Batch, UserError

_FRAMES = 12  # of a moving traversal, there
_ROWS_AT_ONCE = 200
_SHEET = 900  # pixels of the largest side of a sheet


def traversals(
    model: LatentVariableModel,
    data: object,
    images: Batch,
    seed: int,
    title: str,
    start: Batch | None = None,
    label: Tensor | None = None,
    latent: str | None = None,
    numbers: Sequence[int] = (),
    steps: int = 9,
    reach: float = 2.0,
    max_rows: int = 20,
    moving: bool = False,
) -> Picture:
    """Draw a row for each dimension of the latents, the largest KL first: images at values of this dimension alone.

    The values go from -reach to +reach standard deviations of the aggregate posterior. Dimensions whose KL is below
    0.01 nats per image are counted and left out.

    Args:
        model: The model; its mode and the random state are restored afterwards.
        data: The data module, whose `show` is used; None for the way that `show` has without one.
        images: A few hundred examples, `x` [N, ...] and what stands beside: the KL and the range are measured on them.
        seed: The seed of the noise.
        title: The text above the picture.
        start: One example whose code the other numbers stand at, `x` [1, ...]; None for the prior's mean. A
            conditional model then takes what stands beside the first of `images`.
        label: For a conditional model the label of the traversal, [1]; None for that of the start.
        latent: The name of the latent to move; None for every latent.
        numbers: The numbers of its dimensions to draw, dead ones too; empty for all that are not dead.
        steps: The number of images in a row.
        reach: How far the rows go, in standard deviations.
        max_rows: The largest number of rows.
        moving: Whether to draw a moving picture too, in which every dimension moves at once, each in its own image.

    Raises:
        UserError: if the model cannot decode latents, or a chosen dimension does not exist.
    """
    if steps < 2:
        raise UserError(f"traverse: steps is {steps}; a row needs at least 2 images")
    with evaluating(model, seed):
        images = on_device(images, model.device, model.dtype)  # type: ignore[arg-type]
        found = dimensions(model, images)
        rows = _chosen(model, found, latent, numbers)
        drawn = rows[:max_rows]
        origin = _origin(model, images, start, label)

        def moved(one: Dimension, count: int) -> Tensor:  # [count, C, H, W]
            values = one.values(count, reach).to(model.device)
            x = model.traverse_codes(origin.codes, origin.trace, origin.batch, one.latent, one.number, values)
            return _pixels(data, x[0], images["x"])

        words = f"{_kept(found, rows, drawn, bool(numbers))}; {_estimates(drawn, len(images['x']))}"
        heading = f"{title}: from {origin.name}{_given(model, data, origin.batch)}; {words}"
        picture = _in_rows(heading, {_caption(one): moved(one, steps) for one in drawn}, _places(steps, reach))
        if not moving or picture.frames is not None:
            return picture
        clips = {one.short_name: moved(one, _FRAMES) for one in drawn}
        return replace(picture, frames=_there_and_back(title, clips))


def _places(steps: int, reach: float) -> list[str]:
    """The text above each image of a row: where its value lies in the aggregate posterior."""
    shares = torch.linspace(-reach, reach, steps).tolist()
    return [f"{share:+.1f} sd" if abs(share) > 1e-6 * reach else "mean" for share in shares]


def _there_and_back(title: str, clips: Mapping[str, Tensor]) -> Tensor:
    """Clips [T, C, H, W] by name, all playing together, forwards and backwards: uint8 [2 T - 2, 3, H', W']."""
    together = torch.stack(list(clips.values()), 1)  # [T, D, C, H, W]
    frames = (*together, *together[1:-1].flip(0))
    return torch.stack([image_sheet(title, {"": frame}, list(clips)) for frame in frames])


def interpolation(
    model: LatentVariableModel, data: object, a: Batch, b: Batch, seed: int, title: str, steps: int = 10
) -> Picture:
    """Draw the means of p(x|z) on the way from the code of a to that of b, below the same mixture of pixels.

    Args:
        model: The model; its mode and the random state are restored afterwards.
        data: The data module, whose `show` is used; None for the way that `show` has without one.
        a: One example, `x` [1, ...], and what stands beside.
        b: The other example.
        seed: The seed of the noise, which only a posterior without a closed-form mean has.
        title: The text above the picture.
        steps: The number of images, at least 2.

    Raises:
        UserError: if there are too few steps, or the model cannot decode latents.
    """
    with evaluating(model, seed):
        a, b = (on_device(one, model.device, model.dtype) for one in (a, b))  # type: ignore[arg-type]
        model.check_decode(a)
        way = model.interpolate(a, b, steps)[0]  # [steps, ...]
        share = torch.linspace(0, 1, steps, device=way.device).view(-1, *[1] * (way.dim() - 1))
        mixture = (1 - share) * a["x"] + share * b["x"]
        rows = {"mixed pixels": _pixels(data, mixture, way), "mixed codes": _pixels(data, way, way)}
        return _in_rows(
            f"{title}{_given(model, data, a, b)}", rows, [f"{value:.2f}" for value in share.flatten().tolist()]
        )


def manifold(
    model: LatentVariableModel,
    data: object,
    images: Batch,
    seed: int,
    title: str,
    latent: str | None = None,
    side: int = 15,
    label: Tensor | None = None,
) -> Picture:
    """Draw the means of p(x|z) over a plane of the latent, and beside them the codes of the images in this plane.

    Of two dimensions the plane is the whole space. Of more it goes through the mean of the codes, along the two
    directions in which the codes vary most; the other latents stand at their means.

    Args:
        model: The model; its mode and the random state are restored afterwards.
        data: The data module, whose `show` is used; None for the way that `show` has without one.
        images: Some hundred examples, `x` [N, ...] and what stands beside; `label` [N] colours the points.
        seed: The seed of the noise.
        title: The text above the picture.
        latent: The name of the latent; None for the one of the largest KL.
        side: The number of images in a row and in a column.
        label: For a conditional model the label of all images of the sheet, [1]; None for that of the first example.

    Raises:
        UserError: if the model cannot decode latents, or the latent has objects, or fewer than two dimensions.
    """
    if side < 2:
        raise UserError(f"manifold: side is {side}; a sheet needs at least 2 images in a row")
    with evaluating(model, seed):
        images = on_device(images, model.device, model.dtype)  # type: ignore[arg-type]
        found = dimensions(model, images)
        name = latent or found[0].latent
        few = model.look({field: values[:2] for field, values in images.items()})
        _check_plane(model, few, name)
        model.check_decode({field: values[:2] for field, values in images.items()})
        codes, q = _codes(model, images), few.latents[name].q
        plane = _plane(codes[name].flatten(1).double())
        z = (plane.origin + _cells(plane.limits, side).to(plane.origin) @ plane.directions).to(
            codes[name]
        )  # [side side, D]
        others = {key: inside(few.latents[key].q, values.mean(0)) for key, values in codes.items() if key != name}
        at = {key: value.expand(len(z), *value.shape) for key, value in others.items()}
        at[name] = inside(q, z.unflatten(-1, q.event_shape))
        fields = {field: values[:1] for field, values in images.items()}
        fields |= {} if label is None else {"label": label.to(model.device)}
        fields = {field: values.expand(len(z), *values.shape[1:]) for field, values in fields.items()}
        x = model.decode_codes(model.needed_for(name, at), fields)
        drawn = _square(_pixels(data, x, images["x"]), side)
        names = getattr(data, "class_names", ()) or ()
        labels = images.get("label")
        plot = scatter(plane.points, labels, names, plane.limits, drawn.shape[1], plane.axes(name))
        is_dead = all(one.is_dead for one in found if one.latent == name)
        warning = f"; {name} is dead: each KL < {DEAD} nats" if is_dead else ""
        heading = f"{title}: {name} in {plane.name}{_given(model, data, fields, of='sheet of ')}{warning}"
        return Picture(beside(heading, drawn, plot))


@dataclass(frozen=True)
class _Origin:
    """Where a traversal starts: codes [1, *event], a trace with the spaces of the latents, what stands beside z."""

    name: str
    codes: Mapping[str, Tensor]
    trace: Trace
    batch: Batch


@dataclass(frozen=True)
class _Plane:
    """A plane in the space of a latent, and the codes in it.

    Args:
        origin: [D].
        directions: Two orthogonal unit vectors, [2, D].
        points: The codes in the plane, [N, 2].
        share: The share of the variance of the codes that lies in the plane.
    """

    origin: Tensor
    directions: Tensor
    points: Tensor
    share: float

    @property
    def is_whole(self) -> bool:
        return len(self.origin) == 2

    @property
    def name(self) -> str:
        return "its two dimensions" if self.is_whole else f"its two largest directions, {self.share:.0%} of variance"

    def axes(self, latent: str) -> tuple[str, str]:
        return (f"{latent}[0]", f"{latent}[1]") if self.is_whole else ("direction 1", "direction 2")

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top) of the middle 98 % of the points along each axis."""
        shares = torch.tensor([0.01, 0.99], dtype=self.points.dtype, device=self.points.device)
        (left, bottom), (right, top) = self.points.quantile(shares, 0).tolist()
        return left, max(right, left + 1e-6), bottom, max(top, bottom + 1e-6)


def _origin(model: LatentVariableModel, images: Batch, start: Batch | None, label: Tensor | None) -> _Origin:
    """The code of `start`, or the prior's mean, with the mean of the codes for a prior that has none."""
    batch = {name: values[:1] for name, values in images.items()}
    if start is not None:
        batch = on_device(start, model.device, model.dtype)  # type: ignore[arg-type]
    trace = model.look(batch)
    batch = batch if label is None else {**batch, "label": label.to(model.device)}
    model.check_decode(batch)
    if start is not None:
        codes = {name: trace.row(latent.z) for name, latent in trace.latents.items()}
        return _Origin("the image's code", codes, trace, batch)
    known = model.prior_codes(batch)
    missing = trace.latents.keys() - known.keys()
    means = {name: code.mean(0, keepdim=True) for name, code in _codes(model, images).items() if name in missing}
    codes = known | {name: inside(trace.latents[name].q, mean) for name, mean in means.items()}
    note = f"the mean of the codes (the prior of {', '.join(sorted(missing))} has no mean)"
    return _Origin(note if missing else "the prior's mean", codes, trace, batch)


def _chosen(
    model: LatentVariableModel, found: Sequence[Dimension], latent: str | None, numbers: Sequence[int]
) -> list[Dimension]:
    """The dimensions that are asked for, or all that are not dead, the largest KL first."""
    names = list(dict.fromkeys(one.latent for one in found))
    if latent is not None and latent not in names:
        raise UserError(
            f"{type(model).__name__} has no latent {latent}{hint(latent, names)} to move; it has {', '.join(names)}"
        )
    if numbers and latent is None and len(names) > 1:
        raise UserError(f"{type(model).__name__} has the latents {', '.join(names)}; name one beside its dimensions")
    rows = [one for one in found if latent in (None, one.latent)]
    wrong = [number for number in numbers if not 0 <= number < len(rows)]
    if wrong:
        raise UserError(f"{rows[0].latent} has no dimension {wrong[0]}; they are 0 .. {len(rows) - 1}")
    kept = [one for one in rows if (one.number in numbers if numbers else not one.is_dead)]
    if not kept:
        raise UserError(
            f"all {len(rows)} dimensions are dead (KL below {DEAD} nats an image), so there is nothing to move; name "
            "some (--latent and --dimensions) to draw them all the same"
        )
    return kept


def _kept(found: Sequence[Dimension], rows: Sequence[Dimension], drawn: Sequence[Dimension], is_chosen: bool) -> str:
    """What the rows are, in words."""
    dead = sum(one.is_dead for one in found)
    words = f"{len(drawn)} of {len(rows)} dimensions" if len(drawn) < len(rows) else f"{len(rows)} dimensions"
    words += "" if is_chosen else f", {dead} dead left out (KL < {DEAD} nats)"
    return words


def _estimates(drawn: Sequence[Dimension], count: int) -> str:
    """How the KLs were measured, in words: the numbers of a test, over all its images, differ a little."""
    words = {"moments": "~ by moments of q and p", "sampled": "at one z each"}
    found = dict.fromkeys(words.get(one.estimator, "in closed form") for one in drawn)
    return f"KL of {count:,} images {', '.join(found)}"


def _given(model: LatentVariableModel, data: object, *batches: Batch, of: str = "") -> str:
    """The labels that a conditional model decodes with, in words; empty for another model."""
    if not model.num_labels:
        return ""
    return f", {of}{' to '.join(dict.fromkeys(label_in_words(data, int(batch['label'][0])) for batch in batches))}"


def _caption(one: Dimension) -> str:
    return f"{one}  {'' if one.is_exact else '~ '}{one.kl:.2f} nats"


def _in_rows(title: str, rows: Mapping[str, Tensor], labels: Sequence[str]) -> Picture:
    """Rows of images with a text above each column; clips also move."""
    if any(shown.dim() == 5 for shown in rows.values()):
        return draw(title, rows, labels)
    return Picture(sheet(title, [Block(rows, labels)]))


def _pixels(data: object, x: Tensor, like: Tensor) -> Tensor:
    """Examples as images or clips."""
    shown = show(data, x, like)
    if not isinstance(shown, Tensor):
        raise no_picture(x)
    return shown


def _codes(model: LatentVariableModel, images: Batch) -> dict[str, Tensor]:
    """The codes of all images, [N, *event] by name; whole numbers as they are."""
    parts = [
        model.codes_of({name: values[i : i + _ROWS_AT_ONCE] for name, values in images.items()})
        for i in range(0, len(images["x"]), _ROWS_AT_ONCE)
    ]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _check_plane(model: LatentVariableModel, trace: Trace, name: str) -> None:
    """Raise unless the latent exists and has a plane."""
    latent = trace.latents.get(name)
    if latent is None or latent.enumerated:
        known = [key for key, one in trace.latents.items() if not one.enumerated]
        raise UserError(
            f"{type(model).__name__} has no latent {name}{hint(name, known)} with a plane; it has {', '.join(known)}"
        )
    if latent.exists is not None:
        raise UserError(f"{name} has several objects in an image; vae-lightning traverse RUN moves one")
    if latent.q.event_shape.numel() < 2:
        raise UserError(f"{name} has one dimension, and a plane needs two; vae-lightning traverse RUN moves it")


def _plane(z: Tensor) -> _Plane:
    """The plane of codes [N, D]: the whole space of two dimensions, else the two largest principal directions."""
    if z.shape[1] == 2:
        return _Plane(torch.zeros_like(z[0]), torch.eye(2).to(z), z, 1.0)
    origin = z.mean(0)
    directions, shares = principal_directions(z)
    if len(shares) < 2:
        raise UserError("a plane of the codes needs at least two images")
    return _Plane(origin, directions[:2], (z - origin) @ directions[:2].T, shares[:2].sum().item())


def _cells(limits: tuple[float, float, float, float], side: int) -> Tensor:
    """The points of the sheet, row by row from the top: float64 [side side, 2]."""
    left, right, bottom, top = limits
    across = torch.linspace(left, right, side, dtype=torch.float64)
    down = torch.linspace(top, bottom, side, dtype=torch.float64)
    return torch.stack([across.repeat(side), down.repeat_interleave(side)], 1)


def _square(images: Tensor, side: int) -> Tensor:
    """Images row by row, about 900 pixels high at most: uint8 [3, H, W]."""
    if images.dim() == 5:  # of a clip, its first frame
        images = images[:, 0]
    room = _SHEET / side - 2 * BORDER
    return lay(resize(images, *cell_size(images.shape[-2], images.shape[-1], room, room)), side)
