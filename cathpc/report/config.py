"""Config of the report and of tracking."""

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
    """W&B's team or user; '' is the key's own."""


@dataclass
class ReportConfig:
    """Group `report`."""

    title: str = ""
    """Heading of the page; '' is the experiment's name."""
    max_points: int = 6_000
    """Points drawn in a figure of single records; of more, a sample by a hash of their ids."""
    examples: int = 12
    """Cards shown with their verdicts; answers of the base and the tuned model side by side are half as many."""
