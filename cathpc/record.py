"""The three rows that travel through the pipeline, and their Parquet form.

A `Record` is one conversation with its provenance. A `Score` is what the scoring stage measured of it. A `Verdict` says
whether selection kept it and, if not, which rule dropped it and by how much. Rows are kept in Arrow tables and Parquet
shards; the dataclasses document the columns and are what functions on a single row take.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

ROLES = ("system", "user", "assistant")
Message = dict[str, str]  # {"role": one of ROLES, "content": stripped text}

MESSAGE_TYPE = pa.struct([("role", pa.string()), ("content", pa.string())])

RECORD_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("component", pa.string()),
        ("generator", pa.string()),
        ("license", pa.string()),
        ("origin", pa.string()),
        ("label", pa.float32()),
        ("messages", pa.list_(MESSAGE_TYPE)),
    ]
)

SCORE_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("status", pa.string()),
        ("nll", pa.float64()),
        ("pool_nll", pa.float64()),
        ("perplexity", pa.float64()),
        ("contrast", pa.float64()),
        ("refusal", pa.float64()),
        ("tokens", pa.int32()),
        ("answer_tokens", pa.int32()),
        ("correlatives", pa.int32()),
        ("steps", pa.int32()),
        ("turn_tokens", pa.float64()),
        ("diagnosis", pa.float64()),
        ("language", pa.string()),
    ]
)

VERDICT_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("kept", pa.bool_()),
        ("rule", pa.string()),
        ("value", pa.float64()),
        ("threshold", pa.float64()),
    ]
)


@dataclass
class Record:
    """One conversation. `messages` ends with an assistant turn; contents are stripped of outer white space."""

    id: str
    """First 16 hex digits of the SHA-256 of source and messages: stable across shards, machines and reruns."""
    source: str
    """Key of the source in `dataset.sources`."""
    component: str
    """general, reasoning, health, roleplay, science; `refusal`: labelled refusals that only train the classifier."""
    messages: list[Message]
    generator: str = ""
    """Who wrote the answers, as the source states it ('gpt-4-0613'); empty when unknown."""
    license: str = ""
    origin: str = ""
    """File and row, or Hub id, commit and row: where the record came from."""
    label: float | None = None
    """Human refusal label in 0..1 where the source has one."""

    def row(self) -> dict[str, Any]:
        """The record as a row of `RECORD_SCHEMA`."""
        return asdict(self)


@dataclass
class Score:
    """What was measured of one record. Figures are None where `status` is not 'ok'."""

    id: str
    status: str = "ok"
    """'ok', 'empty' (no answer token), 'too_long' (over the scoring window), 'skipped' (out of the bounds of group
    `score`), 'broken'."""
    nll: float | None = None
    """Mean negative log-likelihood of the answer tokens under the reference GPT, in nats a token."""
    pool_nll: float | None = None
    """The same under the pool GPT."""
    perplexity: float | None = None
    """exp(nll)."""
    contrast: float | None = None
    """pool_nll - nll: nats a token by which the reference GPT likes the answer better than the pool GPT does."""
    refusal: float | None = None
    """Calibrated probability in 0..1 that the answer refuses, wholly or in part."""
    tokens: int | None = None
    """Tokens of the whole conversation in the scoring tokenizer."""
    answer_tokens: int | None = None
    """Tokens of the last assistant turn."""
    correlatives: int | None = None
    """Correlatives in the assistant turns."""
    steps: int | None = None
    """Thought steps in the assistant turns."""
    turn_tokens: float | None = None
    """Tokens of an assistant turn, on average."""
    diagnosis: float | None = None
    """How much the most detailed assistant turn looks like a step-by-step diagnosis, 0..1: see
    `cathpc.data.reasoning.measure`."""
    language: str | None = None
    """ISO 639-1 code of the answer."""


@dataclass
class Verdict:
    """Whether selection kept a record; `rule` is '' for a kept one, else the first rule that dropped it."""

    id: str
    kept: bool
    rule: str = ""
    value: float | None = None
    """The figure that the rule looked at."""
    threshold: float | None = None
    """What the figure was held against."""


def record_id(source: str, messages: list[Message]) -> str:
    """Stable id of a record: SHA-256 over the source's key and the messages, first 16 hex digits."""
    text = json.dumps([source, [[m["role"], m["content"]] for m in messages]], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def unit_hash(key: str, seed: int) -> float:
    """A number in [0, 1) that depends on `key` and `seed` alone: how rows are sampled, split and ordered."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:8], "big") / 2**64


def prompt_key(messages: list[Message]) -> str:
    """What identifies a prompt for splits: the first user turn, case-folded, white space collapsed.

    Splits go by prompt, so that answers of several models to one prompt never fall on both sides.
    """
    first = next((m["content"] for m in messages if m["role"] == "user"), "")
    return " ".join(first.casefold().split())


def heldout(messages: list[Message], share: float, seed: int = 0) -> bool:
    """Whether the record's prompt belongs to the held-out `share` that no scoring model trains on."""
    return unit_hash(prompt_key(messages), seed) < share


def answer(messages: list[Message]) -> str:
    """The last assistant turn."""
    return messages[-1]["content"] if messages and messages[-1]["role"] == "assistant" else ""
