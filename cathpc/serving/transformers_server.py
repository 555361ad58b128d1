"""`transformers serve` for one folder, behind a key.

`python -m cathpc.serving.transformers_server FOLDER NAME HOST PORT`

In: a folder of safetensors, the name under which it is served, and the key in the environment variable of `KEY`. Out:
an endpoint with /health, /v1/models and /v1/chat/completions. transformers' own server knows no key, and would load any
other model, code-carrying ones included, for whoever reaches its port; here every request but /health needs the key,
and nothing else is open. No code of the folder runs.
"""

from __future__ import annotations

import hmac
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from cathpc.errors import CathpcError, UserError

KEY = "CATHPC_SERVE_KEY"
OPEN = frozenset({("GET", "/v1/models"), ("POST", "/v1/chat/completions")})


class Gate:
    """An ASGI middleware: /health for all, what is in `OPEN` for those who have the key, nothing else."""

    def __init__(self, app: Any, *, key: str, name: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()
        self._name = name

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = (scope["method"], scope["path"])
        given = dict(scope["headers"]).get(b"authorization", b"")
        if asked == ("GET", "/health"):
            await self._app(scope, receive, send)
        elif not hmac.compare_digest(given, self._expected):
            await self._refuse(send, 401, "this endpoint needs its key")
        elif asked == ("GET", "/v1/models"):
            await self._say(send, 200, {"object": "list", "data": [{"id": self._name, "object": "model"}]})
        elif asked in OPEN:
            await self._app(scope, receive, send)
        else:
            await self._refuse(send, 404, "there is no such path")

    async def _refuse(self, send: Any, status: int, message: str) -> None:
        await self._say(send, status, {"error": {"message": message, "type": "invalid_request_error"}})

    async def _say(self, send: Any, status: int, content: dict[str, Any]) -> None:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(content).encode()})


def main(argv: list[str]) -> int:
    """Serve until the process is told to end."""
    folder, name, host, port = Path(argv[0]).absolute(), argv[1], argv[2], int(argv[3])
    key = os.environ.pop(KEY, "")
    if not key:
        raise UserError(f"{KEY} is not set: nothing is served without a key")
    from cathpc.models.weights import tensors

    tensors(folder)  # safetensors only
    os.environ["HF_HUB_OFFLINE"] = "1"
    import transformers.cli.serving.server as server
    from transformers.cli.serve import Serve

    build = server.build_server

    def gated(manager: Any, *parts: Any, **named: Any) -> Any:
        for loaded in manager.loaded_models.values():
            loaded.model.generation_config.do_sample = True  # else a temperature is ignored; 0 is greedy still
        app = build(manager, *parts, **named)
        app.add_middleware(Gate, key=key, name=name)
        return app

    server.build_server = gated
    with tempfile.TemporaryDirectory(prefix="cathpc-serve-") as place:
        os.chdir(place)
        os.symlink(folder, name)  # requests must name the model as the server does, and that is by its path
        Serve(force_model=name, host=host, port=port, trust_remote_code=False)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CathpcError as error:
        sys.exit(f"cathpc: {error}")
