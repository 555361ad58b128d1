"""Config of the system cards."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from cathpc.models.config import Dtype, TemplateConfig
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
    template: TemplateConfig = field(default_factory=TemplateConfig)
    """Chat template of the writer."""
    layout: str = ""
    """Jinja file that turns a card into the system message; '' is the one that ships with cathpc."""
    shard_records: int = 2048
    """Records a shard: what is worked on, kept in memory and done again as one; batches of like length lie within."""
    max_new_tokens: int = 160
    attempts: int = 2
    """Cards written for one record at most: the first that passes its checks is taken, else the plain card."""
    max_rules: int = 5
    """Style rules a card."""
    enact: float = 0.0
    """Share of the records without a system prompt whose answers are edited by program so that they obey an instruction
    that their card states (`cathpc.cards.enact`)."""
    temperature: float = 0.6
    top_k: int = 30
    """Sampling draws from this many best tokens."""
    repetition_penalty: float = 1.2
    """How much less likely a token gets that the card has already; 1 is off."""
    dtype: Dtype = Dtype.bfloat16
    seed: int = 0
    batch_size: int = speed(16)
    """Cards written at once. The draws do not depend on it; in bfloat16 the last bits of the logits may."""
