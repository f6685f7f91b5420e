"""One run, one folder: its place, owner, checkpoint files, loggers and signals. Knows no model and imports little."""
