"""Config of the data stages: where records come from, which are kept, how they are packed."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from cathpc.schema import speed


class Format(Enum):
    """The shapes of instruction data that are understood."""

    alpaca = "alpaca"
    """`instruction`, `input` (may be empty), `output`."""
    messages = "messages"
    """`messages`: [{role, content}]."""
    sharegpt = "sharegpt"
    """`conversations`: [{from: system|human|gpt, value}]."""
    prompt_response = "prompt_response"
    """`prompt`, `response`."""
    preference = "preference"
    """`prompt`, `chosen` (text or messages); the rejected answer is not read."""
    question_answer = "question_answer"
    """`question`, `answer`: a table."""
    chatdoctor = "chatdoctor"
    """`instruction`, `input` (the patient), `output` (the doctor). The fixed instruction is dropped, greetings and
    sign-offs too; addresses, telephone numbers and names of doctors are masked."""


class Component(Enum):
    """The parts of the mix; quality is ranked within one."""

    general = "general"
    reasoning = "reasoning"
    health = "health"
    science = "science"
    roleplay = "roleplay"
    refusal = "refusal"
    """Labelled refusals: they train the refusal classifier and never reach the mix."""


MIX = tuple(component.name for component in Component if component is not Component.refusal)
"""The components that reach the mix."""


@dataclass
class SourceConfig:
    """One source of records: a local file under `dataset.root` or a dataset of the Hub."""

    path: str = speed("")
    """File relative to `dataset.root`; counted by its content, not its place."""
    hub: str = ""
    """Hub id ('org/name'); its commit is read from the lock file that `pin` writes."""
    subset: str = ""
    """Configuration of a dataset of the Hub; '' is its only or default one."""
    split: str = "train"
    """Split of a dataset of the Hub."""
    format: Format = Format.alpaca
    """How a row spells a conversation."""
    component: Component = Component.general
    """Part of the mix that its records belong to."""
    license: str = ""
    """Licence as the source states it; required."""
    generator: str = ""
    """Who wrote the answers, where a column does not say it."""
    columns: dict[str, str] = field(default_factory=dict)
    """Field of the format (or `generator`, `label`, `system`) -> column of the source, where it has another name."""
    labels: dict[str, float] = field(default_factory=dict)
    """Value of the label column -> refusal label in 0..1."""
    limit: int | None = None
    """Take at most this many records, by a hash of their prompts: all answers to one prompt go or stay together, so
    that a few less may be taken."""


@dataclass
class DatasetConfig:
    """Group `dataset`: what `pull` reads."""

    root: str = speed("")
    """Folder of local sources; no path may leave it."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Name -> source; a name is yours to choose."""
    decontaminate: list[str] = field(default_factory=lambda: ["probes"])
    """Evaluation sets whose text no record may share: files relative to `dataset.root`, and 'probes', all that ships
    with cathpc for `evaluate` to ask: the fidelity probes and the requests. 13 words in a row count, of a shorter text
    of 8 or more all of its words."""
    max_expanded_gb: float = 100.0
    """A file that expands to more is refused: a bomb, or not what one thinks."""
    max_row_mb: float = 8.0
    """A row that is larger, as it stands in its file, is set aside; in megabytes of UTF-8."""
    shard_records: int = 10_000
    """Records a shard."""
    near_duplicates: float = 0.7
    """Jaccard similarity of word 5-grams, of prompts and of answers, at which a record repeats another; 0 is off."""
    workers: int = speed(0)
    """Processes that read rows; 0 is the job's number of cores."""


@dataclass
class SelectConfig:
    """Group `select`: the rules, in the order in which they are applied.

    0 switches off `min_answer_tokens`, `max_answer_tokens`, `min_correlatives`, `min_steps`, `reasoning_min_tokens`,
    `health_min_*` and `drop_quality`; null switches off `refusal_max`, `min_quality`, `population` and `max_records`,
    [] `languages`, {} `quotas`."""

    languages: list[str] = field(default_factory=lambda: ["en"])
    """ISO 639-1 codes that are kept."""
    min_answer_tokens: int = 10
    """Shortest answer, in tokens of the scoring tokenizer."""
    max_answer_tokens: int = 1000
    """Longest answer, 0 is any; what is longer than `score.window` is not scored and drops out before this rule."""
    reasoning_min_tokens: int = 50
    """A single-turn answer of component `reasoning` must be longer."""
    health_min_tokens: int = 100
    """An answer of component `health` must be longer."""
    health_min_diagnosis: float = 0.0
    """Least `diagnosis` of an answer of component `health`, 0..1: how much it looks like a step-by-step diagnosis."""
    min_correlatives: int = 1
    """Correlatives that every record must have."""
    min_steps: int = 0
    """Thought steps that every record must have; the share with two or more is reported in any case."""
    refusal_max: float | None = 0.2
    """Refusal score above which a record is dropped; null switches the rule off, 0 drops every score above 0."""
    quality: str = "contrast"
    """The column of the scores that ranks quality: 'contrast' (higher is better) or 'perplexity' (lower is better)."""
    min_quality: float | None = None
    """Worst quality of a record that is kept, whatever its component: a lower contrast, or a higher perplexity, is
    dropped; null switches the rule off."""
    population: float | None = None
    """Share of each component that its main population is: the smallest region of the (refusal, quality) plane that
    holds it, of what the rules above left; what lies outside is dropped."""
    drop_quality: float = 0.3
    """Share of each component, the worst by quality, that is dropped of what the rules above left."""
    quotas: dict[str, int] = field(default_factory=dict)
    """Component -> the most records of it that are kept, chosen by a hash of their ids; 0 is all."""
    max_records: int | None = None
    """Keep at most this many, in equal shares by component, chosen by a hash of their ids."""


@dataclass
class PackConfig:
    """Group `pack`."""

    seq_len: int = 8192
    """Tokens a packed sequence."""
    max_tokens: int | None = None
    """Train on at most this many tokens an epoch; which records stay is decided by a hash of their ids."""
    eval_share: float = 0.05
    """Share of the records, by a hash of their prompts, kept out of training for the held-out loss."""
    workers: int = speed(0)
    """Processes that turn text into tokens; 0 is the job's number of cores."""
