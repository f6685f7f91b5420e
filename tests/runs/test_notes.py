"""Lightning's notes about itself are hidden wherever the package is imported; its other messages are not."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY, clean_environment
from vae_lightning.runs.notes import silence_notes

TRAINER = "import vae_lightning, lightning.pytorch as pl; pl.Trainer(accelerator='cpu', logger=False); print('made')"


def test_a_trainer_in_python_says_nothing_of_itself() -> None:
    made = subprocess.run(
        [sys.executable, "-c", TRAINER],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert (made.stdout, made.stderr) == ("made\n", "")


def test_only_notes_are_hidden(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    silence_notes()
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    for text in ("GPU available: False", "Restoring states from the checkpoint", "The loss is not finite"):
        logger.info(text)
    logging.getLogger("elsewhere").info("GPU available")
    assert caplog.messages == ["The loss is not finite", "GPU available"]
