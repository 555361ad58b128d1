"""A served model as a Slurm job: `python -m cathpc.serving.job SPEC`.

In: the JSON file that the act `serve` wrote. Out: a server that other machines of the cluster reach, and its record in
the run's folder, until the job is cancelled or its time is over. A preempted job starts again, with another key.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from cathpc.errors import CathpcError
from cathpc.serving import served
from cathpc.serving.config import Engine, ServingConfig
from cathpc.serving.server import Server

EVERYWHERE = "0.0.0.0"
"""The login node must reach it; who has no key is refused."""


def hold(
    model: Path, name: str, engine: Engine, serving: ServingConfig, run: Path, *, host: str, gpus: int, job: str = ""
) -> int:
    """Serve `model` until the server ends or this process is told to stop; the record is there while it answers."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, _stop)
    log = run / "logs" / "serve" / f"server-{job or os.getpid()}.log"
    try:
        with Server(model, name, engine=engine, serving=serving, log=log, host=host, gpus=gpus) as server:
            record = served.here(name, engine.name, server.endpoint, job, str(model))
            try:
                served.write(run, record)
                print(f"{name} is served at {server.endpoint.url} by {engine.name}", flush=True)
                code = server.wait()
                print(f"cathpc: the server ended with code {code}; its log: {log}", file=sys.stderr, flush=True)
                return 1
            finally:
                if not job:
                    served.forget(run, record)
                elif served.read(run) == record:  # preempted, it comes back; stopped, the record is gone already
                    served.write(run, served.Served(name, engine.name, job=job, folder=str(model)))
    except _Stopped:
        return 0


class _Stopped(BaseException):
    """Somebody wants the server to end."""


def _stop(number: int, frame: FrameType | None) -> None:
    for again in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(again, signal.SIG_IGN)  # once is enough; the end must not be cut short
    raise _Stopped


def main(argv: list[str]) -> int:
    """Serve what the spec says."""
    os.umask(0o077)
    spec = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    return hold(
        Path(spec["model"]),
        spec["name"],
        Engine[spec["engine"]],
        ServingConfig(**spec["serving"]),
        Path(spec["run"]),
        host=EVERYWHERE,
        gpus=int(spec["gpus"]),
        job=os.environ.get("SLURM_JOB_ID", ""),
    )


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except CathpcError as error:
        print(f"cathpc: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
