"""A small stand-in for the Hugging Face Hub on loopback: what `pin`, `load_dataset` and `snapshot_download` ask.

Repositories are plain dicts of files; each has one commit. Gated ones want the token 'hf_good'.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_good"


@dataclass
class Repo:
    """One repository; `card` is the metadata of its README."""

    files: dict[str, bytes] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    gated: bool | str = False

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


class Hub:
    """A running server: `url`, its repositories by (kind, id), and the requests that it saw."""

    def __init__(self, repos: dict[tuple[str, str], Repo]) -> None:
        self.repos = repos
        self.requests: list[str] = []
        self.status: int | None = None
        """Answer everything with this status."""
        hub = self

        class Handler(_Handler):
            owner = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@contextmanager
def serve(repos: dict[tuple[str, str], Repo]) -> Iterator[Hub]:
    """Serve `repos` ({('dataset' | 'model', id): Repo}) while the block runs."""
    hub = Hub(repos)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _answer(self, body: bytes = b"") -> None:
        path = unquote(urlsplit(self.path).path)
        self.owner.requests.append(f"{self.command} {path}")
        if self.owner.status:
            return self._send(self.owner.status, b"{}")
        found = re.fullmatch(
            r"/api/(dataset|model)s/([^/]+/[^/]+)(?:/(revision|tree|paths-info|auth-check)(?:/(.*))?)?", path
        )
        if found:
            kind, name, verb, rest = found.groups()
            return self._api(kind, name, verb or "revision", rest or "main", body)
        found = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if found:
            return self._file("dataset" if found[1] else "model", *found.groups()[1:])
        return self._send(404, b"{}")

    def _repo(self, kind: str, name: str) -> Repo | None:
        repo = self.owner.repos.get((kind, name))
        if repo is None:
            self._send(401, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        return repo

    def _allowed(self, repo: Repo) -> bool:
        return not repo.gated or self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _api(self, kind: str, name: str, verb: str, rest: str, body: bytes) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        if verb == "auth-check":
            if self._allowed(repo):
                return self._json({})
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        revision, _, folder = rest.partition("/")
        if revision not in (repo.commit, "main"):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        entries = [
            {"type": "file", "path": p, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
            for p, b in repo.files.items()
        ]
        if verb == "tree":
            start = f"{folder}/" if folder else ""
            inside = [e for e in entries if str(e["path"]).startswith(start)]
            if folder and not inside:
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            if "recursive=True" not in self.path and "recursive=true" not in self.path:
                deeper = {
                    start + str(e["path"])[len(start) :].split("/")[0]
                    for e in inside
                    if "/" in str(e["path"])[len(start) :]
                }
                inside = [e for e in inside if "/" not in str(e["path"])[len(start) :]]
                inside += [{"type": "directory", "path": d, "size": 0, "oid": "0"} for d in sorted(deeper)]
            return self._json(inside)
        if verb == "paths-info":
            wanted = json.loads(body)["paths"]
            found: list[dict[str, Any]] = [e for e in entries if e["path"] in wanted]
            folders = {w for w in wanted if any(p.startswith(f"{w}/") for p in repo.files)}
            return self._json(found + [{"type": "directory", "path": f, "oid": "0"} for f in sorted(folders)])
        self._json(
            {
                "id": name,
                "sha": repo.commit,
                "private": False,
                "gated": repo.gated,
                "tags": [],
                "cardData": repo.card,
                "siblings": [{"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]} for e in entries],
            }
        )

    def _file(self, kind: str, name: str, revision: str, path: str) -> None:
        repo = self._repo(kind, name)
        if repo is None:
            return
        if not self._allowed(repo):
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if revision not in (repo.commit, "main"):
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if path not in repo.files:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
        content = repo.files[path]
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": repo.commit,
            "Accept-Ranges": "bytes",
        }
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span:
            start, end = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            return self._send(206, content[start : end + 1], headers)
        self._send(200, content, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
