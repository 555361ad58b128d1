"""The writer of cards that asks an endpoint which speaks OpenAI's protocol.

In: tasks. Out: one draft for each, whatever the endpoint does in between (`cathpc.cards.asking`): it is asked with
bounded concurrency and rate, and forms as JSON, decoded under a schema where the endpoint can. With
`cards.endpoint.serve` the writer starts a server of its own on the loopback, which ends with it. Memory grows with the
tasks; time with tokens, divided by the concurrency.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cathpc.cards import form, prompt
from cathpc.cards.asking import Asking, Link, Reply, Spent
from cathpc.cards.config import CardForm, CardsConfig, Mode
from cathpc.cards.json_form import as_json
from cathpc.cards.writer import Draft, Task
from cathpc.errors import CathpcError
from cathpc.record import Message
from cathpc.serving.budget import Budget
from cathpc.serving.config import ServingConfig
from cathpc.serving.remote import secret
from cathpc.serving.server import Endpoint, Server

DOUBTED_FIRST, DOUBTED = 3, 20
"""Refusals with nothing answered between them after which the control is asked for: before the first answer, later."""
CONTROL: list[Message] = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello to you!"}]
"""A record that is no trouble: what answers for its card answers, and what was refused before is at fault itself."""


class OpenAIWriter:
    """Writes cards at the endpoint that `cards.endpoint` describes."""

    def __init__(self, config: CardsConfig, cache: Path, serving: ServingConfig | None = None) -> None:
        """Nothing is reached or started yet."""
        self._config, self._asked_of = config, config.endpoint
        self._cache, self._serving = cache, serving or ServingConfig()
        self._model = self._asked_of.model or config.model
        sampling = [config.temperature, config.max_new_tokens, config.seed]
        self._identity = ["openai", self._model, config.model, *sampling, config.form.value, form.LABELS]
        name = hashlib.sha256(json.dumps(self._identity).encode()).hexdigest()[:16]
        prices = self._asked_of.usd_per_million_input, self._asked_of.usd_per_million_output
        budget = Budget(cache.absolute() / "spent" / name, self._asked_of.budget_usd, *prices)
        self._link = Link(config, self._model, budget)

    def load(self) -> None:
        """Know the key; with `cards.endpoint.serve`, start the server and return when it answers."""
        if self._link.endpoint is not None:
            return
        if self._asked_of.serve is None:
            key = secret(self._asked_of.key_env)
            self._link.endpoint = Endpoint(self._asked_of.url, self._model, key)
            return
        from cathpc.models.source import prepare

        folder = prepare(self._config.model, self._config.template, self._cache)
        server = Server(
            folder,
            "cards",
            engine=self._asked_of.serve,
            serving=self._serving,
            log=self._cache.absolute() / "logs" / f"cards-{os.uname().nodename}-{os.getpid()}.log",
            gpus=visible_gpus(),
        )
        weakref.finalize(self, server.end)  # at the latest when this process ends; after a kill the guard does it
        self._link.server = server
        self._link.endpoint = server.endpoint

    def task(
        self, record_id: str, messages: list[Message], component: str, attempt: int, mode: Mode = Mode.write
    ) -> Task:
        """The task for one record."""
        config = self._config
        asked = prompt.build(messages, component, mode=mode, kind=config.form, chars=config.quote_chars)
        if mode is Mode.write and config.form is CardForm.labels:
            asked = as_json(asked)
        limit = _limit(config, messages, mode)
        content = json.dumps([*self._identity, record_id, component, attempt, mode.name, limit, asked])
        key = hashlib.sha256(content.encode()).hexdigest()
        name = prompt.given(messages, component).name if mode is Mode.write else ""
        return Task(record_id, component, attempt, key, mode, tuple(asked), name, limit=limit)

    def write(self, tasks: list[Task]) -> Iterator[list[Draft]]:
        """The drafts of `tasks` as they come.

        Raises `UserError` for a refused key, an unknown model, an account without credit, an endpoint that refuses all
        and a spent budget (once what is in flight has come), and `TryAgainError` where the endpoint did not answer for
        `cards.endpoint.give_up_s` or a server of our own ended. What was yielded is done.
        """
        self.load()
        waiting, running = deque(tasks), set[asyncio.Task[Reply]]()
        held: list[Reply] = []  # refused: theirs is the fault only once something that was sent later is answered
        stop: CathpcError | None = None
        with asyncio.Runner() as runner:
            asking = Asking(self._link, self.task("", CONTROL, "general", 0))
            try:
                mark = time.monotonic()
                while waiting or running:
                    ready: list[Reply] = []
                    for ended in runner.run(asking.some(waiting, running, self._asked_of.concurrency)):
                        if isinstance(error := ended.exception(), CathpcError):
                            stop = stop or error
                        elif error is not None:
                            raise error
                        else:
                            reply = ended.result()
                            (held if reply.refusal else ready).append(reply)
                    many = len(held) >= (DOUBTED if self._link.answered else DOUBTED_FIRST)
                    if stop is None and held and (many or not (waiting or running)):
                        try:
                            runner.run(asking.prove(held[0].refusal))
                        except CathpcError as error:
                            stop = error
                    ready += [reply for reply in held if reply.at <= asking.proved]
                    held = [reply for reply in held if reply.at > asking.proved]
                    if ready:
                        share = (time.monotonic() - mark) / len(ready)
                        yield [replace(reply.draft, seconds=share) for reply in ready]
                        mark = time.monotonic()
                    if stop is not None:
                        waiting.clear()
                        if not isinstance(stop, Spent):
                            break
            finally:
                runner.run(asking.close(running))
        if stop is not None:
            raise stop


# --- small parts --------------------------------------------------------------------------------------------------


def _limit(config: CardsConfig, messages: list[Message], mode: Mode) -> int:
    """Tokens that may be written."""
    if mode is Mode.judge:
        return 8
    if mode is Mode.paraphrase:  # a token has a byte at least, and most have three
        return 16 + max(len(m["content"].encode()) for m in messages if m["role"] == "assistant")
    return config.max_new_tokens


def visible_gpus() -> int:
    """GPUs that this process may use, without torch; 1 where none is named."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return max(1, len([n for n in named.split(",") if n.strip()]))
