"""Pictures: grids of images, and their PNG files."""

from vae_lightning.pictures.grids import reconstruction_grid, sample_grid, save_png, stack, to_grid

__all__ = ["reconstruction_grid", "sample_grid", "save_png", "stack", "to_grid"]
