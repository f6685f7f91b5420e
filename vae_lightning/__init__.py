"""A PyTorch Lightning template for variational autoencoders. Read `trace.py` first: it holds the vocabulary."""

__version__ = "0.1.0"
