"""The requests at an endpoint that speaks OpenAI's protocol: sent, waited for, asked again, and whose fault it is.

In: tasks. Out: a draft for each, or its refusal. While the endpoint is down, overloaded or out of room it is waited
for, with pauses that grow and vary and heed Retry-After (exponential backoff with jitter: Brooker, 'Exponential Backoff
And Jitter', AWS 2015). What is its fault costs no text a try: where a text fails and no other one is answered, a card
that is no trouble is asked for (the control), and only its answer tells that the fault is the text's. Memory grows with
the requests in flight.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import random
import sys
import time
from collections import deque
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from cathpc.cards.config import CardsConfig, Mode
from cathpc.cards.json_form import as_form, response_format
from cathpc.cards.writer import Draft, Task
from cathpc.errors import TryAgainError, UserError
from cathpc.serving.budget import Budget
from cathpc.serving.config import EndpointConfig, beside
from cathpc.serving.remote import NEEDED
from cathpc.serving.server import Endpoint, Server

try:
    import openai
except ImportError:
    raise UserError(NEEDED) from None

BUSY = frozenset({408, 409, 425, 429, 502, 503, 504, 529})
"""What says that the endpoint, and not the request, is at fault."""
REFUSED = frozenset({401, 403})
UNPAID = frozenset({"insufficient_quota", "insufficient_credits", "billing_hard_limit_reached", "billing_not_active"})
"""Codes of an account that cannot pay, whatever the status; 402 says it without one."""
FAULTS = (openai.OpenAIError, ValueError, TypeError, AttributeError, IndexError)
"""What asking raises where no completion comes."""
UNSENT = frozenset({"ConnectError", "ConnectTimeout", "PoolTimeout"})
"""Causes of a failed request that show that it never reached the endpoint."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
PROSE = (Mode.summarise, Mode.paraphrase)
"""Modes whose text is used as it is: one that was cut at its limit is none."""


@dataclass
class Reply:
    """What became of a task: its draft, and what the endpoint said where it refused it."""

    draft: Draft
    refusal: str = ""
    at: float = 0.0
    """When it was refused."""


class Spent(UserError):
    """The budget has no room for another request."""


@dataclass
class Link:
    """The endpoint as far as it is known: what outlasts one call of `write`."""

    config: CardsConfig
    model: str
    budget: Budget
    endpoint: Endpoint | None = None
    """None until the writer is loaded."""
    server: Server | None = None
    """The one that the writer started itself."""
    constrained: bool | None = None
    """Whether the endpoint decodes under a schema; None until it is known."""
    answered: int = 0
    """Requests that it has answered."""

    @property
    def of(self) -> EndpointConfig:
        """How it is asked."""
        return self.config.endpoint

    @property
    def where(self) -> str:
        """Which endpoint it is, for messages."""
        return f"cards.endpoint ({self.of.url or 'the server of this job'}, model {self.model})"


