"""Whether there is a way to W&B: by the config, the environment and the key. Nobody is asked, nothing is imported."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from urllib.parse import urlsplit

from cathpc.tracking.config import TrackerConfig, WandbMode

SERVER = "https://api.wandb.ai"


def server() -> str:
    """Address of the W&B server."""
    return os.environ.get("WANDB_BASE_URL") or SERVER


def mode(tracker: TrackerConfig) -> tuple[str, str]:
    """'online', 'offline' or 'disabled', and for offline the reason. A WANDB_MODE of the environment decides `auto`."""
    wanted = tracker.mode
    if wanted is WandbMode.auto:
        try:
            wanted = WandbMode(os.environ.get("WANDB_MODE", "auto"))
        except ValueError:
            wanted = WandbMode.auto
    if wanted is WandbMode.disabled:
        return "disabled", ""
    if wanted is WandbMode.offline:
        return "offline", "as configured"
    return ("online", "") if has_key() else ("offline", "no API key")


def has_key() -> bool:
    """Whether WANDB_API_KEY or the netrc file holds a key; W&B would else ask for one at the terminal."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(server()).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
