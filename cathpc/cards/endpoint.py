"""The writer of cards that asks an endpoint which speaks OpenAI's protocol.

In: tasks. Out: one draft for each, whatever the endpoint does in between: it is asked with bounded concurrency and
rate; while it is down, overloaded or out of room it is waited for, with pauses that grow and vary and heed Retry-After
(exponential backoff with jitter: Brooker, 'Exponential Backoff And Jitter', AWS 2015). What is its fault costs no text
a try. Forms are asked for as JSON, decoded under a schema where the endpoint can. With `cards.endpoint.serve` the
writer starts a server of its own on the loopback, which ends with it. Memory grows with the tasks; time with tokens,
divided by the concurrency.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from cathpc.cards import form, prompt
from cathpc.cards.config import CardForm, CardsConfig, Mode
from cathpc.cards.json_form import as_form, as_json, response_format
from cathpc.cards.writer import Draft, Task
from cathpc.errors import CathpcError, TryAgainError, UserError
from cathpc.record import Message
from cathpc.serving.budget import Budget
from cathpc.serving.config import ServingConfig
from cathpc.serving.remote import NEEDED, beside, secret
from cathpc.serving.server import Endpoint, Server

try:
    import openai
except ImportError:
    raise UserError(NEEDED) from None

BUSY = frozenset({408, 409, 425, 429, 502, 503, 504, 529})
"""What says that the endpoint, and not the request, is at fault."""
REFUSED = frozenset({401, 403})
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
SICK = 3
"""Requests that the endpoint refuses before any has been answered: then it is no request's fault."""
PROSE = (Mode.summarise, Mode.paraphrase)
"""Modes whose text is used as it is: one that was cut at its limit is none."""


@dataclass
class _Reply:
    """What became of a task: its draft, and what the endpoint said where it refused it."""

    draft: Draft
    refusal: str = ""


