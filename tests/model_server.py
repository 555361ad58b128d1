"""An endpoint that speaks OpenAI's protocol around a real tiny model, and a proxy before it that fails as real ones do.

`python -m tests.model_server FOLDER KEY` prints its port, answers until its standard input closes, and logs each chat
request to standard output as one line of JSON. Under a schema keys and quotes are put, and the model
writes the values.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib import request as web
from urllib.error import HTTPError

from fastapi import FastAPI, HTTPException, Request

ROOT = Path(__file__).parents[1]


def app(folder: Path, key: str) -> Any:
    """The FastAPI application."""

    from cathpc.evaluate import generate
    from cathpc.models.config import Dtype

    model, template = generate.load(folder, Dtype.float32)
    lock = threading.Lock()
    served = FastAPI()

    def written(ids: list[int], most: int, seed: str) -> list[int]:
        with lock:
            return generate.generate(
                model,
                [ids],
                stop_id=template.stop_id,
                pad_id=template.pad_id,
                max_new_tokens=most,
                temperature=0.7,
                seeds=[seed],
            )[0]

    def authorise(request: Request) -> None:
        if request.headers.get("authorization") != f"Bearer {key}":
            raise HTTPException(401, f"Incorrect API key provided: {request.headers.get('authorization')}")

    @served.get("/v1/models")
    def models(request: Request) -> dict[str, Any]:
        authorise(request)
        return {"object": "list", "data": [{"id": "tiny", "object": "model"}]}

    @served.post("/v1/chat/completions")
    def chat(body: dict[str, Any], request: Request) -> dict[str, Any]:
        authorise(request)
        if body["model"] != "tiny":
            raise HTTPException(404, f"there is no model {body['model']}")
        ids, _ = template.encode(body["messages"], generation_prompt=True)
        most, seed = int(body.get("max_tokens") or 16), str(body.get("seed"))
        if len(ids) + most > generate.window(model.config):
            raise HTTPException(400, "the conversation is longer than the model's context")
        schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
        tokens = written(ids, most, seed)
        text, count = template.decode(tokens), len(tokens)
        if schema is not None:
            share = max(1, count // len(schema["required"]))
            parts = [tokens[at * share : (at + 1) * share] for at in range(len(schema["required"]))]
            text = json.dumps({n: template.decode(part) for n, part in zip(schema["required"], parts, strict=True)})
        print(json.dumps({"last": body["messages"][-1]["content"][-60:], "json": schema is not None}), flush=True)
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": len(ids), "completion_tokens": count, "total_tokens": len(ids) + count}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "tiny",
            "choices": [choice],
            "usage": usage,
        }

    return served


def main(folder: Path, key: str) -> None:
    """Serve on a free port of the loopback."""
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app(folder, key), log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        print("port", listener.getsockname()[1], flush=True)
        sys.stdin.read()
        server.should_exit = True
        thread.join(10)


@dataclass
class Served:
    """A running server of the tests."""

    port: int
    key: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    """The chat requests that were answered."""


@contextmanager
def serve(folder: Path, key: str) -> Iterator[Served]:
    """Start `main` in a process of its own."""
    command = [sys.executable, "-m", "tests.model_server", str(folder), key]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdin and process.stdout
    lines = process.stdout
    with process, lines:
        port = next(line for line in lines if line.startswith("port"))  # others come from libraries
        served = Served(int(port.split()[1]), key)

        def listen() -> None:
            for line in filter(lambda text: text.startswith("{"), lines):
                served.requests.append(json.loads(line))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            process.stdin.close()
            process.wait(20)
            thread.join(5)


# --- the proxy ----------------------------------------------------------------------------------------------------

Fault = Callable[[BaseHTTPRequestHandler, bytes, Callable[[], bytes]], bool]
"""(the request, its body, a function that asks the server) -> whether it was dealt with."""


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> bool:
    """Send an answer of the proxy's own."""
    handler.send_response(status)
    for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
    return True


class Proxy:
    """Passes requests on to the server; `faults` have their turn first. It can be down: it then closes connections."""

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.faults: list[Fault] = []
        self.down_until = 0.0
        self.seen: list[tuple[float, dict[str, Any]]] = []
        """Time and body of each chat request that came."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self.handle_one(b"")

            def do_POST(self) -> None:
                self.handle_one(self.rfile.read(int(self.headers["Content-Length"])))

            def handle_one(self, body: bytes) -> None:
                if body:
                    proxy.seen.append((time.monotonic(), json.loads(body)))
                if time.monotonic() < proxy.down_until:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return

                def ask() -> bytes:
                    status, text = proxy.ask(self, body)
                    if status != 200:
                        answer(self, status, text)
                        raise ConnectionAbortedError
                    return text

                try:
                    if not (body and any(fault(self, body, ask) for fault in list(proxy.faults))):
                        answer(self, *proxy.ask(self, body))
                except (ConnectionError, BrokenPipeError):
                    self.close_connection = True

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base URL."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def ask(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        """Status and body of what the server says."""
        headers = {"Authorization": handler.headers.get("Authorization", ""), "Content-Type": "application/json"}
        request = web.Request(f"http://127.0.0.1:{self.upstream}{handler.path}", body or None, headers)
        try:
            with web.build_opener(web.ProxyHandler({})).open(request, timeout=60) as reply:
                return reply.status, reply.read()
        except HTTPError as error:
            with error:
                return error.code, error.read()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
