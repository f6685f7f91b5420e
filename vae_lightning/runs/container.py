"""Help for a container of our image: a warning if runs would be lost with it, and a home folder that can be written."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

IMAGE = "VAE_LIGHTNING_IMAGE"
"""The environment variable that our Dockerfile sets."""


def is_mounted(folder: Path) -> bool:
    """True if `folder`, or a folder above it other than the root, is a mount point.

    Args:
        folder: any path; it need not exist.
    """
    place = folder.absolute()
    return any(os.path.ismount(path) for path in (place, *place.parents) if path != Path(place.anchor))


def unmounted_warning(runs_dir: Path) -> str | None:
    """A line for the user if removing the container would delete the folder of all runs, else None.

    Args:
        runs_dir: the folder of all runs.
    """
    if IMAGE not in os.environ or is_mounted(runs_dir):
        return None
    place = runs_dir.absolute()
    return (
        f"WARNING: {place} exists in this container alone: the run is lost when the container is removed. Mount a "
        f'folder of the host there: docker run -v "$PWD/runs:{place}"'
    )


def give_home() -> None:
    """Set HOME to a private folder, removed at the end, if the present one cannot be written.

    `docker run --user "$(id -u)"` starts a user without a home, but W&B and torch keep caches in the home. The new home
    is private because in a shared one, another user of the machine could plant files.
    """
    home = os.environ.get("HOME", "")
    if home and os.access(home, os.W_OK):
        return
    os.environ["HOME"] = private = tempfile.mkdtemp(prefix="vae_lightning-home-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
