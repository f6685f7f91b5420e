"""Hide Lightning's messages about itself, in a command and in Python alike."""

from __future__ import annotations

import logging
import warnings

_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed")
_NOTES = (
    *("💡", "GPU available", "TPU available", "HPU available", "Seed set to", "`Trainer.fit` stopped"),
    *("Restoring states from", "Restored all states", "Loaded model weights", "`weights_only` was not"),
)
_WARNINGS = (".*does not have many workers.*", ".*LeafSpec.*", "Checkpoint directory .* exists and is not empty")


def silence_notes() -> None:
    """Hide Lightning's notes, and its warnings about settings that this package chooses on purpose.

    The package calls this when it is imported. Other messages of Lightning are shown as before.
    """
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(is_no_note)
    for text in _WARNINGS:
        warnings.filterwarnings("ignore", message=text)


def is_no_note(record: logging.LogRecord) -> bool:
    """Return whether a message is to be shown.

    Args:
        record: The message.
    """
    return not record.getMessage().startswith(_NOTES)
