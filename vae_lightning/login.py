"""Is there a Weights & Biases login? Asked without W&B's server, which may not answer, and before anything heavy."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit


def wandb_is_offline() -> bool:
    """True where no key or login is found; sets W&B's own variables so that it neither asks nor waits for long."""
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
    mode = os.environ.get("WANDB_MODE")
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