class _Spent(UserError):
    """The budget has no room for another request."""


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
        self._budget = Budget(cache.absolute() / "spent" / name, self._asked_of.budget_usd, *prices)
        self._endpoint: Endpoint | None = None
        self._constrained: bool | None = None
        """Whether the endpoint decodes under a schema; None until it is known."""
        self._answered = 0

    def load(self) -> None:
        """Know the key; with `cards.endpoint.serve`, start the server and return when it answers."""
        if self._endpoint is not None:
            return
        if self._asked_of.serve is None:
            key = secret(self._asked_of.key_env)
            self._endpoint = Endpoint(self._asked_of.url, self._model, key)
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
        self._endpoint = server.endpoint

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

        Raises `UserError` for a refused key, an unknown model and a spent budget (once what is in flight has come), and
        `TryAgainError` where the endpoint did not answer for `cards.endpoint.give_up_s`. What was yielded is done.
        """
        self.load()
        waiting, running = deque(tasks), set[asyncio.Task[_Reply]]()
        held: list[_Reply] = []  # refused before any answer: whose fault that is shows later
        stop: CathpcError | None = None
        with asyncio.Runner() as runner:
            asking = _Asking(self)
            try:
                mark = time.monotonic()
                while waiting or running:
                    done = runner.run(asking.some(waiting, running, self._asked_of.concurrency))
                    for ended in done:
                        if isinstance(error := ended.exception(), CathpcError):
                            stop = stop or error
                        elif error is not None:
                            raise error
                        else:
                            held.append(ended.result())
                    if self._answered and held:
                        share = (time.monotonic() - mark) / len(held)
                        yield [replace(reply.draft, seconds=share) for reply in held]
                        held, mark = [], time.monotonic()
                    if stop is None and len(held) >= SICK:
                        stop = UserError(f"{self._where()} refuses every request: {held[0].refusal}")
                    if stop is not None:
                        waiting.clear()
                        if not isinstance(stop, _Spent):
                            break
                if held and stop is None:
                    runner.run(asking.reach())
                    yield [reply.draft for reply in held]
            finally:
                runner.run(asking.close(running))
        if stop is not None:
            raise stop

    def _where(self) -> str:
        return f"cards.endpoint ({self._asked_of.url or 'the server of this job'}, model {self._model})"


class _Asking:
    """The requests of one call of `write`, on one event loop."""

    def __init__(self, writer: OpenAIWriter) -> None:
        assert writer._endpoint is not None
        self._writer, self._config, self._endpoint = writer, writer._config, writer._endpoint
        self._client: openai.AsyncOpenAI | None = None
        self._next = 0.0
        """When the next request may be sent."""
        self._down: float | None = None
        """Since when the endpoint has not answered."""

    def _api(self) -> openai.AsyncOpenAI:
        if self._client is None:
            endpoint, of = self._endpoint, self._writer._asked_of
            self._client = openai.AsyncOpenAI(
                base_url=endpoint.url,
                api_key=endpoint.key or "none",
                timeout=of.timeout_s,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=not beside(endpoint.url)),
            )
        return self._client

    async def some(
        self, waiting: deque[Task], running: set[asyncio.Task[_Reply]], most: int
    ) -> list[asyncio.Task[_Reply]]:
        """Send what may be in flight; those that have ended, at least one."""
        while waiting and len(running) < most:
            running.add(asyncio.create_task(self._one(waiting.popleft())))
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        running -= done
        return list(done)

    async def close(self, running: set[asyncio.Task[_Reply]]) -> None:
        """Give up what is in flight."""
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def reach(self) -> None:
        """Raise where the endpoint does not even say which models it has."""
        try:
            await self._api().models.list()
        except openai.APIStatusError as error:
            self._fatal(error)
        except (openai.OpenAIError, ValueError) as error:
            raise TryAgainError(f"{self._writer._where()} does not answer: {self._said(error)}") from None

    async def _one(self, task: Task) -> _Reply:
        """Ask until there is a draft; errors and answers of the task's own are counted, waiting is not."""
        own, tries, answered, spent = 0, 0, self._writer._answered, [0, 0]
        constrained = task.mode is Mode.write and self._writer._constrained is not False
        while True:
            tries += 1
            try:
                text, *paid = await self._ask(task, own, constrained)
            except openai.APIStatusError as error:
                self._fatal(error)
                said = self._said(error)
                if error.status_code in BUSY:
                    await self._wait(tries, said, _retry_after(error))
                    continue
                if error.status_code < 500:
                    if constrained and not self._writer._constrained:
                        constrained = False  # perhaps it knows no schema
                        continue
                    return _Reply(Draft(task.key, task.id, task.attempt, "", 0, 0.0), said)
            except openai.APIConnectionError as error:
                said = self._said(error)
                if not isinstance(error, openai.APITimeoutError):
                    await self._wait(tries, said)
                    continue
            except (openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError) as error:
                said = f"an answer that is no completion ({type(error).__name__})"
            else:
                self._down, self._writer._answered = None, self._writer._answered + 1
                if constrained != self._writer._constrained and task.mode is Mode.write:
                    self._learn(constrained)
                filled = as_form(text, self._config.form) if task.mode is Mode.write else text.strip()
                own, spent = own + 1, [a + b for a, b in zip(spent, paid, strict=True)]
                if filled or own > self._writer._asked_of.retries:
                    return _Reply(Draft(task.key, task.id, task.attempt, filled or text, spent[1], 0.0, spent[0]))
                answered = self._writer._answered
                continue
            # A fault of the server, or of the text: of the text where others are answered meanwhile.
            if self._writer._answered > answered:
                own, answered = own + 1, self._writer._answered
                if own > self._writer._asked_of.retries:
                    return _Reply(Draft(task.key, task.id, task.attempt, "", 0, 0.0), said)
            await self._wait(tries, said)

    async def _ask(self, task: Task, number: int, constrained: bool) -> tuple[str, int, int]:
        """One request: the text of the answer, '' for prose that was cut, and the tokens read and written."""
        config, budget, of = self._config, self._writer._budget, self._writer._asked_of
        await self._turn()
        size = sum(len(m["content"].encode()) + 16 for m in task.asked)  # a token has a byte at least
        most = budget.price(size, task.limit)
        if not budget.reserve(most):
            raise _Spent(
                f"cards.endpoint.budget_usd={of.budget_usd:g}: {budget.spent:.4f} are spent and another card may cost "
                f"{most:.4f}. What is written is kept; raise the budget and the same command goes on"
            )
        cost = 0.0
        extra: dict[str, Any] = {"response_format": response_format(config.form)} if constrained else {}
        try:
            answer = await self._api().chat.completions.create(
                model=self._endpoint.model,
                messages=list(task.asked),  # type: ignore[arg-type]  # plain dicts, as the protocol has them
                temperature=0.0 if task.mode is Mode.judge else config.temperature,
                max_tokens=task.limit,
                seed=_seed(config.seed, task, number),
                **extra,
            )
            cost = most  # until the answer says less
            text = answer.choices[0].message.content or ""
            usage = answer.usage
            read = usage.prompt_tokens if usage else size // 4
            tokens = usage.completion_tokens if usage else max(1, len(text) // 4)
            cost = budget.price(read, tokens)
            cut = answer.choices[0].finish_reason == "length" and task.mode in PROSE
            return "" if cut else text, read, tokens
        except ValueError:
            cost = most
            raise
        finally:
            budget.settle(most, cost)

    async def _turn(self) -> None:
        """Wait for the next request's time: the rate, and a pause that the endpoint asked for."""
        rate = self._writer._asked_of.requests_per_minute
        while (now := time.monotonic()) < self._next:
            await asyncio.sleep(self._next - now)
        self._next = max(self._next, now + 60 / rate) if rate else self._next

    async def _wait(self, tries: int, said: str, asked: float = 0.0) -> None:
        """Wait before the next try; raises `TryAgainError` where the endpoint has not answered for too long."""
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries - 1, 10)) * random.uniform(0.5, 1.0)
        now, most = time.monotonic(), self._writer._asked_of.give_up_s
        if self._down is None:
            self._down = now
            print(f"cathpc: {self._writer._where()}: {said}; waiting for it", file=sys.stderr, flush=True)
        if now - self._down > most or asked > most:
            raise TryAgainError(
                f"{self._writer._where()} has not answered for {max(now - self._down, asked):.0f} s "
                f"(cards.endpoint.give_up_s={most:g}): {said}. What is written is kept; the same command goes on"
            )
        if asked:
            self._next = max(self._next, now + asked)
        await asyncio.sleep(max(asked, pause))

    def _learn(self, constrained: bool) -> None:
        """The first answer tells whether the endpoint decodes under a schema."""
        self._writer._constrained = constrained
        if not constrained:
            print(
                f"cathpc: {self._writer._where()} takes no response_format; JSON is asked for in words alone",
                file=sys.stderr,
                flush=True,
            )

    def _fatal(self, error: openai.APIStatusError) -> None:
        """Raise for what no later request would do better. What the endpoint says of a key is not repeated."""
        where, name = self._writer._where(), self._writer._asked_of.key_env
        if error.status_code in REFUSED and self._writer._asked_of.serve is None:
            have = "holds none that it takes" if self._endpoint.key else "is not set"
            raise UserError(
                f"{where} refuses the key ({error.status_code}): the environment variable {name} {have}. Set it where "
                "you start cathpc, or name another one with cards.endpoint.key_env"
            ) from None
        if error.status_code == 404:
            raise UserError(
                f"{where}: not found (404): {self._said(error)}. Look at cards.endpoint.url (it ends with /v1 as a "
                "rule) and cards.endpoint.model"
            ) from None
        if error.code == "insufficient_quota":
            raise UserError(f"{where}: the account has no quota left: {self._said(error)}") from None

    def _said(self, error: Exception) -> str:
        """An error in one line, without the key."""
        text = str(error)
        if isinstance(error, openai.APIStatusError) and not getattr(error.body, "get", lambda _: None)("message"):
            text = f"{text}: {error.response.text}"  # not in the protocol's form, so the client leaves it out
        text = " ".join(text.split())  # cut only once the key is out of it
        return (text.replace(self._endpoint.key, "***") if self._endpoint.key else text)[:300]


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


def _seed(seed: int, task: Task, number: int) -> int:
    """Another draw for each attempt and each time that it is asked again; 31 bits."""
    text = f"{seed}/{task.id}/{task.attempt}/{number}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds of the header Retry-After, in its two forms (RFC 9110, section 10.2.3); 0 where there is none."""
    said = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0
