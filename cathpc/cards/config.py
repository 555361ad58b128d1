"""Config of the system cards."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from cathpc.schema import speed


class Writer(Enum):
    """Who writes the cards."""

    transformers = "transformers"


@dataclass
class CardsConfig:
    """Group `cards`."""

    writer: Writer = Writer.transformers
    model: str = ""
    """Named like `model.base`; '' writes plain cards only."""
    max_new_tokens: int = 120
    attempts: int = 2
    """How often a card that fails its checks is written anew before the plain card is taken."""
    temperature: float = 0.7
    seed: int = 0
    batch_size: int = speed(16)
