"""Is there a Weights & Biases login? Asked without W&B's server, which may not answer, and before anything heavy."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from vae_lightning.types import UserError

_MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")


def wandb_is_disabled() -> bool:
    """True where a variable of W&B's own switches it off."""
    switch = os.environ.get("WANDB_DISABLED", "").lower()
    return os.environ.get("WANDB_MODE") == "disabled" or switch in ("true", "t", "yes", "y", "on", "1")


def wandb_is_offline() -> bool:
    """True where no key or login is found; sets W&B's own variables so that it neither asks nor waits for long.

    Raises:
        UserError: where WANDB_MODE is none of W&B's modes.
    """
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
    mode = os.environ.get("WANDB_MODE")
    if mode == "":
        del os.environ["WANDB_MODE"]  # which W&B would refuse
    elif mode and mode not in _MODES:
        raise UserError(f"WANDB_MODE is {mode!r}; it must be one of {', '.join(_MODES)}")
    offline = mode != "online" if mode else not _has_login()
    if offline:
        os.environ.setdefault("WANDB_SILENT", "true")  # the run's last lines say how to upload it
    return offline


def _has_login() -> bool:
    """A key in the environment, or one that `wandb login` has kept."""
    if any(os.environ.get(name) for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")):
        return True
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    if not path.is_file():
        return False
    import wandb

    own = os.environ.get("WANDB_BASE_URL")
    hosts = {urlsplit(own).netloc} if own else {urlsplit(wandb.Settings().base_url).netloc, "api.wandb.ai"}
    try:
        return not hosts.isdisjoint(netrc.netrc(path).hosts)
    except (netrc.NetrcParseError, OSError):
        return False
