"""The 40 attributes of a drawn face: a = f(seed, index), with the names and in the order of CelebA.

Attributes of one face do not contradict each other. `draw_faces` draws each attribute, so that labels fit the pictures.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vae_lightning.noise import uniform16

_NAMES = """
    5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair Blond_Hair
    Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup High_Cheekbones Male
    Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose Receding_Hairline Rosy_Cheeks
    Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat Wearing_Lipstick Wearing_Necklace
    Wearing_Necktie Young
"""
FACE_ATTRIBUTES: tuple[str, ...] = tuple(_NAMES.split())
"""The names of the columns of `face_attributes`."""

_STREAM = 0x0FACE  # the stream of randomness of the attributes; the style has another

# P(attribute | not Male), P(attribute | Male), before `_EXCLUDES` switches some attributes off. Attractive is always 0,
# because it is a judgement and nothing in a drawing corresponds to it.
_ODDS: Mapping[str, tuple[float, float]] = {
    "5_o_Clock_Shadow": (0.0, 0.25),
    "Arched_Eyebrows": (0.5, 0.15),
    "Attractive": (0.0, 0.0),
    "Bags_Under_Eyes": (0.12, 0.25),
    "Bald": (0.01, 0.16),
    "Bangs": (0.35, 0.15),
    "Big_Lips": (0.35, 0.15),
    "Big_Nose": (0.12, 0.35),
    "Black_Hair": (0.4, 0.45),
    "Blond_Hair": (0.35, 0.15),
    "Blurry": (0.05, 0.05),
    "Brown_Hair": (0.7, 0.75),
    "Bushy_Eyebrows": (0.05, 0.4),
    "Chubby": (0.12, 0.2),
    "Double_Chin": (0.08, 0.15),
    "Eyeglasses": (0.13, 0.22),
    "Goatee": (0.0, 0.3),
    "Gray_Hair": (0.4, 0.5),
    "Heavy_Makeup": (0.45, 0.0),
    "High_Cheekbones": (0.45, 0.3),
    "Male": (0.0, 1.0),
    "Mouth_Slightly_Open": (0.45, 0.4),
    "Mustache": (0.0, 0.4),
    "Narrow_Eyes": (0.15, 0.2),
    "No_Beard": (1.0, 0.45),
    "Oval_Face": (0.35, 0.2),
    "Pale_Skin": (0.1, 0.06),
    "Pointy_Nose": (0.4, 0.2),
    "Receding_Hairline": (0.04, 0.2),
    "Rosy_Cheeks": (0.3, 0.08),
    "Sideburns": (0.0, 0.3),
    "Smiling": (0.55, 0.45),
    "Straight_Hair": (0.35, 0.35),
    "Wavy_Hair": (0.55, 0.3),
    "Wearing_Earrings": (0.4, 0.06),
    "Wearing_Hat": (0.1, 0.16),
    "Wearing_Lipstick": (0.55, 0.0),
    "Wearing_Necklace": (0.35, 0.04),
    "Wearing_Necktie": (0.03, 0.3),
    "Young": (0.78, 0.68),
}
_MALE_ODDS = 0.47

# If the key is true, the others are set to false. Rules apply from the top, so a rule that switches off the key of
# another rule stands before that rule. A head that is not bald and has none of the four hair colours has red hair.
_EXCLUDES: Mapping[str, tuple[str, ...]] = {
    "Wearing_Hat": ("Bald", "Bangs", "Receding_Hairline"),
    "Young": ("Gray_Hair", "Bags_Under_Eyes"),
    "Bald": (
        *("Bangs", "Receding_Hairline", "Sideburns", "Straight_Hair", "Wavy_Hair"),
        *("Black_Hair", "Blond_Hair", "Brown_Hair", "Gray_Hair"),
    ),
    "Receding_Hairline": ("Bangs",),
    "Gray_Hair": ("Black_Hair", "Blond_Hair", "Brown_Hair"),
    "Blond_Hair": ("Black_Hair", "Brown_Hair"),
    "Black_Hair": ("Brown_Hair",),
    "Straight_Hair": ("Wavy_Hair",),
    "No_Beard": ("5_o_Clock_Shadow", "Goatee", "Mustache"),
    "5_o_Clock_Shadow": ("Goatee", "Mustache"),
    "Chubby": ("Oval_Face",),
    "Big_Nose": ("Pointy_Nose",),
    "Wearing_Necktie": ("Wearing_Necklace",),
}


def face_attributes(index: Tensor, seed: int = 0) -> Tensor:
    """a[i, k] ~ Bernoulli(P(k | a[i, Male])), set to 0 if another attribute excludes k: uint8 [N, 40] in {0, 1}.

    Args:
        index: The numbers of the faces: int64 [N].
        seed: The seed of the attributes.
    """
    column = {name: k for k, name in enumerate(FACE_ATTRIBUTES)}
    uniform = uniform16(index, len(FACE_ATTRIBUTES), seed, _STREAM)  # int32 [N, 40]
    thresholds = torch.tensor([_ODDS[name] for name in FACE_ATTRIBUTES], device=index.device) * 65536  # [40, 2]
    male = uniform[:, column["Male"]] < _MALE_ODDS * 65536
    attributes = uniform < thresholds.T[male.long()]
    attributes[:, column["Male"]] = male
    for name, excluded in _EXCLUDES.items():
        for other in excluded:
            attributes[:, column[other]] &= ~attributes[:, column[name]]
    return attributes.to(torch.uint8)
