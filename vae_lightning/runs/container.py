"""What a container of our image lacks: folders that outlive it, and a home that its user may write to."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

IMAGE = "VAE_LIGHTNING_IMAGE"
"""The variable that our Dockerfile sets."""


def is_mounted(folder: Path) -> bool:
    """Whether `folder`, or a folder above it other than the root, is the place of a mount."""
    place = folder.absolute()
    return any(os.path.ismount(one) for one in (place, *place.parents) if one != Path(place.anchor))


def warning(runs_dir: Path) -> str | None:
    """The line to say where the folder of all runs would go with the container; None where it is kept."""
    if IMAGE not in os.environ or is_mounted(runs_dir):
        return None
    place = runs_dir.absolute()
    return (
        f"WARNING: {place} is a folder of this container alone: the run is lost when the container is removed. Mount a "
        f'folder of the host there: docker run -v "$PWD/runs:{place}"'
    )


def give_home() -> None:
    """Set HOME to a private folder, removed at the end, if the present one cannot be written.

    `docker run --user "$(id -u)"` gives a user without a home; W&B and torch keep caches there. A home that everybody
    may write to would let one user of a machine plant files for another.
    """
    home = os.environ.get("HOME", "")
    if home and os.access(home, os.W_OK):
        return
    os.environ["HOME"] = private = tempfile.mkdtemp(prefix="vae_lightning-home-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
