"""The layers of a drawn face, from the backdrop to the hat. Each paints one thing on a `Scene`.

The unit of length is half the width of a square picture. The origin is the middle of the head. The eyes are at
v = -0.1, the mouth is at v = 0.34 and the chin at v = 0.6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vae_lightning.synthetic.scene import (
    FAR,
    Layer,
    Scene,
    box,
    chin,
    circle,
    constant,
    ellipse,
    face_width,
    glow,
    turn,
    wave,
)

# -- Behind the head --------------------------------------------------------------------------------------------------


def _backdrop(s: Scene) -> None:
    x, y = s.map("x"), s.map("y")
    slope = (x * s.between("backdrop_x", -0.5, 0.5) + y * s.between("backdrop_y", -0.5, 0.5) + 0.5).clamp_(0, 1)
    s.rgb.copy_(s.colour("backdrop") + slope[:, None] * (s.colour("backdrop_2") - s.colour("backdrop")))
    s.lighten(0.3 * glow(x - s.between("backdrop_y", -0.8, 0.8), y + 0.5, 1.2, 1.0))


def _back_hair(s: Scene) -> None:
    a, b = s.map("a"), s.map("b")
    half = face_width(s) + s.between("hair_volume", 0.07, 0.15)
    across = a.abs() + 0.03 * s.on("Wavy_Hair") * wave(2.3 * b + s.between("wave"))
    dome = circle(across / half, (b + 0.1).clamp_(max=0) / s.between("hair_volume", 0.66, 0.74), 1) * half
    end = b - s.between("hair_length", 1.1, 0.62)
    s.fill(torch.maximum(dome, end + 0.6 * across * across), 0.72 * s.hair())


def _body(s: Scene) -> None:
    x, y = s.map("body_x"), s.map("body_y")
    male = s.on("Male")
    shade = (1 - 0.22 * s.between("light", -1, 1) * x)[:, None]
    s.fill(ellipse(x, y - 1.5, 0.92 + 0.14 * male, 0.62), s.colour("cloth") * shade)
    flare = (y - 0.74).clamp_(min=0)
    neck = x.abs() - (0.175 + 0.055 * male + 0.04 * s.on("Chubby")) - 1.6 * flare * flare
    neck = torch.maximum(neck, (y - 0.705).abs() - 0.255)
    skin = torch.minimum(neck, ellipse(x, y - 0.88, 0.25, 0.26 - 0.1 * male))
    s.fill(skin, s.colour("skin") * (0.93 * shade))
    s.darken(0.45 * s.inside(skin) * glow(x, y - 0.68, 0.42, 0.26))


def _necklace(s: Scene) -> None:
    x, y = s.map("body_x"), s.map("body_y")
    chain = torch.maximum(ellipse(x, y - 0.79, 0.2, 0.135).abs() - 0.016, 0.8 - y)
    s.fill(chain, s.colour("jewel") * (0.85 + 0.3 * wave(14 * x))[:, None])
    s.fill(circle(x, y - 0.955, 0.035), s.colour("jewel"))
    s.lighten(0.7 * glow(x + 0.01, y - 0.945, 0.03, 0.03))


def _necktie(s: Scene) -> None:
    x, y = s.map("body_x"), s.map("body_y")
    side = x.abs()
    shirt = torch.maximum(side - 0.28 + 0.35 * (y - 0.85), 0.94 - 0.5 * side - y)
    s.fill(shirt, constant((0.90, 0.91, 0.94), x))
    s.fill(torch.maximum((side - 0.24).abs() - 0.13, (y - 0.846 - 0.35 * side).abs() - 0.075), constant((1, 1, 1), x))
    tie = torch.maximum(side - 0.055 - 0.14 * (y - 0.98).abs(), 0.885 - y)
    s.fill(tie, s.colour("hat") * (0.9 + 0.25 * wave(5 * (x + y)))[:, None])


# -- The head ---------------------------------------------------------------------------------------------------------


def _ear_frame(s: Scene) -> tuple[Tensor, Tensor]:
    """(out, down) from the middle of the nearer ear. If the head turns, one ear is hidden behind the head."""
    return (s.map("a") + 0.12 * turn(s)).abs() - face_width(s) - 0.01, s.map("b") - 0.03


def _ears(s: Scene) -> None:
    out, y = _ear_frame(s)
    s.fill(ellipse(out, y, 0.075, 0.125), 0.88 * s.colour("skin"))
    s.darken(0.4 * glow(out - 0.015, y, 0.05, 0.1))


def _double_chin(s: Scene) -> None:
    a, b = s.map("a") - 0.16 * turn(s), s.map("b") - chin(s)
    fold = ellipse(a, b + 0.06, 0.3, 0.17)
    s.fill(fold, 0.9 * s.colour("skin"))
    s.darken(0.35 * s.inside(fold) * (0.5 + 3 * b).clamp_(0, 1))


def _skin(s: Scene) -> None:
    x, y = s.map("ball_x"), s.map("ball_y")
    z = (1 - x * x).sub_(y * y).clamp_(min=0).sqrt_()
    lit = (s.between("light", -0.55, 0.55) * x).add_(0.75 * z).sub_(0.35 * y).clamp_(min=0)[:, None]
    skin = s.colour("skin")
    s.fill(s.map("head"), skin * constant((0.62, 0.52, 0.48), x) + skin * constant((0.46, 0.53, 0.55), x) * lit)


def _complexion(s: Scene) -> None:
    u, v = s.map("u"), s.map("v")
    cheek = u.abs() - 0.27
    s.blend((0.12 + 0.42 * s.on("Rosy_Cheeks")) * glow(cheek, v - 0.17, 0.16, 0.13), constant((0.95, 0.35, 0.38), u))


def _cheekbones(s: Scene) -> None:
    u, v = s.map("u"), s.map("v")
    cheek = u.abs() - 0.28
    s.lighten(0.26 * glow(cheek, v - 0.05 + 0.4 * cheek, 0.16, 0.08))
    s.darken(0.16 * glow(cheek, v - 0.24 + 0.8 * cheek, 0.17, 0.13))


def _wrinkles(s: Scene) -> None:
    """Lines on the forehead, beside the mouth and beside the eyes: the marks of a face that is not Young."""
    u, v = s.map("u"), s.map("v")
    side = u.abs()
    forehead = (wave(9 * (0.15 * u * u + v) + 0.2) - 0.55).clamp_(min=0) * glow(u, v + 0.36, 0.3, 0.13)
    fold = s.inside((side - 0.096 - 0.28 * v).abs() - 0.008, 2) * glow(side - 0.17, v - 0.24, 0.2, 0.15)
    crow = (wave(7 * (v + 0.05) * (1 + side)) - 0.2).clamp_(min=0) * glow(side - 0.4, v + 0.08, 0.07, 0.1)
    s.darken(1.4 * forehead + 0.5 * fold + 0.45 * crow)


# -- The features -----------------------------------------------------------------------------------------------------


def _nose(s: Scene) -> None:
    big, pointy, light = s.on("Big_Nose"), s.on("Pointy_Nose"), s.between("light", -1, 1)
    half = s.between("nose_width", 0.07, 0.09) * (1 + 0.5 * big - 0.35 * pointy)
    v = s.map("v") - s.between("nose_length", 0.12, 0.16) - 0.02 * big - 0.03 * pointy
    u = s.map("u") - 0.13 * turn(s) * (1 + v).clamp_(0, 1)  # the nose stands out of the face, towards the turn
    bridge = (0.1 + 0.18 * pointy) * light.abs() * glow(u + 0.055 * light, v + 0.12, 0.06, 0.2)
    under = 0.42 * glow(u, v - 0.035, half * 1.25, 0.05 - 0.01 * pointy)
    s.darken(bridge + under + 0.25 * big * glow(u.abs() - half, v, 0.04, 0.06))
    s.fill(ellipse(u, v + 0.01 * pointy, half * 0.8, 0.05), s.colour("skin"), 0.75, soft=1.5)
    s.darken(0.6 * glow(u.abs() - 0.5 * half, v - 0.035, 0.38 * half, 0.022))
    u = u - 0.02 * light
    s.lighten(0.22 * glow(u, v + 0.06, 0.035 + 0.012 * big, 0.12) + 0.3 * glow(u, v, 0.04, 0.04))


def _mouth_frame(s: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """(t, u, opening): t counts downwards from the line between the lips, and the corners are at u = -1 and u = 1."""
    smiling = s.on("Smiling")
    smile = smiling * s.between("smile", 0.35, 1.0) + (1 - smiling) * s.between("smile", -0.6, 0.05)
    u = (s.map("u") - 0.03 * turn(s)) / (s.between("mouth_width", 0.125, 0.155) + 0.04 * smile.clamp(min=0))
    line = s.between("mouth_height", 0.325, 0.355) + 0.085 * smile * (0.4 - u * u)
    return s.map("v") - line, u, s.on("Mouth_Slightly_Open") * s.between("open", 0.05, 0.12)


def _mouth(s: Scene) -> None:
    t, u, opening = _mouth_frame(s)
    p, open_ = 1 - u * u, s.on("Mouth_Slightly_Open")
    upper, lower = 0.026 + 0.02 * s.on("Big_Lips"), 0.036 + 0.026 * s.on("Big_Lips")
    bow = 1 - 0.35 * (1 - 25 * u * u).clamp_(min=0)
    top, bottom = -(upper + 0.4 * opening) * p * bow, (lower + 0.6 * opening) * p
    natural = s.colour("skin") * constant((0.86, 0.58, 0.58), t)
    colour = natural + s.on("Wearing_Lipstick")[:, None] * (s.colour("lipstick") - natural)
    s.darken(0.3 * glow(s.map("u"), t - 0.085 - lower - 0.6 * opening, 0.11, 0.035))
    s.fill(torch.maximum(top - t, t - bottom), colour)
    s.lighten((0.18 + 0.2 * s.on("Wearing_Lipstick")) * glow(u, t - 0.6 * bottom - 0.36 * opening * p, 0.45, 0.02))
    s.fill(torch.maximum(t.abs() - 0.008, -p), 0.45 * colour, 0.8 * (1 - open_))
    gap = torch.maximum(-0.4 * opening * p - t, t - 0.6 * opening * p)
    s.fill(gap, constant((0.28, 0.06, 0.08), t), open_)
    s.fill(torch.maximum(gap, t - 0.1 * opening), constant((0.96, 0.95, 0.92), t), open_)
    s.fill(torch.maximum(gap, 0.38 * opening - t), constant((0.80, 0.35, 0.38), t), open_)


def _eye_frame(s: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """(x, out, y) from the middle of the nearer eye: x to the right, `out` away from the nose, y downwards."""
    u = s.map("u")
    out = u.abs() - s.between("eye_spacing", 0.205, 0.235)
    return torch.where(u < 0, -out, out), out, s.map("v") + 0.1


def _lids(s: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """(y, p, high): the open eye is -high p < y < 0.8 high p. p is 1 in the middle of the eye and 0 at its corners."""
    _, out, y = _eye_frame(s)
    ratio = out / s.between("eye_size", 0.115, 0.135)
    high = s.between("eye_size", 0.075, 0.095) * (1 - 0.5 * s.on("Narrow_Eyes"))
    return y + s.between("eye_tilt", -0.1, 0.2) * out, 1 - ratio * ratio, high


def _makeup(s: Scene) -> None:
    y, p, high = _lids(s)
    s.fill(torch.maximum(-(high + 0.075) * p - y, y + high * p), s.colour("makeup"), 0.75, soft=1.5)


def _eyes(s: Scene) -> None:
    x, out, _ = _eye_frame(s)
    y, p, high = _lids(s)
    s.darken(0.3 * glow(out, y + 0.02, 0.155, high * 1.6))
    white = s.inside(torch.maximum(-high * p - y, y - 0.8 * high * p))
    s.blend(white, constant((0.97, 0.97, 0.96), x))
    x, gaze_y = x - s.between("gaze_x", -0.035, 0.035), y - s.between("gaze_y", -0.015, 0.015)
    s.blend(white * s.inside(circle(x, gaze_y, 0.066)), s.colour("eyes"))
    s.blend(white * s.inside(circle(x, gaze_y, 0.034)), constant((0.04, 0.03, 0.03), x))
    s.lighten(0.95 * white * s.inside(circle(x + 0.022, gaze_y + 0.024, 0.018)))
    female, makeup = 1 - s.on("Male"), s.on("Heavy_Makeup")
    lash = (y + high * p).abs() - (0.011 + 0.007 * female + 0.008 * makeup)
    s.fill(torch.maximum(lash, -p - female * (0.25 + 0.3 * makeup)), constant((0.12, 0.07, 0.06), x), 0.85)


def _bags(s: Scene) -> None:
    _, out, _ = _eye_frame(s)
    y, _, high = _lids(s)
    s.darken(0.6 * glow(out, y - 0.8 * high - 0.045 + 2 * out * out, 0.13, 0.04))


def _brows(s: Scene) -> None:
    _, out, y = _eye_frame(s)
    x = out * (1 / 0.15) - 0.07
    arch = (0.02 + 0.065 * s.on("Arched_Eyebrows")) * (1 - 1.4 * (x - 0.25) * (x - 0.25))
    y = y + arch + s.between("brow_height", 0.15, 0.185) + (out - 0.02) * s.between("brow_tilt", -0.13, 0.13)
    thick = (0.017 + 0.006 * s.on("Male") + 0.022 * s.on("Bushy_Eyebrows")) * (1.1 - 0.35 * x)
    s.fill(torch.maximum(y.abs() - thick, 0.15 * x.abs() - 0.15), 0.6 * s.colour("hair"), 0.92, soft=1.2)


# -- Hair, glasses, jewels and hats -----------------------------------------------------------------------------------


def _hairline(s: Scene) -> Tensor:
    """The height v at which the hair ends, over the forehead and down to the ears."""
    u, bangs = s.map("u"), s.on("Bangs")
    fringe = 0.22 + 0.018 * wave(4.5 * u + s.between("wave"))
    temples = 0.06 + 0.14 * glow(u.abs() - 0.24, torch.zeros_like(u), 0.17, 1.0)
    parting = s.between("parting", -0.22, 0.22) * (1 - bangs) * u
    top = parting + bangs * fringe - s.on("Receding_Hairline") * temples - 0.43
    k = (4.5 * u.abs() - 1.25).clamp_(0, 1)
    return top + (0.02 - top) * k * k


def _front_hair(s: Scene) -> None:
    a, b = s.map("a"), s.map("b")
    volume = s.between("hair_volume", 0.02, 0.12) * (1 - 0.8 * s.on("Wearing_Hat"))
    low = (b + 0.25).clamp_(min=0)  # beside the ears, short hair lies close to the head
    half = face_width(s) + 0.025 + 0.4 * volume - (1 - s.on("Long_Hair")) * 0.9 * low * low
    bumps = 0.025 * s.on("Wavy_Hair") * wave(3.5 * (a.abs() + b) + s.between("wave"))
    shell = ellipse(a, b + 0.08, half, 0.64 + volume) - bumps
    beside = torch.maximum(-0.015 - s.map("head"), s.map("v"))  # hair that stands out shows beside the forehead
    cap = torch.maximum(shell, torch.minimum(s.map("v") - _hairline(s), beside))
    s.darken(0.3 * s.on("Hair") * s.inside(cap - 0.02, 2.5) * s.inside(shell))
    s.fill(cap, s.hair(), s.on("Hair"))


def _locks(s: Scene) -> None:
    a, b = s.map("a"), s.map("b")
    middle = face_width(s) + s.between("hair_volume", -0.008, 0.032) + 0.12 * b  # flush with the cap at the top
    across = (a - 0.2 * turn(s)).abs() + 0.025 * s.on("Wavy_Hair") * wave(2.3 * b + s.between("wave"))
    ends = torch.maximum(b - s.between("hair_length", 0.95, 0.45) - 0.3 * (across - middle), -0.15 - b)
    s.fill(torch.maximum((across - middle).abs() - 0.06, ends), s.hair())


def _scalp(s: Scene) -> None:
    s.lighten(0.45 * glow(s.map("a") - s.between("light", -0.25, 0.25), s.map("b") + 0.48, 0.2, 0.1))


def _sideburns(s: Scene) -> None:
    u, v = s.map("u").abs(), s.map("v")
    strip = torch.maximum(0.375 + 0.12 * v.clamp(min=0) - u, torch.maximum(-0.2 - v, v - 0.22))
    s.fill(torch.maximum(strip, s.map("head")), 0.9 * s.hair())


def _beard(s: Scene) -> None:
    u, v, head = s.map("u"), s.map("v"), s.map("head")
    k = (3 * u.abs() - 0.36).clamp_(0, 1)
    cheek = 0.25 - 0.27 * k * k - v
    shadow = 0.42 * s.on("5_o_Clock_Shadow")
    s.fill(torch.maximum(cheek, head), constant((0.17, 0.17, 0.2), u), shadow, soft=3)
    beard = torch.maximum(cheek, head - 0.035) + FAR * (1 - s.on("Full_Beard"))
    tuft = ellipse(u - 0.05 * turn(s), v - 0.53, 0.14, 0.135)
    goatee = torch.maximum(tuft, head - 0.03) + FAR * (1 - s.on("Goatee"))
    s.fill(torch.minimum(beard, goatee), 0.85 * s.hair(), 0.95, soft=1.5)


def _mustache(s: Scene) -> None:
    t, u, opening = _mouth_frame(s)
    x = 0.8 * u
    thick = 0.04 * (1 - x * x) * (1 - 0.4 * (1 - 30 * u * u).clamp_(min=0))
    s.fill((t + 0.4 * opening + 0.075 - 0.05 * x * x).abs() - thick, 0.85 * s.hair(), 0.97)


def _glasses(s: Scene) -> None:
    x, out, y = _eye_frame(s)
    angular = (s.between("glasses_kind") > 0.5).float()
    half, high = 0.15 + 0.01 * angular, 0.135 - 0.025 * angular
    lens = box(out - 0.005, y - 0.01, half, high, 0.13 - 0.085 * angular)
    glare = s.inside((x + 0.6 * y + 0.04).abs() - 0.03, 1.5)
    s.lighten((0.12 + 0.25 * glare) * s.inside(lens))
    bridge = torch.maximum(out + half - 0.01, (y + 0.02).abs() - 0.014)
    arm = torch.maximum(half - out, torch.maximum((y + 0.03).abs() - 0.014, s.map("a").abs() - face_width(s)))
    s.fill(torch.minimum(lens.abs() - 0.018, torch.minimum(bridge, arm)), s.colour("glasses"))


def _earrings(s: Scene) -> None:
    out, y = _ear_frame(s)
    hoop = circle(out - 0.025, y - 0.21, 0.055).abs() - 0.016
    s.fill(torch.where(s.between("jewel") > 0.5, hoop, circle(out - 0.025, y - 0.17, 0.042)), s.colour("jewel"))
    s.lighten(0.8 * glow(out - 0.013, y - 0.158, 0.03, 0.03))


def _hat(s: Scene) -> None:
    """A woollen hat, a cap with a visor, or a hat with a brim."""
    a, b, half = s.map("a"), s.map("b"), face_width(s) + 0.075
    wool, brimmed = (s.between("hat_kind") < 0.4).float(), (s.between("hat_kind") > 0.72).float()
    bottom = b + 0.31 - 0.25 * a * a * (1 - brimmed)
    crown = torch.maximum(ellipse(a, b + 0.33, half, 0.54) + 0.04 * brimmed, bottom)
    side = ((a - s.between("light", -0.3, 0.3)) / half).clamp_(-1, 1)
    colour = s.colour("hat") * ((1.08 - 0.5 * side * side) * (1 + 0.1 * wool * wave(9 * a)))[:, None]
    s.fill(crown, colour)
    s.fill(torch.maximum(crown, -0.14 - bottom), 0.7 * colour, torch.maximum(wool, brimmed))
    s.fill(circle(a, b + 0.91, 0.1), 1.15 * colour, wool, soft=2)
    brim = box(a, b + 0.34 - 0.1 * a * a, half + 0.21, 0.06, 0.06) + FAR * (1 - brimmed)
    visor = ellipse(a - 0.5 * turn(s), b + 0.28, 0.4, 0.1) + FAR * (wool + brimmed)
    s.darken(0.35 * s.inside(torch.minimum(brim, visor) - 0.05, 3) * s.inside(a.abs() - face_width(s)))
    s.fill(torch.minimum(brim, visor), 0.85 * colour)


def _blur(s: Scene) -> None:
    """Five binomial filters in each direction. Their step grows with the picture, so that all sizes are as soft."""
    step = max(1, round(1 / (32 * s.edge)))
    for _ in range(5):
        for dim in (2, 3):
            last = s.rgb.shape[dim] - 1
            at = torch.arange(last + 1, device=s.rgb.device)
            before, after = (s.rgb.index_select(dim, (at + k).clamp_(0, last)) for k in (-step, step))
            s.rgb.mul_(2).add_(before).add_(after).mul_(0.25)


LAYERS = (  # painted in this order
    Layer(_backdrop),
    Layer(_back_hair, -1.0, FAR, 1.1, only=("Long_Hair",)),
    Layer(_body, top=0.3),
    Layer(_necklace, 0.6, 1.3, 0.5, only=("Wearing_Necklace",)),
    Layer(_necktie, 0.6, FAR, 0.5, only=("Wearing_Necktie",)),
    Layer(_ears, -0.2, 0.55, 0.85),
    Layer(_double_chin, 0.4, 1.1, only=("Double_Chin",)),
    Layer(_skin, -0.8, 1.05, 0.8),
    Layer(_complexion, -0.1, 0.6, 0.8),
    Layer(_cheekbones, -0.2, 0.75, only=("High_Cheekbones",)),
    Layer(_wrinkles, -0.65, 0.75, only=("Old",)),
    Layer(_beard, -0.2, 1.1, only=("5_o_Clock_Shadow", "Full_Beard", "Goatee")),
    Layer(_sideburns, -0.3, 0.6, only=("Sideburns",)),
    Layer(_nose, -0.35, 0.5, 0.5),
    Layer(_mouth, 0.1, 0.85, 0.5),
    Layer(_mustache, 0.0, 0.75, 0.6, only=("Mustache",)),
    Layer(_makeup, -0.4, 0.3, only=("Heavy_Makeup",)),
    Layer(_eyes, -0.35, 0.35, 0.75),
    Layer(_bags, -0.2, 0.4, only=("Bags_Under_Eyes",)),
    Layer(_brows, -0.5, 0.25, 0.75),
    Layer(_scalp, -0.7, 0.0, only=("Bald",)),
    Layer(_front_hair, -1.0, 0.4, 0.9),
    Layer(_locks, -0.3, FAR, 1.0, only=("Long_Hair",)),
    Layer(_glasses, -0.4, 0.4, only=("Eyeglasses",)),
    Layer(_earrings, 0.0, 0.7, only=("Wearing_Earrings",)),
    Layer(_hat, -FAR, 0.2, only=("Wearing_Hat",)),
    Layer(_blur, only=("Blurry",)),
)
