"""Find out whether a Weights & Biases login exists, without the server and before slow imports."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from vae_lightning.types import UserError

_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


def wandb_is_disabled() -> bool:
    """True if WANDB_MODE or WANDB_DISABLED switches W&B off."""
    switch = os.environ.get("WANDB_DISABLED", "").lower()
    return os.environ.get("WANDB_MODE") == "disabled" or switch in ("true", "t", "yes", "y", "on", "1")


def wandb_is_offline() -> bool:
    """True if no key or login is found. Sets variables of W&B so that W&B neither prompts nor waits for long.

    Raises:
        UserError: if WANDB_MODE is not a mode of W&B.
    """
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
    mode = os.environ.get("WANDB_MODE")
    if mode == "":
        del os.environ["WANDB_MODE"]  # W&B refuses an empty value
    elif mode and mode not in _MODES:
        raise UserError(f"WANDB_MODE is {mode!r}; it must be one of {', '.join(_MODES)}")
    offline = mode != "online" if mode else not _has_login()
    if offline:
        os.environ.setdefault("WANDB_SILENT", "true")  # the run's last lines say how to upload it
    return offline


def _has_login() -> bool:
    """True if the environment holds a key, or `wandb login` has stored one."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not path.is_file():
        return False
    import wandb

    base_url = os.environ.get("WANDB_BASE_URL")
    hosts = {urlsplit(base_url).netloc} if base_url else {urlsplit(wandb.Settings().base_url).netloc, "api.wandb.ai"}
    try:
        return not hosts.isdisjoint(netrc.netrc(path).hosts)
    except (netrc.NetrcParseError, OSError):
        return False
