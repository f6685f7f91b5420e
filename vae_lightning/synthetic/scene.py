"""The canvas of a drawn face: coordinates that turn with the head, colours, and paint by signed distance.

The code uses +, -, *, /, sqrt, floor, min and max only, which IEEE 754 rounds exactly. A pixel is therefore the same
number whatever the batch, the vector width or the device. The few angles are computed in float64 and rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from vae_lightning.synthetic.attributes import FACE_ATTRIBUTES

_FACTORS = """
    backdrop_hue backdrop_hue_2 backdrop_value backdrop_value_2 backdrop_x backdrop_y light shift_x shift_y scale
    roll yaw pitch skin hair_tone hair_length hair_volume parting wave cloth_hue cloth_value hat_hue hat_value hat_kind
    glasses_hue glasses_kind jewel lip_hue makeup_hue eye_colour eye_size eye_spacing eye_tilt gaze_x gaze_y brow_tilt
    brow_height face_width face_height nose_length nose_width mouth_width mouth_height smile open beard
"""
STYLE: tuple[str, ...] = tuple(_FACTORS.split())
"""The names of the continuous factors of a face beside its attributes; each is uniform in [0, 1)."""

_SKIN = ((0.97, 0.84, 0.74), (0.93, 0.75, 0.60), (0.82, 0.61, 0.45), (0.62, 0.42, 0.29), (0.40, 0.26, 0.18))
_PALE_SKIN = (1.0, 0.93, 0.89)
_EYES = ((0.22, 0.13, 0.07), (0.42, 0.27, 0.12), (0.45, 0.47, 0.20), (0.25, 0.50, 0.35), (0.25, 0.48, 0.75))
_JEWELS = ((0.95, 0.78, 0.30), (0.92, 0.92, 0.96), (0.85, 0.20, 0.30), (0.20, 0.65, 0.60))
_HAIR = {
    "Hair": (0.66, 0.26, 0.10),  # red, if none of the next four is true
    "Black_Hair": (0.10, 0.085, 0.09),
    "Brown_Hair": (0.36, 0.22, 0.12),
    "Blond_Hair": (0.91, 0.75, 0.42),
    "Gray_Hair": (0.72, 0.72, 0.74),
}
_BROWS_OF_THE_BALD = (0.25, 0.17, 0.12)
_YAW = 0.26  # radians; the limit of the turn to either side

_HIDDEN = ("Hair", "Old", "Long_Hair", "Full_Beard")  # flags without a name in CelebA
_COLOURS = ("skin", "hair", "eyes", "backdrop", "backdrop_2", "cloth", "hat", "glasses", "lipstick", "makeup", "jewel")
_FLAG = {name: k for k, name in enumerate(FACE_ATTRIBUTES + _HIDDEN)}
_FACTOR = {name: k for k, name in enumerate(STYLE)}

FAR = 9.0
"""A distance at which nothing is painted."""
Window: TypeAlias = tuple[slice, slice]
"""Rows and columns of a picture."""
_WHOLE: Window = (slice(None), slice(None))


@dataclass(frozen=True)
class Scene:
    """The canvases of n faces, or a part of them: a window of rows and columns, of all images or of some.

    Args:
        rgb: The picture [n, 3, h, w] in [0, 1], painted in place.
        maps: Coordinates [n, H, W] by name: x, y of the frame (1 = half the width of a square picture; y downwards);
            body_x, body_y of the shoulders; a, b of the head (scaled and rolled with the head); u, v of the face (on a
            ball that turns left and right); head, the signed distance from the head's outline; ball_x, ball_y of the
            unit disc that the head fills; hair, the tone of the strands.
        flags: Attributes and hidden flags [n, F] in {0, 1}.
        style: [n, len(STYLE)] in [0, 1).
        colours: [n, C, 3] in [0, 1].
        edge: The size of a pixel.
        window: The rows and columns of this part.
        index: The images of this part; None for all.
    """

    rgb: Tensor
    maps: dict[str, Tensor]
    flags: Tensor
    style: Tensor
    colours: Tensor
    edge: float
    window: Window = _WHOLE
    index: Tensor | None = None

    def part(self, window: Window, index: Tensor | None) -> Scene:
        """A part of the scene. Of all images it is a view, so that paint shows here too; of some images it is a copy.

        Args:
            window: Rows and columns.
            index: The images: int64 [m]; None for all.
        """
        parts = [self.rgb[:, :, *window], self.flags, self.style, self.colours]
        if index is not None:
            parts = [tensor.index_select(0, index) for tensor in parts]
        rgb, flags, style, colours = parts
        return Scene(rgb, self.maps, flags, style, colours, self.edge, window, index)

    def map(self, name: str) -> Tensor:
        """The values in this part of the map called `name`: [n, h, w]."""
        values = self.maps[name][:, *self.window]
        return values if self.index is None else values.index_select(0, self.index)

    def on(self, name: str) -> Tensor:
        """Whether the attribute or hidden flag `name` is on, 0 or 1: float32 [n, 1, 1]."""
        return self.flags[:, _FLAG[name], None, None]

    def between(self, name: str, low: float = 0.0, high: float = 1.0) -> Tensor:
        """low + (high - low) * factor, a factor of style mapped to an interval: [n, 1, 1].

        Args:
            name: A name in `STYLE`.
            low: The value at 0.
            high: The value at 1.
        """
        return low + (high - low) * self.style[:, _FACTOR[name], None, None]

    def colour(self, name: str) -> Tensor:
        """The colour `name` of `_COLOURS` of each face: [n, 3, 1, 1]."""
        return self.colours[:, _COLOURS.index(name), :, None, None]

    def hair(self) -> Tensor:
        """The colour of the hair with its strands: [n, 3, h, w]."""
        colour = self.colour("hair")
        return colour + (colour + 0.15) * self.map("hair")[:, None]  # black hair shines too

    def fill(self, distance: Tensor, colour: Tensor, opacity: Tensor | float = 1.0, soft: float = 1.0) -> None:
        """Paint the inside of an outline.

        Args:
            distance: The signed distance from the outline, negative inside: [n, h, w].
            colour: [n, 3, 1, 1] or [n, 3, h, w].
            opacity: 1 covers what was there.
            soft: The width of the edge in pixels.
        """
        self.blend(self.inside(distance, soft).mul_(opacity), colour)

    def inside(self, distance: Tensor, soft: float = 1.0) -> Tensor:
        """clamp(1/2 - d / edge, 0, 1): the share of a pixel that lies inside an outline, [n, h, w].

        Args:
            distance: The signed distance d from the outline, negative inside: [n, h, w].
            soft: The width of the edge in pixels.
        """
        return (distance * (-1 / (self.edge * soft))).add_(0.5).clamp_(0, 1)

    def blend(self, alpha: Tensor, colour: Tensor) -> None:
        """rgb <- (1 - alpha) rgb + alpha colour.

        Args:
            alpha: [n, h, w].
            colour: [n, 3, 1, 1] or [n, 3, h, w].
        """
        self.rgb.add_((colour - self.rgb).mul_(alpha[:, None]))

    def darken(self, alpha: Tensor) -> None:
        """rgb <- rgb (1 - alpha), with 0.8 alpha for red because shadows on skin are warm; `alpha` is [n, h, w]."""
        self.rgb.mul_((alpha[:, None] * constant((-0.8, -1.0, -1.0), alpha)).add_(1))

    def lighten(self, alpha: Tensor) -> None:
        """rgb <- rgb + alpha (1 - rgb); `alpha` is [n, h, w]."""
        self.blend(alpha, constant((1.0, 1.0, 1.0), alpha))


def constant(colour: Sequence[float], like: Tensor) -> Tensor:
    """The same colour in every image: [1, 3, 1, 1].

    Args:
        colour: Red, green, blue in [0, 1].
        like: A tensor on the device of the result.
    """
    return torch.tensor(colour, device=like.device)[None, :, None, None]


def circle(x: Tensor, y: Tensor, radius: Tensor | float) -> Tensor:
    """Signed distance from a circle about the origin.

    Args:
        x, y: Coordinates, to the right and downwards.
        radius: Its radius.
    """
    return (x * x).add_(y * y).sqrt_().sub_(radius)


def ellipse(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """Signed distance from an ellipse about the origin, to first order near the outline.

    Args:
        x, y: Coordinates, to the right and downwards.
        a, b: Half the width and half the height.
    """
    x, y = x * (1 / a), y * (1 / b)  # not x / a, because some devices replace a division by this product
    k = (x * x).add_(y * y).sqrt_().clamp_(min=1e-3)
    x, y = x * (1 / a), y * (1 / b)
    return (k - 1).mul_(k).div_((x * x).add_(y * y).sqrt_().clamp_(min=1e-3))


def box(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float, corner: Tensor | float) -> Tensor:
    """Signed distance from a box with round corners about the origin.

    Args:
        x, y: Coordinates, to the right and downwards.
        a, b: Half the width and half the height.
        corner: The radius of the corners.
    """
    x, y = x.abs() - (a - corner), y.abs() - (b - corner)
    return circle(x.clamp(min=0), y.clamp(min=0), corner) + torch.maximum(x, y).clamp_(max=0)


def glow(x: Tensor, y: Tensor, a: Tensor | float, b: Tensor | float) -> Tensor:
    """A soft spot: (1 - (x/a)^2 - (y/b)^2)^2 within its ellipse, else 0.

    Args:
        x, y: Coordinates, to the right and downwards.
        a, b: Half the width and half the height of the ellipse.
    """
    x, y = x * (1 / a), y * (1 / b)
    spot = (1 - x * x).sub_(y * y).clamp_(min=0)
    return spot.mul_(spot)


def wave(t: Tensor) -> Tensor:
    """Nearly sin 2 pi t, made of parabolas; `t` counts periods."""
    t = (t - t.floor()).sub_(0.5)
    return t.abs().sub_(0.5).mul_(t).mul_(16)


def face_width(s: Scene) -> Tensor:
    """Half the width of each face of `s`: [n, 1, 1]."""
    return s.between("face_width", 0.44, 0.48) + 0.05 * s.on("Chubby") - 0.02 * s.on("Oval_Face")


def chin(s: Scene) -> Tensor:
    """The distance of the chin below the middle of the head, for each face of `s`: [n, 1, 1]."""
    return s.between("face_height", 0.58, 0.63) + 0.06 * s.on("Oval_Face") - 0.02 * s.on("Chubby")


def turn(s: Scene) -> Tensor:
    """sin yaw of each face of `s`, above 0 if the head turns to the right of the picture: [n, 1, 1]."""
    return _cos_sin(s.between("yaw", -_YAW, _YAW))[1]


class Layer(NamedTuple):
    """A function that paints one thing, and the window and the faces within which it paints.

    Args:
        paint: Paints on a part of the scene.
        top: The upper edge of the window, in coordinates of the frame.
        bottom: The lower edge.
        side: The distance of the left and right edges from the middle.
        only: Paint the faces that have one of these flags; empty for all faces.
    """

    paint: Callable[[Scene], None]
    top: float = -FAR
    bottom: float = FAR
    side: float = FAR
    only: tuple[str, ...] = ()

    def draw(self, scene: Scene) -> None:
        """Paint on `scene`, in place: the faces that have the flags, within the window."""
        window = self._window(scene)
        if not self.only:
            self.paint(scene.part(window, None))
            return
        index = torch.stack([scene.on(name).flatten() for name in self.only]).amax(0).nonzero().flatten()
        if len(index):
            part = scene.part(window, index)
            self.paint(part)
            scene.rgb[:, :, *window].index_copy_(0, index, part.rgb)

    def _window(self, scene: Scene) -> Window:
        height, width = scene.rgb.shape[2:]

        def pixel(position: float, size: int) -> int:
            return min(max(round(size / 2 + position / scene.edge), 0), size)

        rows = slice(pixel(self.top, height), pixel(self.bottom, height))
        return rows, slice(pixel(-self.side, width), pixel(self.side, width))


def make_scene(attributes: Tensor, style: Tensor, height: int, width: int) -> Scene:
    """An empty canvas for each face, with its coordinates and colours.

    A square shows CelebA's centre crop of 148 x 148; any other size shows the whole of its 178 x 218.

    Args:
        attributes: uint8 [n, 40] in {0, 1}.
        style: float32 [n, len(STYLE)] in [0, 1).
        height, width: The size of the pictures in pixels.
    """
    edge = 2 / width if height == width else max(218 / height, 178 / width) / 74
    num, device = len(style), style.device
    flags = torch.cat((attributes.float(), torch.zeros(num, len(_HIDDEN), device=device)), dim=1)
    colours = torch.empty(num, len(_COLOURS), 3, device=device)
    scene = Scene(torch.empty(num, 3, height, width, device=device), {}, flags, style, colours, edge)
    _set_hidden(scene)
    _set_colours(scene)
    _set_coordinates(scene)
    _set_head(scene)
    _set_hair(scene)
    return scene


def _set_hidden(s: Scene) -> None:
    s.on("Hair").copy_(1 - s.on("Bald"))
    s.on("Old").copy_(1 - s.on("Young"))
    long_haired = (0.8 - 0.68 * s.on("Male")) * (1 - s.on("Bald")) * (1 - s.on("Sideburns"))
    s.on("Long_Hair").copy_(s.between("hair_length") < long_haired)  # the share of such faces
    bearded = (1 - s.on("No_Beard")) * (1 - s.on("Goatee")) * (1 - s.on("5_o_Clock_Shadow"))
    s.on("Full_Beard").copy_(bearded * (s.between("beard") < 1 - 0.4 * s.on("Mustache")))


def _set_coordinates(s: Scene) -> None:
    """u = x cos yaw - sqrt(r^2 - x^2) sin yaw: on a ball of radius r, the point u = 0 moves to x = r sin yaw."""
    shape = s.rgb[:, 0].shape
    x, y = (s.edge * (torch.arange(size, device=s.rgb.device) + 0.5 - size / 2) for size in (shape[2], shape[1]))
    y, scale, shift_y = y[:, None], s.between("scale", 1.0, 1.13), s.between("shift_y", 0.07, 0.14)
    dx = x - s.between("shift_x", -0.06, 0.06)
    dy = y - shift_y
    angles = (("roll", 0.13), ("yaw", _YAW), ("pitch", 0.1))
    roll, yaw, pitch = (_cos_sin(s.between(name, -limit, limit)) for name, limit in angles)
    a, b = (dx * roll[0] + dy * roll[1]) / scale, (dy * roll[0] - dx * roll[1]) / scale
    u = a * yaw[0] - (0.62 * 0.62 - a * a).clamp_(min=0).sqrt_() * yaw[1]
    v = b * pitch[0] - (0.75 * 0.75 - b * b).clamp_(min=0).sqrt_() * pitch[1]
    body_y = y - (shift_y + scale * chin(s) - 0.76)  # shoulders hang from the chin
    maps = {"x": x, "y": y, "body_x": dx, "body_y": body_y, "a": a, "b": b, "u": u, "v": v}
    s.maps.update({name: values.expand(shape) for name, values in maps.items()})


def _cos_sin(radians: Tensor) -> tuple[Tensor, Tensor]:
    return radians.double().cos().float(), radians.double().sin().float()


def _set_head(s: Scene) -> None:
    """The signed distance from the head, and its surface on the unit disc: an egg, with a wider jaw for men."""
    a, b, half = s.map("a"), s.map("b"), face_width(s)
    male, chubby, oval = s.on("Male"), s.on("Chubby"), s.on("Oval_Face")
    below = b.clamp(min=0) / chin(s)
    y = torch.where(b < 0, b * (1 / 0.66), below)
    taper = 0.14 + 0.1 * oval - 0.06 * male - 0.06 * chubby
    x = (a - 0.16 * turn(s) * below) / (half * (1 - taper * (below * below).clamp_(max=2)))
    jaw = 0.14 + 0.5 * male + 0.35 * chubby - 0.1 * oval  # below 1, because `square` must not be negative
    square = y * y * torch.where(b < 0, 1, 1 - jaw + jaw * below)
    s.maps.update({"head": ((x * x + square).sqrt_() - 1) * half, "ball_x": x, "ball_y": y})


def _set_hair(s: Scene) -> None:
    """The tone of the hair: strands that fan out from the crown (straight, wavy or faint), and a shine."""
    a, b = s.map("a"), s.map("b")
    wavy, straight = s.on("Wavy_Hair"), s.on("Straight_Hair")
    strand = a / (b + 1.5).clamp_(min=0.3) + 0.05 * wavy * wave(1.7 * b + s.between("wave"))
    strength = (0.03 + 0.08 * straight + 0.11 * wavy) * (1 - 0.3 * s.on("Gray_Hair"))
    shine = glow(a - s.between("light", -0.25, 0.25), 0.35 * a * a + b + 0.5, 0.5, 0.13)
    s.maps["hair"] = strength * wave(7 * strand + s.between("parting")) + 0.45 * shine - 0.03


def _set_colours(s: Scene) -> None:
    pale = s.on("Pale_Skin")[:, None]
    skin = _palette(_SKIN, s.between("skin"))
    hair = constant(_BROWS_OF_THE_BALD, skin)
    for name, colour in _HAIR.items():
        hair = hair + s.on(name)[:, None] * (constant(colour, skin) - hair)
    colours = {
        "skin": skin + pale * (constant(_PALE_SKIN, skin) - skin),
        "hair": hair * s.between("hair_tone", 0.85, 1.15)[:, None],
        "eyes": _palette(_EYES, s.between("eye_colour")),
        "backdrop": _hue(s.between("backdrop_hue"), 0.35, s.between("backdrop_value", 0.45, 0.95)[:, None]),
        "backdrop_2": _hue(s.between("backdrop_hue_2"), 0.35, s.between("backdrop_value_2", 0.35, 0.95)[:, None]),
        "cloth": _hue(s.between("cloth_hue"), 0.6, s.between("cloth_value", 0.25, 0.9)[:, None]),
        "hat": _hue(s.between("hat_hue"), 0.65, s.between("hat_value", 0.3, 0.9)[:, None]),
        "glasses": _hue(s.between("glasses_hue"), 0.5, s.between("glasses_kind", 0.05, 0.45)[:, None]),
        "lipstick": _hue(s.between("lip_hue", 0.87, 1.03), 0.78, 0.8),
        "makeup": _hue(s.between("makeup_hue", 0.5, 0.95), 0.55, 0.6),
        "jewel": _palette(_JEWELS, s.between("jewel")),
    }
    for name, value in colours.items():
        s.colour(name).copy_(value)


def _palette(table: Sequence[Sequence[float]], t: Tensor) -> Tensor:
    """The point at t in [0, 1) on the line through the colours of the table: [n, 1, 1] to [n, 3, 1, 1]."""
    colours = torch.tensor(table, device=t.device)
    position = t[:, 0] * (len(table) - 1)  # [n, 1]
    lower = position.floor()
    first, second = colours[lower.long().flatten()], colours[lower.long().flatten() + 1]  # [n, 3]
    return (first + (position - lower) * (second - first))[..., None, None]


def _hue(t: Tensor, saturation: float, value: Tensor | float) -> Tensor:
    """HSV to RGB: [n, 1, 1] to [n, 3, 1, 1]; red, green, blue at t = 0, 1/3, 2/3 (mod 1)."""
    t = t - t.floor()
    pure = torch.stack(((6 * t - 3).abs() - 1, 2 - (6 * t - 2).abs(), 2 - (6 * t - 4).abs()), dim=1).clamp_(0, 1)
    return value * (1 - saturation + saturation * pure)
