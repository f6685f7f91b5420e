"""Drawn pictures: faces in CelebA's form, and sprites; pure functions from numbers to pixels, each factor known."""

from vae_lightning.synthetic.attributes import FACE_ATTRIBUTES, face_attributes
from vae_lightning.synthetic.faces import draw_faces, write_celeba_layout
from vae_lightning.synthetic.sprites import NUM_SPRITES, SPRITE_FACTORS, draw_sprites, sprite_factors

DRAWING_VERSION = 1
"""To be raised when the pixels change: caches of older drawings are then made anew."""

__all__ = [
    "DRAWING_VERSION",
    "FACE_ATTRIBUTES",
    "NUM_SPRITES",
    "SPRITE_FACTORS",
    "draw_faces",
    "draw_sprites",
    "face_attributes",
    "sprite_factors",
    "write_celeba_layout",
]
