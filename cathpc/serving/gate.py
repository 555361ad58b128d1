"""The gate before a server of models: an ASGI middleware that lets /health through, and the rest with the key alone.

In: the key and the model's name, from the environment. Out: answers to GET /v1/models and refusals by itself, POST
/v1/chat/completions by the server behind it. Nothing else is open: `transformers serve` knows no key and would load any
model for whoever asks, and vLLM's own key guards only a part of its paths (its security guide, 'API Key Authentication
Limitations'). Standard library only: vLLM loads this file, alone, in an environment without cathpc.
"""

from __future__ import annotations

import hmac
import json
import os
from typing import Any

KEY, NAME = "CATHPC_SERVE_KEY", "CATHPC_SERVE_NAME"


class Gate:
    """The middleware; the server refuses to start without a key."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._expected = f"Bearer {os.environ[KEY]}".encode()
        self._name = os.environ[NAME]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        asked = (scope["method"], scope["path"])
        given = dict(scope["headers"]).get(b"authorization", b"")
        if asked == ("GET", "/health"):
            await self._app(scope, receive, send)
        elif not hmac.compare_digest(given, self._expected):
            await _say(send, 401, {"error": {"message": "this endpoint needs its key"}})
        elif asked == ("GET", "/v1/models"):
            await _say(send, 200, {"object": "list", "data": [{"id": self._name, "object": "model"}]})
        elif asked == ("POST", "/v1/chat/completions"):
            await self._app(scope, receive, send)
        else:
            await _say(send, 404, {"error": {"message": "there is no such path"}})


async def _say(send: Any, status: int, content: dict[str, Any]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})
