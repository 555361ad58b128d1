"""The writer of cards that runs a model by transformers.

In: tasks, one for each text to write. Out: what was written for each, with its tokens and seconds. A batch has one mode
and one set of examples, whose tokens are run once for all of it, and prompts of like length; the model is loaded with
the first batch. Memory grows with `cards.batch_size` x the prompt, whose length `cards.quote_chars` bounds for cards.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from cathpc.cards import examples, prompt
from cathpc.cards.config import CardForm, CardsConfig, Mode
from cathpc.cards.form import LABELS, STARTS, Steps
from cathpc.cards.writer import Draft, Task, TooLong
from cathpc.errors import UserError
from cathpc.evaluate import generate, prefix
from cathpc.models.source import prepare
from cathpc.models.template import Template
from cathpc.record import Message

KEPT_PREFIXES = 8
"""Beginnings of prompts whose keys and values are kept beside the newest one."""
BEGINNINGS = {Mode.summarise: "You are"}
"""What a text of this mode begins with."""


class TransformersWriter:
    """Writes cards with the model that `cards.model` names."""

    def __init__(self, config: CardsConfig, cache: Path) -> None:
        """Prepares the model's folder; raises `UserError` where there is no such model, it has no chat template or its
        window is too short for any card."""
        from transformers import AutoConfig

        self._config = config
        self._prefixes: dict[tuple[int, ...], prefix.Prefix] = {}
        self.folder = prepare(config.model, config.template, cache)
        self.template = Template.load(self.folder)
        self._window = generate.window(AutoConfig.from_pretrained(self.folder))
        sampling = [config.temperature, config.top_k, config.repetition_penalty, config.max_new_tokens, config.seed]
        model = [self.folder.name, self.template.hash, config.dtype.value]
        self._identity = [*model, *sampling, config.form.value, LABELS, STARTS]
        try:
            self.task("", [{"role": "user", "content": ""}], "general", 0)
        except TooLong as error:
            raise UserError(
                f"cards.model={config.model}: {error}. Take another, or lower cards.max_new_tokens"
            ) from None

    @cached_property
    def _model(self) -> Any:
        model, _ = generate.load(self.folder, self._config.dtype)
        return model

    def load(self) -> None:
        """Load the model now and not with the first batch."""
        _ = self._model

    def task(
        self, record_id: str, messages: list[Message], component: str, attempt: int, mode: Mode = Mode.write
    ) -> Task:
        """The task for one record; as many examples as leave room for the text in the model's window.

        Raises `TooLong` where not even the prompt without examples does.
        """
        given = prompt.given(messages, component) if self._led(mode) else prompt.Given()
        first = self._steps([]).first(given.role) if self._led(mode) else self._plain(BEGINNINGS.get(mode, ""))
        limit = self._limit(messages, mode)
        for shown in range(examples.NUMBER if mode is Mode.write else 0, -1, -1):
            asked = prompt.build(
                messages, component, shown, mode=mode, kind=self._config.form, chars=self._config.quote_chars
            )
            ids = self.template.encode(asked, generation_prompt=True)[0] + first
            if len(ids) + limit <= self._window:
                break
        else:
            raise TooLong(
                f"the shortest prompt takes {len(ids)} tokens and what is written up to {limit}; "
                f"the model's window has {self._window}"
            )
        content = json.dumps([*self._identity, record_id, component, attempt, mode.value, given.name, limit, ids])
        key = hashlib.sha256(content.encode()).hexdigest()
        return Task(
            record_id,
            component,
            attempt,
            key,
            mode,
            tuple(asked),
            given.name,
            tuple(ids),
            begun=len(first),
            limit=limit,
        )

    def write(self, tasks: list[Task]) -> Iterator[list[Draft]]:
        """The drafts of `tasks`, a batch at a time, in an order of the writer's own."""
        modes: dict[Mode, list[Task]] = {}
        for task in tasks:
            modes.setdefault(task.mode, []).append(task)
        for group in modes.values():
            prefixes = self._beginnings(group)
            # What is the model's own to read, longest first: the largest batch fails at once or never.
            group.sort(
                key=lambda t: (len(prefixes[t.key].ids) - len(t.ids) if t.key in prefixes else -len(t.ids), t.id)
            )
            for start in range(0, len(group), self._config.batch_size):
                batch = group[start : start + self._config.batch_size]
                batch.sort(key=lambda t: (examples.family(t.component), len(t.asked)))
                yield self._batch(batch, [prefixes[t.key] for t in batch] if prefixes else None)

    def _beginnings(self, group: list[Task]) -> dict[str, prefix.Prefix]:
        """What the prompts of each family begin with, run once; {} where a prompt has no such beginning."""
        families: dict[tuple[str, int], list[Task]] = {}
        for task in group:
            families.setdefault((examples.family(task.component), len(task.asked)), []).append(task)
        found: dict[str, prefix.Prefix] = {}
        for family in families.values() if prefix.possible(self._model) else ():
            length = generate.shared_prefix([list(t.ids) for t in family])
            if not length and len(family) == 1:
                length = len(family[0].ids) // 2
            if not length:
                return {}
            found |= dict.fromkeys((t.key for t in family), self._run(family[0].ids[:length]))
        return found

    def _run(self, ids: tuple[int, ...]) -> prefix.Prefix:
        if ids not in self._prefixes:
            self._prefixes = {
                **dict(list(self._prefixes.items())[-KEPT_PREFIXES:]),
                ids: prefix.run(self._model, list(ids)),
            }
        return self._prefixes[ids]

    def _batch(self, batch: list[Task], prefixes: list[prefix.Prefix] | None) -> list[Draft]:
        config, model, begun = self._config, self._model, time.monotonic()
        steps = self._steps([t.name for t in batch]) if self._led(batch[0].mode) else None
        written = generate.generate(
            model,
            [list(t.ids) for t in batch],
            stop_id=self.template.stop_id,
            pad_id=self.template.pad_id,
            max_new_tokens=max(t.limit for t in batch),
            temperature=0.0 if batch[0].mode is Mode.judge else config.temperature,
            top_k=config.top_k,
            repetition_penalty=config.repetition_penalty if steps else 1.0,
            unpenalised=steps.unpenalised if steps else frozenset(),
            seeds=[f"{config.seed}/{t.id}/{t.attempt}" for t in batch],
            steer=steps.steer if steps else None,
            prefixes=prefixes,
        )
        seconds = (time.monotonic() - begun) / len(batch)
        drafts = []
        for task, ids in zip(batch, written, strict=True):
            text = self.template.decode([*task.ids[len(task.ids) - task.begun :], *ids[: task.limit]])
            drafts.append(Draft(task.key, task.id, task.attempt, text, len(ids), seconds, len(task.ids)))
        return drafts

    def _led(self, mode: Mode) -> bool:
        """Whether the model is led through the labels of a form."""
        return mode is Mode.write and self._config.form is CardForm.labels

    def _limit(self, messages: list[Message], mode: Mode) -> int:
        """Tokens that may be written."""
        if mode is Mode.judge:
            return 8  # 'Answer: **Yes**' is yes too
        if mode is Mode.paraphrase:
            return 16 + 2 * max(len(self._plain(m["content"])) for m in messages if m["role"] == "assistant")
        return self._config.max_new_tokens

    def _steps(self, names: list[str]) -> Steps:
        return Steps(self.template.raw, self.template.stop_id, names)

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.template.raw.encode(text, add_special_tokens=False).ids
        return ids
