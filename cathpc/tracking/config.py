"""Config of tracking."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cathpc.schema import speed


class WandbMode(Enum):
    """auto: online where a key is present (WANDB_API_KEY or netrc), else offline; WANDB_MODE overrides it."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass
class TrackerConfig:
    """Group `tracker`: where a run is shown; none of it changes what is made."""

    mode: WandbMode = speed(WandbMode.auto)
    """Whether and how W&B is used."""
    project: str = speed("cathpc")
    """W&B's project."""
    entity: str = speed("")
    """Team or user; '' is the key's own."""
    every_s: float = speed(10.0)
    """Seconds between two looks at what a training has logged."""
    wait_s: float = speed(60.0)
    """Seconds for which a finished stage waits for W&B at most."""
