"""A server of one model as a process of this machine: started, watched until it is ready, ended in all cases.

In: a folder of safetensors and the engine. Out: an `Endpoint` with its URL, its random key and the model's name. The
key reaches the server by its environment alone: it stands in no argument and no log. The server dies with this process,
however that ends (`cathpc.serving.guard`). Ready means: a process of ours listens on the port, says that it is healthy,
and names the model to who has the key.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cathpc.errors import TryAgainError, UserError
from cathpc.serving import gate
from cathpc.serving.config import Engine, ServingConfig
from cathpc.serving.gate import KEY, NAME
from cathpc.shards import whole

LOOPBACK = "127.0.0.1"
GATE = "cathpc_gate"
"""Name of the gate's module where cathpc is not installed."""
STARTS = 3
"""Ports that are tried, should another process take one between its choice and the server's start."""
END_S = 15.0
TAIL = 12
"""Lines of the log that an error shows."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers."""

    url: str
    """Base URL, with '/v1'."""
    model: str
    key: str = field(repr=False)


def engine(serving: ServingConfig) -> Engine:
    """The server to take where none is named: vLLM where it is installed."""
    return Engine.vllm if serving.environment else Engine.transformers


def vllm(serving: ServingConfig) -> Path:
    """The command `vllm`; raises `UserError` where its environment is not there."""
    command = Path(serving.environment).expanduser().absolute() / "bin" / "vllm"
    if not serving.environment or not os.access(command, os.X_OK):
        raise UserError(
            f"serving.environment={serving.environment!r}: there is no {command}. Build it where there is a "
            "network: slurm/vllm-env FOLDER; or take the engine transformers"
        )
    return command


class Server:
    """A running server; use it in a `with`, or call `end`."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        engine: Engine,
        serving: ServingConfig,
        log: Path,
        host: str = LOOPBACK,
        gpus: int = 1,
    ) -> None:
        """Start the server of the model in `folder` under `name` and return when it answers.

        `host` is what it listens on: the loopback, or '0.0.0.0' for other machines. The model is divided over `gpus`.
        Raises `UserError` where it cannot start (with the end of `log`), `TryAgainError` where it is not ready in
        `serving.start_s`.
        """
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = secrets.token_urlsafe(32)
        deadline = time.monotonic() + serving.start_s
        for last in range(STARTS, 0, -1):
            port = free_port(host)
            self._process = self._start(engine, _command(engine, folder, name, host, port, serving, gpus), name, key)
            try:
                self._wait(port, name, key, deadline, serving.start_s)
                break
            except _Taken:
                self.end()
                if last == 1:
                    raise TryAgainError(
                        f"{STARTS} ports were taken before the server could listen; see {log}"
                    ) from None
            except BaseException:
                self.end()
                raise
        address = LOOPBACK if host == LOOPBACK else socket.gethostname()
        self.endpoint = Endpoint(f"http://{address}:{port}/v1", name, key)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def fault(self) -> str:
        """How it ended, with the end of its log; '' while it runs."""
        code = self._process.poll()
        return "" if code is None else f"ended with code {code}. {self._log}:\n{self._tail()}"

    def wait(self) -> int:
        """Wait until the server ends by itself; its exit code."""
        return self._process.wait()

    def end(self) -> None:
        """End the server and all that it started; a second call does nothing."""
        group = self._process.pid
        for number, patience in ((signal.SIGTERM, END_S), (signal.SIGKILL, END_S)):
            try:
                os.killpg(group, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            if number == signal.SIGTERM and _members(group):
                continue
            break
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait()

    def _gate(self) -> Path:
        """A folder with the gate alone, for an environment that must see nothing else of cathpc's."""
        folder = self._log.parent / "gate"
        folder.mkdir(exist_ok=True, mode=0o700)
        with whole(folder / f"{GATE}.py") as file:
            file.write(Path(gate.__file__).read_bytes())
        return folder

    def _start(self, engine: Engine, command: list[str], name: str, key: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, KEY: key, NAME: name, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        if engine is Engine.vllm:
            environment |= {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
            environment |= {"PYTHONPATH": str(self._gate())}  # what cathpc itself needs is none of its business
        with open(self._log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            return subprocess.Popen(
                [sys.executable, "-m", "cathpc.serving.guard", *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )

    def _wait(self, port: int, name: str, key: str, deadline: float, patience: float) -> None:
        pause = 0.05
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                text = self._tail()
                if "address already in use" in text.lower():
                    raise _Taken
                raise UserError(
                    f"the server of {name} ended with code {code} before it was ready. {self._log}:\n{text}"
                )
            if _listens(self._process.pid, port) and healthy(port=port, key=key, model=name):
                if _get(LOOPBACK, port, "/version", "", 5.0) is not None:
                    raise UserError(f"the server of {name} answers without its key: this version of it cannot be used")
                return
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)
        raise TryAgainError(
            f"the server of {name} is not ready after {patience:g} s (serving.start_s). {self._log}:\n{self._tail()}"
        )

    def _tail(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-TAIL:])


class _Taken(Exception):
    """Another process has the port."""


def free_port(host: str = LOOPBACK) -> int:
    """A port on which nobody listens at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def healthy(*, port: int, key: str, model: str, host: str = LOOPBACK, timeout_s: float = 5.0) -> bool:
    """Whether what listens there is healthy and has the model, as who has the key is told."""
    if _get(host, port, "/health", "", timeout_s) is None:
        return False
    listed = _get(host, port, "/v1/models", key, timeout_s)
    try:
        return model in [entry["id"] for entry in json.loads(listed or b"{}")["data"]]
    except (ValueError, KeyError, TypeError):
        return False


def _get(host: str, port: int, path: str, key: str, timeout_s: float) -> bytes | None:
    """The body of a 200, else None; goes by no proxy."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
        answer = connection.getresponse()
        return answer.read() if answer.status == 200 else None
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _members(group: int) -> list[Any]:
    """The living processes of a process group."""
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


def _listens(group: int, port: int) -> bool:
    """Whether one of our own processes has the port: a stranger's must not be taken for the server."""
    import psutil

    for process in _members(group):
        try:
            if any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in process.net_connections("inet")):
                return True
        except psutil.Error:
            continue
    return False


def _command(
    engine: Engine, folder: Path, name: str, host: str, port: int, serving: ServingConfig, gpus: int
) -> list[str]:
    if engine is Engine.transformers:
        return [sys.executable, "-m", "cathpc.serving.transformers_server", str(folder), host, str(port)]
    own = ["--served-model-name", name, "--host", host, "--port", str(port), "--load-format", "safetensors"]
    split = ["--tensor-parallel-size", str(gpus)] if gpus > 1 else []
    return [str(vllm(serving)), "serve", str(folder), *own, "--middleware", f"{GATE}.Gate", *split, *serving.arguments]
