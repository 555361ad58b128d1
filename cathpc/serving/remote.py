"""A model behind an endpoint that speaks OpenAI's protocol, as `chat` talks to it; needs no torch.

In: a base URL, a model's name, a key. Out: answers, a piece at a time.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, cast

from cathpc.errors import UserError
from cathpc.serving.config import beside
from cathpc.serving.server import Endpoint

if TYPE_CHECKING:
    import openai

    from cathpc.record import Message

NEEDED = "endpoints need OpenAI's client library: pip install 'cathpc[endpoint]'"
TIMEOUT_S = 300.0
NO_PIECE = (ValueError, TypeError, AttributeError)
"""What the client raises where an answer is broken JSON, or JSON of another form."""


def secret(variable: str) -> str:
    """The key in an environment variable, '' where it is not set; `UserError` for one that no header can hold."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise UserError(f"the environment variable {variable} holds a key with characters that no key has")
    return key


class Remote:
    """A model at an endpoint and how it is asked; stands where `cathpc.acts.chat.Speaker` does."""

    def __init__(
        self, endpoint: Endpoint, *, key_from: str, max_new_tokens: int, temperature: float, seed: int | None
    ) -> None:
        """`key_from` says in errors where the key came from. A model without a name is the one that is served there.

        Raises `UserError` where the endpoint does not answer, refuses the key, or has several models to choose from.
        """
        try:
            import openai
        except ImportError:
            raise UserError(NEEDED) from None
        if not endpoint.url.startswith(("http://", "https://")):
            raise UserError(f"--url {endpoint.url} must start with http:// or https://")
        self._endpoint, self._key_from = endpoint, key_from
        self._most, self._temperature, self._seed = max_new_tokens, temperature, seed
        self._errors = openai.OpenAIError
        self._client = openai.OpenAI(
            base_url=endpoint.url,
            api_key=endpoint.key or "none",
            timeout=TIMEOUT_S,
            max_retries=1,
            http_client=openai.DefaultHttpxClient(trust_env=not beside(endpoint.url)),
        )
        self.model = endpoint.model or self._only_one()

    def _only_one(self) -> str:
        try:
            names = [model.id for model in self._client.models.list()]
        except self._errors as error:
            self.close()
            raise self._explained(error) from None
        except NO_PIECE as error:
            self.close()
            raise UserError(
                f"{self._endpoint.url} does not say which models it has ({type(error).__name__}): is it the base URL "
                "of an endpoint? It ends with /v1 as a rule"
            ) from None
        if len(names) != 1:
            self.close()
            raise UserError(f"{self._endpoint.url} has {len(names)} models, name one with --model: {', '.join(names)}")
        return names[0]

    def stream(self, messages: list[Message]) -> Generator[str]:
        """Pieces of the answer to `messages` as they come; what the server gives as reasoning in <think> tags."""
        thinking = False
        try:
            chunks = self._client.chat.completions.create(
                model=self.model,
                messages=cast(Any, messages),  # plain dicts, as the protocol has them
                stream=True,
                max_tokens=self._most,
                temperature=self._temperature,
                seed=self._seed,
            )
            with chunks:
                for chunk in chunks:
                    if not chunk.choices:
                        continue
                    delta = chunk.choices[0].delta
                    thought = getattr(delta, "reasoning_content", None) or getattr(delta, "reasoning", None)
                    if thought:
                        yield thought if thinking else f"<think>{thought}"
                        thinking = True
                    if delta.content:
                        yield f"</think>{delta.content}" if thinking else delta.content
                        thinking = False
        except self._errors as error:
            raise self._explained(error) from None
        except NO_PIECE as error:
            raise UserError(
                f"{self._endpoint.url} broke off its answer: what came is no piece of one ({type(error).__name__}). "
                "Ask again"
            ) from None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _explained(self, error: openai.OpenAIError) -> UserError:
        """What the user is told; never the key, which servers like to repeat."""
        import openai

        url = self._endpoint.url
        if isinstance(error, openai.APIStatusError) and error.status_code in (401, 403):
            return UserError(f"{url} refuses the key ({error.status_code}), which came from {self._key_from}")
        if isinstance(error, openai.APIConnectionError):
            return UserError(
                f"{url} does not answer. Is the model still served there? python -m cathpc serve ... --status"
            )
        text = " ".join(str(error).split())  # cut only once the key is out of it
        return UserError(f"{url}: {(text.replace(self._endpoint.key, '***') if self._endpoint.key else text)[:300]}")
