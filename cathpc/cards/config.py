"""Config of the system cards."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from cathpc.models.config import Dtype, TemplateConfig
from cathpc.schema import speed
from cathpc.serving.config import EndpointConfig


class WriterKind(Enum):
    """Who writes the cards."""

    transformers = "transformers"
    """A model that is loaded here."""
    openai = "openai"
    """An endpoint that speaks OpenAI's protocol."""


class Mode(Enum):
    """What a writer is asked for."""

    write = "write"
    """A card for a record without a system prompt."""
    summarise = "summarise"
    """A short card from an over-long system prompt."""
    paraphrase = "paraphrase"
    """An answer in the character's voice."""


@dataclass
class CardsConfig:
    """Group `cards`."""

    writer: WriterKind = WriterKind.transformers
    model: str = ""
    """Named like `model.base`; '' writes plain cards only, unless an endpoint writes them."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """Who writes them where `writer` is openai."""
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
    temperature: float = 0.6
    top_k: int = 30
    """Sampling draws from this many best tokens."""
    repetition_penalty: float = 1.2
    """How much less likely a token gets that the card has already; 1 is off."""
    dtype: Dtype = Dtype.bfloat16
    seed: int = 0
    batch_size: int = speed(16)
    """Cards written at once. The draws do not depend on it; in bfloat16 the last bits of the logits may."""

    @property
    def writes(self) -> bool:
        """Whether a model writes cards, here or behind an endpoint."""
        return bool(self.model or (self.writer is WriterKind.openai and self.endpoint.model))
