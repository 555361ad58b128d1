"""A W&B server on loopback, as much of one as a client needs that logs a run: what it was sent can be read back.

`mode` says how it behaves: 'good'; 'hang', which takes a request and never answers; 'error', which answers 500.
History is kept as W&B keeps it: lines of JSON by run, in the order in which they came.
"""

from __future__ import annotations

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """The server and what it knows; use it as a context."""

    def __init__(self, port: int = 0) -> None:
        self.mode = "good"
        self.history: dict[str, list[dict[str, Any]]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        self.finished: set[str] = set()
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.used: list[tuple[str, str]] = []
        """Run and artifact."""
        self.asked: list[str] = []
        """Operations that were asked for, one a request."""
        self._hung = threading.Event()
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._http = _Http(("127.0.0.1", port), handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._hung.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def steps(self, run: str) -> list[int]:
        """The global steps of a run's history, as they came."""
        return [row["global_step"] for row in self.history.get(run, []) if "global_step" in row]

    def wait(self) -> None:
        """Hang until the server is closed."""
        self._hung.wait()

    # --- what is answered ---------------------------------------------------------------------------------------------

    def graphql(self, operation: str, query: str, variables: dict[str, Any]) -> Any:
        """The `data` of the answer to a GraphQL operation."""
        answer = getattr(self, f"on_{operation}", None)
        return answer(variables) if answer else {}

    def on_RunResumeStatus(self, variables: dict[str, Any]) -> Any:
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": None}}
        history = self.history.get(run["name"], [])
        tail = [json.dumps(history[-1])] if history else []
        bucket = {
            "id": run["id"], "name": run["name"], "config": json.dumps(run["config"]), "tags": [],
            "summaryMetrics": json.dumps(self.summary.get(run["name"], {})), "historyLineCount": len(history),
            "historyTail": json.dumps(tail), "eventsLineCount": 0, "eventsTail": "[]", "logLineCount": 0,
            "wandbConfig": json.dumps({"t": 1}), "displayName": run["name"],
        }  # fmt: skip
        return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": bucket}}

    def on_UpsertBucket(self, variables: dict[str, Any]) -> Any:
        name = variables["name"]
        new = name not in self.runs
        run = self.runs.setdefault(name, {"id": f"id-{name}", "name": name, "config": {}})
        run["config"] |= json.loads(variables.get("config") or "{}")
        for key in ("groupName", "jobType", "displayName", "project", "entity"):
            if variables.get(key):
                run[key] = variables[key]
        project = {"id": "p", "name": run.get("project", "p"), "entity": {"id": "e", "name": "team"}}
        lines = len(self.history.get(name, []))
        bucket = {"id": run["id"], "name": name, "displayName": run.get("displayName", name), "description": None,
                  "config": json.dumps(run["config"]), "sweepName": None, "project": project,
                  "historyLineCount": lines}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def on_Viewer(self, variables: dict[str, Any]) -> Any:
        return {"viewer": {"id": "v", "entity": "team", "username": "user", "flags": "{}", "teams": {"edges": []}}}

    def on_CreateRunFiles(self, variables: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def on_ArtifactType(self, variables: dict[str, Any]) -> Any:
        return {"project": {"artifact": None}}

    def on_CreateArtifact(self, variables: dict[str, Any]) -> Any:
        given = variables["input"]
        name = given["artifactCollectionName"]
        self.artifacts[name] = given
        artifact = {"id": f"artifact:{name}", "state": "COMMITTED", "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": artifact}}

    def on_UseArtifact(self, variables: dict[str, Any]) -> Any:
        given = variables["input"]
        self.used.append((given["runName"], given["artifactID"].partition(":")[2]))
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}

    def on_ArtifactByID(self, variables: dict[str, Any]) -> Any:
        name = variables["id"].partition(":")[2]
        project = {"id": "p", "internalId": "1", "name": "cathpc", "entity": {"name": "team"}}
        made = {
            "__typename": "Artifact", "id": variables["id"], "versionIndex": 0, "state": "COMMITTED", "size": 1,
            "artifactSequence": {"__typename": "ArtifactSequence", "name": name, "project": project},
            "artifactType": {"name": self.artifacts[name]["artifactTypeName"]}, "description": None, "metadata": "{}",
            "ttlDurationSeconds": 0, "ttlIsInherited": False, "tags": [], "historyStep": None, "commitHash": "c",
            "digest": self.artifacts[name]["digest"], "fileCount": 1, "createdAt": "2026-01-01T00:00:00Z",
            "updatedAt": None, "aliases": [],
        }  # fmt: skip
        return {"artifact": made}

    def stream(self, run: str, body: dict[str, Any]) -> None:
        """What a client appends to a run's files."""
        if chunk := body.get("files", {}).get("wandb-history.jsonl"):
            kept = self.history.setdefault(run, [])
            lines = [json.loads(line) for line in chunk["content"]]
            kept[chunk["offset"] :] = lines
        if chunk := body.get("files", {}).get("wandb-summary.json"):
            self.summary[run] = json.loads(chunk["content"][-1])
        if body.get("complete"):
            self.finished.add(run)


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed has left; anything else is a fault of this server."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server_state: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        state = self.server_state
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if state.mode == "hang":
            state.asked.append("hung")
            state.wait()
            return
        if state.mode == "error":
            state.asked.append("error")
            self._send(500, {"error": "the server is ill"})
            return
        if self.path.endswith("/graphql"):
            asked = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", asked["query"])
            operation = asked.get("operationName") or (found.group(1) if found else "?")
            state.asked.append(operation)
            self._send(200, {"data": state.graphql(operation, asked["query"], asked.get("variables") or {})})
        elif found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
            state.asked.append("file_stream")
            state.stream(found.group(1), json.loads(body))
            self._send(200, {"exitcode": None, "limits": {}})
        else:
            state.asked.append(self.path)
            self._send(200, {})

    def _send(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            pass
