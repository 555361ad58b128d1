"""What is known of the model that a run serves: `serve.json` in the run's folder, private, for `chat` and `serve`.

In: an endpoint and the process or job behind it. Out: the same from any machine that sees the folder, whether it
answers, and its end. The file holds the key, so it is readable by its owner alone and is never printed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from cathpc import lease
from cathpc.errors import UserError
from cathpc.serving.server import Endpoint, healthy
from cathpc.store import write_json

FILE = "serve.json"
ANSWER_S = 3.0


@dataclass(frozen=True)
class Served:
    """One served model; without a URL it is a job that has not got so far."""

    model: str
    engine: str
    url: str = ""
    key: str = field(default="", repr=False)
    job: str = ""
    """Of Slurm; '' for a process of this or another machine."""
    process: lease.Owner = field(default_factory=dict)
    """What holds the server; {} while a job waits."""
    folder: str = ""
    """Of the model, absolute."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it answers."""
        return Endpoint(self.url, self.model, self.key)

    @property
    def holder(self) -> str:
        """What holds the server, in words."""
        return f"job {self.job}" if self.job else f"process {self.process.get('pid')} of {self.process.get('host')}"

    @property
    def answers(self) -> bool:
        """Whether it is healthy and has the model, as seen from this machine."""
        parts = urlsplit(self.url)
        if not parts.hostname or not parts.port:
            return False
        return healthy(host=parts.hostname, port=parts.port, key=self.key, model=self.model, timeout_s=ANSWER_S)


def here(model: str, engine: str, endpoint: Endpoint, job: str = "", folder: str = "") -> Served:
    """The record of an endpoint whose server this process holds."""
    return Served(model, engine, endpoint.url, endpoint.key, job, lease.owner(), folder)


def write(folder: Path, served: Served) -> None:
    """Put it into the run's folder, for its owner alone."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    before = os.umask(0o077)
    try:
        write_json(folder / FILE, asdict(served))
    finally:
        os.umask(before)


def read(folder: Path) -> Served | None:
    """What the run's folder says, None where it says nothing.

    Raises `UserError` where another user may have written it: its URL would be sent the conversations.
    """
    path = folder / FILE
    try:
        with open(path, encoding="utf-8") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise UserError(f"{path} belongs to another user or is open to others; remove it and serve again")
            return Served(**json.load(file))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError):
        raise UserError(f"{path} is not what `serve` writes; remove it and serve again") from None


def forget(folder: Path, served: Served | None = None) -> None:
    """Remove the file, where `served` is given only if it is the one that it speaks of."""
    if served is None or read(folder) == served:
        (folder / FILE).unlink(missing_ok=True)


def runs(served: Served) -> bool | None:
    """Whether the process of a local server runs; None where that is another machine's to say."""
    return lease.alive(served.process) if served.process.get("host") == socket.gethostname() else None


def end(served: Served) -> None:
    """End a local server and wait until it has gone. Raises `UserError` on another machine than its own."""
    if runs(served) is None:
        raise UserError(f"{served.model} is served by {served.holder}: stop it there")
    deadline = time.monotonic() + 60
    if runs(served):
        os.kill(served.process["pid"], signal.SIGTERM)
    while runs(served) and time.monotonic() < deadline:
        time.sleep(0.1)
