"""Pictures drawn from known factors: faces in the form of CelebA, sprites, canvases of objects; and the rules of mazes.
All are functions of numbers alone."""

from vae_lightning.synthetic import mazes
from vae_lightning.synthetic.attributes import FACE_ATTRIBUTES, face_attributes
from vae_lightning.synthetic.canvases import Glyphs, NoRoomError, cut_out, draw_canvases
from vae_lightning.synthetic.coloured_shapes import LEAST_SEEN, PALETTE, SHAPES, draw_coloured_shapes
from vae_lightning.synthetic.faces import draw_faces, write_celeba_layout
from vae_lightning.synthetic.sprites import NUM_SPRITES, SPRITE_FACTORS, draw_sprites, sprite_factors

DRAWING_VERSION = 1
"""Raise this number if the pixels of a drawing change; caches of older drawings are then made anew."""

__all__ = [
    "DRAWING_VERSION",
    "FACE_ATTRIBUTES",
    "LEAST_SEEN",
    "NUM_SPRITES",
    "PALETTE",
    "SHAPES",
    "SPRITE_FACTORS",
    "Glyphs",
    "NoRoomError",
    "cut_out",
    "draw_canvases",
    "draw_coloured_shapes",
    "draw_faces",
    "draw_sprites",
    "face_attributes",
    "mazes",
    "sprite_factors",
    "write_celeba_layout",
]
