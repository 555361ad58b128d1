"""The writer of cards that runs a model by transformers.

In: tasks, one for each card to write. Out: what was written for each, with its tokens and seconds. Batches have one set
of examples each and prompts of like length; the model is loaded with the first batch. Memory grows with
`cards.batch_size` x the prompt (about 700 tokens), which has a bound because records are quoted to a budget.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from cathpc.cards import prompt
from cathpc.cards.config import CardsConfig, Mode
from cathpc.cards.writer import Draft, Task
from cathpc.errors import UserError
from cathpc.evaluate import generate
from cathpc.models.source import prepare
from cathpc.models.template import Template
from cathpc.record import Message


class TransformersWriter:
    """Writes cards with the model that `cards.model` names."""

    def __init__(self, config: CardsConfig, cache: Path) -> None:
        """Prepares the model's folder; raises `UserError` where there is no such model or its window is too short."""
        from transformers import AutoConfig

        self._config = config
        self._folder = prepare(config.model, config.template, cache)
        self._template = Template.load(self._folder)
        self._window = generate.window(AutoConfig.from_pretrained(self._folder))
        self._first = self._form().first
        sampling = [config.temperature, config.top_k, config.repetition_penalty, config.max_new_tokens, config.seed]
        model = [self._folder.name, self._template.hash, config.dtype.value]
        self._identity = [*model, *sampling, prompt.LABELS, prompt.STARTS]

    def _form(self) -> prompt.Form:
        return prompt.Form(self._template.raw, self._template.stop_id)

    @cached_property
    def _model(self) -> Any:
        model, _ = generate.load(self._folder, self._config.dtype)
        return model

    def load(self) -> None:
        """Load the model now and not with the first batch."""
        _ = self._model

    def task(
        self, record_id: str, messages: list[Message], component: str, attempt: int, mode: Mode = Mode.write
    ) -> Task:
        """The task for one record; as many examples as leave room for the card in the model's window."""
        room = self._window - self._config.max_new_tokens
        ids: list[int] = []
        for examples in range(prompt.MAX_EXAMPLES, -1, -1):
            asked = prompt.build(messages, component, examples)
            ids = self._template.encode(asked, generation_prompt=True)[0] + self._first
            if len(ids) <= room:
                break
        else:
            raise UserError(
                f"cards.model={self._config.model} has a window of {self._window} tokens; the shortest prompt takes "
                f"{len(ids)} and a card {self._config.max_new_tokens}. Take another model or lower cards.max_new_tokens"
            )
        content = json.dumps([*self._identity, record_id, component, attempt, mode.value, ids])
        key = hashlib.sha256(content.encode()).hexdigest()
        return Task(record_id, component, attempt, key, mode, tuple(asked), tuple(ids))

    def write(self, tasks: list[Task]) -> Iterator[list[Draft]]:
        """The drafts of `tasks`, a batch at a time, in an order of the writer's own."""
        config, size = self._config, self._config.batch_size
        families: dict[str, list[Task]] = {}
        for task in tasks:
            families.setdefault(prompt.family(task.component), []).append(task)
        for family in families.values():
            family.sort(key=lambda t: (-len(t.ids), t.id))  # the largest batch first: it fails at once or never
            for start in range(0, len(family), size):
                batch = family[start : start + size]
                model = self._model
                begun = time.monotonic()
                form = self._form()
                written = generate.generate(
                    model,
                    [list(t.ids) for t in batch],
                    stop_id=self._template.stop_id,
                    pad_id=self._template.pad_id,
                    max_new_tokens=config.max_new_tokens,
                    temperature=config.temperature,
                    top_k=config.top_k,
                    repetition_penalty=config.repetition_penalty,
                    unpenalised=form.unpenalised,
                    seeds=[f"{config.seed}/{t.id}/{t.attempt}" for t in batch],
                    steer=form.steer,
                )
                seconds = (time.monotonic() - begun) / len(batch)
                yield [
                    Draft(t.key, t.id, t.attempt, self._template.decode([*self._first, *ids]), len(ids), seconds)
                    for t, ids in zip(batch, written, strict=True)
                ]
