"""What a writer of cards takes and gives, and which one the config names.

In: tasks, one for each text to write. Out: drafts, a batch at a time, which the stage keeps in its cache. A writer is
anything with the methods of `Writer`; those that ship are `cathpc.cards.embedded` and `cathpc.cards.endpoint`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cathpc.cards.config import CardsConfig, Mode, WriterKind
from cathpc.record import Message
from cathpc.serving.config import ServingConfig


class TooLong(Exception):
    """No prompt for this record fits the model's window; says how long it is."""


@dataclass(frozen=True)
class Task:
    """One text to write: the `attempt`-th (from 0) for the record `id`."""

    id: str
    component: str
    attempt: int
    key: str
    """Digest of record, prompt, model and sampling: what decides the text."""
    mode: Mode
    asked: tuple[Message, ...]
    """The conversation that asks for it; ends with a user turn."""
    name: str = ""
    """Of the person who answers, where the record gives it: the card takes this one."""
    ids: tuple[int, ...] = ()
    """Tokens of the prompt, for a writer that makes them itself."""
    begun: int = 0
    """How many of `ids`, at the end, are the beginning of the text."""
    limit: int = 0
    """Tokens that may be written; 0 is the writer's own bound."""


@dataclass(frozen=True)
class Draft:
    """A text as it was written: a filled form, or prose in the modes that ask for it."""

    key: str
    id: str
    attempt: int
    text: str
    tokens: int
    seconds: float
    """Share of its batch's time."""
    prompt_tokens: int = 0


class Writer(Protocol):
    """Writes drafts for tasks."""

    def load(self) -> None:
        """Get ready (load a model, reach an endpoint): what fails here is no record's fault."""

    def task(
        self, record_id: str, messages: list[Message], component: str, attempt: int, mode: Mode = Mode.write
    ) -> Task:
        """The task for one record; raises `TooLong` where no prompt for it fits the model."""

    def write(self, tasks: list[Task]) -> Iterator[list[Draft]]:
        """One draft for each of `tasks`, a batch at a time, in an order of the writer's own."""


def make(config: CardsConfig, cache: Path, serving: ServingConfig | None = None) -> Writer:
    """The writer that `cards.writer` names; models are prepared in the folder `cache`, servers started by `serving`."""
    if config.writer is WriterKind.openai:
        from cathpc.cards.endpoint import OpenAIWriter

        return OpenAIWriter(config, cache, serving)
    from cathpc.cards.embedded import TransformersWriter

    return TransformersWriter(config, cache)