class Asking:
    """The requests of one call of `write`, on one event loop."""

    def __init__(self, link: Link, control: Task) -> None:
        """`control` asks for a card that is no trouble."""
        assert link.endpoint is not None
        self._link, self._endpoint, self._control_task = link, link.endpoint, control
        self._client: openai.AsyncOpenAI | None = None
        self._next = 0.0
        """When the next request may be sent."""
        self._down: float | None = None
        """Since when the endpoint has not answered."""
        self._flying = 0
        """Texts that are being asked for."""
        self._troubled: set[str] = set()
        """The keys of those that have failed since they were last answered."""
        self.proved = 0.0
        """When the last of the requests that were answered was sent: what was refused before it is at fault itself."""
        self._one_control = asyncio.Lock()
        self._next_control = 0.0

    def _api(self) -> openai.AsyncOpenAI:
        if self._client is None:
            endpoint, of = self._endpoint, self._link.of
            self._client = openai.AsyncOpenAI(
                base_url=endpoint.url,
                api_key=endpoint.key or "none",
                timeout=of.timeout_s,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(trust_env=not beside(endpoint.url)),
            )
        return self._client

    async def some(
        self, waiting: deque[Task], running: set[asyncio.Task[Reply]], most: int
    ) -> list[asyncio.Task[Reply]]:
        """Send what may be in flight; those that have ended, at least one."""
        while waiting and len(running) < most:
            running.add(asyncio.create_task(self._one(waiting.popleft())))
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        running -= done
        return list(done)

    async def close(self, running: set[asyncio.Task[Reply]]) -> None:
        """Give up what is in flight."""
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    async def prove(self, refusal: str) -> None:
        """Return once the control is answered; raise where it is refused as the texts are, which `refusal` tells of."""
        tries = 0
        while True:
            tries += 1
            asked = 0.0
            try:
                return await self._control()
            except openai.APIStatusError as error:
                if error.status_code < 500 and error.status_code not in BUSY:
                    raise UserError(
                        f"{self._link.where} refuses every request: {refusal}. What is written is kept, what is "
                        "refused is asked for again; the same command goes on"
                    ) from None
                said, asked = self._said(error), _retry_after(error)
            except FAULTS as error:
                said = self._fault(error)
            await self._wait(tries, said, asked)

    async def _control(self) -> None:
        """Ask for the control, under the limits of any other card; raises where it is not answered."""
        sent, number = time.monotonic(), time.time_ns()  # another draw every time: no cache in between answers it
        try:
            await self._ask(self._control_task, number, False)
        except openai.APIStatusError as error:
            self._fatal(error)
            raise
        self._heard(sent)

    async def _compare(self, answered: int) -> None:
        """Ask for the control where no more than `answered` requests are answered yet, one text at a time; where it is
        not answered, not again for a while."""
        async with self._one_control:
            if self._link.answered > answered or time.monotonic() < self._next_control:
                return
            with contextlib.suppress(*FAULTS):
                return await self._control()
            self._next_control = time.monotonic() + LONGEST_PAUSE_S

    def _heard(self, sent: float) -> None:
        """A request that was sent then is answered."""
        self._down, self._link.answered = None, self._link.answered + 1
        self.proved = max(self.proved, sent)

    async def _one(self, task: Task) -> Reply:
        """The draft of one task, or its refusal."""
        self._flying += 1
        try:
            return await self._until_done(task)
        finally:
            self._flying -= 1
            self._troubled.discard(task.key)

    async def _until_done(self, task: Task) -> Reply:
        """Ask until there is a draft; errors and answers of the task's own are counted, waiting is not."""
        own, tries, answered, spent = 0, 0, self._link.answered, [0, 0]
        constrained = task.mode is Mode.write and self._link.constrained is not False
        while True:
            tries += 1
            sent, asked, mine = time.monotonic(), 0.0, True
            try:
                text, *paid = await self._ask(task, own, constrained)
            except openai.APIStatusError as error:
                self._fatal(error)
                said, asked, mine = self._said(error), _retry_after(error), error.status_code not in BUSY
                if mine and error.status_code < 500:
                    if constrained and not self._link.constrained:
                        constrained = False  # perhaps it knows no schema
                        continue
                    return Reply(Draft(task.key, task.id, task.attempt, "", 0, 0.0), said, time.monotonic())
            except openai.APIConnectionError as error:
                said, mine = self._said(error), isinstance(error, openai.APITimeoutError)
            except FAULTS as error:
                said = self._fault(error)
            else:
                self._heard(sent)
                self._troubled.discard(task.key)
                if constrained != self._link.constrained and task.mode is Mode.write:
                    self._learn(constrained)
                filled = as_form(text, self._link.config.form) if task.mode is Mode.write else text.strip()
                own, spent = own + 1, [a + b for a, b in zip(spent, paid, strict=True)]
                if filled or own > self._link.of.retries:
                    return Reply(Draft(task.key, task.id, task.attempt, filled or text, spent[1], 0.0, spent[0]))
                answered = self._link.answered
                continue
            self._troubled.add(task.key)
            # A fault of the server, or of the text (`mine`): of the text where another one is answered meanwhile.
            if mine and tries > 1 and len(self._troubled) == self._flying:  # no other one is on its way
                await self._compare(answered)
            if mine and self._link.answered > answered:
                own, answered = own + 1, self._link.answered
                if own > self._link.of.retries:
                    return Reply(Draft(task.key, task.id, task.attempt, "", 0, 0.0))
            await self._wait(tries, said, asked)

    async def _ask(self, task: Task, number: int, constrained: bool) -> tuple[str, int, int]:
        """One request: the text of the answer, '' for prose that was cut, and the tokens read and written."""
        config, budget, of = self._link.config, self._link.budget, self._link.of
        await self._turn()
        size = sum(len(m["content"].encode()) + 16 for m in task.asked)  # a token has a byte at least
        most = budget.price(size, task.limit)
        if not budget.reserve(most):
            raise Spent(
                f"cards.endpoint.budget_usd={of.budget_usd:g}: {budget.spent:.4f} are spent and another card may cost "
                f"{most:.4f}. What is written is kept; raise the budget and the same command goes on"
            )
        cost = most  # whatever becomes of it, the endpoint may bill it
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
            text = answer.choices[0].message.content or ""
            usage = answer.usage
            read = usage.prompt_tokens if usage else size // 4
            tokens = usage.completion_tokens if usage else max(1, len(text) // 4)
            cost = budget.price(read, tokens)
            cut = answer.choices[0].finish_reason == "length" and task.mode in PROSE
            return "" if cut else text, read, tokens
        except openai.APIStatusError:
            cost = 0.0
            raise
        except openai.APIConnectionError as error:
            cost = 0.0 if type(error.__cause__).__name__ in UNSENT else most
            raise
        finally:
            budget.settle(most, cost)

    async def _turn(self) -> None:
        """Wait for the next request's time: the rate, and a pause that the endpoint asked for."""
        rate = self._link.of.requests_per_minute
        while (now := time.monotonic()) < self._next:
            await asyncio.sleep(self._next - now)
        self._next = max(self._next, now + 60 / rate) if rate else self._next

    async def _wait(self, tries: int, said: str, asked: float = 0.0) -> None:
        """Wait before the next try; raises `TryAgainError` where the endpoint has not answered for too long, or is a
        server of our own that has ended."""
        if (server := self._link.server) and (fault := server.fault):
            raise TryAgainError(
                f"{self._link.where}: the server {fault}\nWhat is written is kept; the same command goes on"
            )
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(tries - 1, 10)) * random.uniform(0.5, 1.0)
        now, most = time.monotonic(), self._link.of.give_up_s
        if self._down is None:
            self._down = now
            print(f"cathpc: {self._link.where}: {said}; waiting for it", file=sys.stderr, flush=True)
        if now - self._down > most or asked > most:
            raise TryAgainError(
                f"{self._link.where} has not answered for {max(now - self._down, asked):.0f} s "
                f"(cards.endpoint.give_up_s={most:g}): {said}. What is written is kept; the same command goes on"
            )
        if asked:
            self._next = max(self._next, now + asked)
        await asyncio.sleep(max(asked, pause))

    def _learn(self, constrained: bool) -> None:
        """The first answer tells whether the endpoint decodes under a schema."""
        self._link.constrained = constrained
        if not constrained:
            print(
                f"cathpc: {self._link.where} takes no response_format; JSON is asked for in words alone",
                file=sys.stderr,
                flush=True,
            )

    def _fatal(self, error: openai.APIStatusError) -> None:
        """Raise for what no later request would do better. What the endpoint says of a key is not repeated."""
        where, name = self._link.where, self._link.of.key_env
        if error.status_code in REFUSED and self._link.of.serve is None:
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
        if error.status_code == 402 or str(error.code) in UNPAID:
            raise UserError(
                f"{where}: the account has no credit left ({error.status_code}): {self._said(error)}. What is written "
                "is kept; pay in, and the same command goes on"
            ) from None

    def _fault(self, error: Exception) -> str:
        """An error that came in the place of a completion, in one line."""
        known = isinstance(error, openai.APIConnectionError)
        return self._said(error) if known else f"an answer that is no completion ({type(error).__name__})"

    def _said(self, error: Exception) -> str:
        """An error in one line, without the key."""
        text = str(error)
        if isinstance(error, openai.APIStatusError) and not getattr(error.body, "get", lambda _: None)("message"):
            text = f"{text}: {error.response.text}"  # not in the protocol's form, so the client leaves it out
        text = " ".join(text.split())  # cut only once the key is out of it
        return (text.replace(self._endpoint.key, "***") if self._endpoint.key else text)[:300]


# --- small parts --------------------------------------------------------------------------------------------------


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
