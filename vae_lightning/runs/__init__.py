"""One run, one folder: its place, owner, checkpoint files, loggers and signals. This package knows no model."""
