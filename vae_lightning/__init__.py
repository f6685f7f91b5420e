"""A PyTorch Lightning template for variational autoencoders. Read `trace.py` first: it holds the vocabulary."""

import sys

from vae_lightning.runs.moved import MovedModules
from vae_lightning.runs.notes import silence_notes

__version__ = "0.1.0"

sys.meta_path.insert(0, MovedModules())  # before a folder that an older checkout has left
silence_notes()
