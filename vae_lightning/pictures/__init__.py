"""Pictures: how x is shown, captioned sheets, moving pictures and tables, and their files."""

from vae_lightning.pictures.curves import bar_chart, line_chart
from vae_lightning.pictures.drawing import Picture, draw, reconstructions, samples, scene, scenes_of
from vae_lightning.pictures.files import save, save_gif, save_png
from vae_lightning.pictures.grids import reconstruction_grid, sample_grid, stack, to_grid
from vae_lightning.pictures.latents import interpolation, manifold, traversals
from vae_lightning.pictures.page import Page
from vae_lightning.pictures.planes import beside, scatter
from vae_lightning.pictures.rollouts import error_chart, rollouts
from vae_lightning.pictures.shown import NoPictureError, Shown, label_in_words, no_picture, show

__all__ = [
    "NoPictureError",
    "Page",
    "Picture",
    "Shown",
    "bar_chart",
    "beside",
    "draw",
    "error_chart",
    "interpolation",
    "label_in_words",
    "line_chart",
    "manifold",
    "no_picture",
    "reconstruction_grid",
    "reconstructions",
    "rollouts",
    "sample_grid",
    "samples",
    "save",
    "save_gif",
    "save_png",
    "scatter",
    "scene",
    "scenes_of",
    "show",
    "stack",
    "to_grid",
    "traversals",
]
