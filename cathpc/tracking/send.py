"""The process that talks to W&B: `python -m cathpc.tracking.send`, beside a training or after a stage.

In: one line of JSON on standard input, the `Spec`; the input stays open as long as whoever started this process wants a
training to be followed. Out: a line of JSON a stage, and a note in its folder. It may be killed at any time, hang or
fail: nobody waits for it for long, and what it did not send is sent by the next one, which asks the server what it has.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cathpc import lease
from cathpc.store import read_json, write_json
from cathpc.tracking import mode
from cathpc.tracking.client import Run, drop, private
from cathpc.tracking.config import TrackerConfig
from cathpc.tracking.described import Described, describe
from cathpc.tracking.rows import AXIS, Tail
from cathpc.tracking.shown import shown

TIMEOUT_S = 30.0
"""For the server's answer when a run is opened; twice as long for the rest when it is closed."""
RETRY_S = 120.0
"""Between two tries to open the run of a training that goes on."""


@dataclass(frozen=True)
class Spec:
    """What to send."""

    tracker: dict[str, Any]
    """project, entity, every_s."""
    stages: list[dict[str, Any]]
    """As `Described.plain` gives them."""
    follow: bool = False
    """Follow the one stage, a training, until the input ends."""
    offline_below: str = ""
    """Write offline runs below this folder, whose older ones are removed first; '' sends."""
    gone: list[str] | None = None
    """Jobs that are known to have ended: what they held may be taken."""
    timeout_s: float = TIMEOUT_S


_parent = os.getppid()


def main() -> int:
    """Do what the spec on standard input says; 0 where all of it could be sent."""
    for number in (signal.SIGTERM, signal.SIGUSR2):  # they are meant for the training; the end of the input is for us
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    os.nice(5)
    spec = Spec(**json.loads(sys.stdin.readline()))
    below = Path(spec.offline_below) if spec.offline_below else None
    if below:
        shutil.rmtree(below / "wandb", ignore_errors=True)
    with private(below / "wandb" / "data" if below else None):
        if spec.follow:
            return follow(spec)
        failed = 0
        for stage in spec.stages:
            result = send(spec, stage, below)
            failed += "failure" in result
            print(json.dumps(result), flush=True)
        return 1 if failed else 0


def send(spec: Spec, stage: dict[str, Any], below: Path | None) -> dict[str, Any]:
    """Send one stage, or write it below a folder: {"stage", "steps", "url"}, "failure" where something went wrong.

    What was noted as sent whole is not sent again, and costs no word with the server.
    """
    described = _described(stage)
    told: dict[str, Any] = {"stage": described.stage, "id": described.id, "steps": 0}
    note = read_note(described, _tracker(spec))
    if below is None and note.get("complete") and note.get("digest") == _digest(described):
        return told | {"url": note["url"], "up_to_date": True}
    try:
        with _alone(described, spec.gone or []) as mine:
            if not mine:
                return told | {"url": note.get("url", ""), "followed": True}
            # Once more where steps were sent: the server then says whether it has them.
            for _ in range(2 if below is None and described.stage == "train" else 1):
                sent, url = _once(described, spec, below)
                told |= {"steps": told["steps"] + sent, "url": url}
                if not sent:
                    break
    except Exception as error:  # third-party code over a network: any failure may come, none may end the others
        told["failure"] = f"{type(error).__name__}: {_first_line(error)}"
        if below is None:
            _note(described, spec, failure=told["failure"])
    return told


def _once(described: Described, spec: Spec, below: Path | None) -> tuple[int, str]:
    """One opening of the run: all that it lacks; how many steps that were, and the address of the run."""
    try:
        run = Run(described, _tracker(spec), offline_below=below, timeout_s=spec.timeout_s)
        tail = Tail(described.folder / "metrics.jsonl")
        tail.read()
        rows = tail.final(complete=described.manifest is not None)
        sent = run.steps(rows)
        if described.manifest:
            _rest(run, described)
        run.close()
    except Exception:
        drop()
        raise
    if below is None:
        step = {"step": rows[-1][AXIS]} if rows else {}
        whole = described.manifest is not None and not (sent and described.stage == "train")
        _note(described, spec, url=run.url, **step, complete=whole, digest=_digest(described))
    return sent, run.url


def _rest(run: Run, described: Described) -> None:
    """What a finished stage has beside steps."""
    run.show(shown(described.stage, described.folder, described.manifest or {}))
    run.lineage(described)


def follow(spec: Spec) -> int:
    """Send a training's steps as they come, until the input ends; then what is left, if the training is complete."""
    (stage,) = spec.stages
    tracker = _tracker(spec)
    described = _described(stage)
    tail = Tail(described.folder / "metrics.jsonl")
    waiting: list[dict[str, Any]] = []
    run: Run | None = None
    not_before = 0.0
    with _alone(described, spec.gone or []) as mine:
        if not mine:
            return 1
        while True:
            over = _ended(tracker.every_s)
            described = _described(stage)
            tail.read()
            waiting += tail.final(complete=described.manifest is not None)
            try:
                if run is None and (over or time.monotonic() >= not_before) and (waiting or described.manifest):
                    run = Run(described, tracker, offline_below=None, timeout_s=spec.timeout_s)
                if run is not None:
                    run.steps(waiting)
                    if waiting:
                        _note(described, spec, url=run.url, step=waiting[-1][AXIS], complete=False)
                    waiting = []
                    if over:
                        if described.manifest:
                            _rest(run, described)
                        run.close()
            except Exception as error:  # as in `send`; a later try opens the run anew and asks what it has
                drop()
                run, tail, waiting = None, Tail(tail.path), []
                not_before = time.monotonic() + RETRY_S
                _note(described, spec, failure=f"{type(error).__name__}: {_first_line(error)}")
            if over:
                return 0 if run is not None else 1


def _ended(seconds: float) -> bool:
    """Wait; whether the input ended meanwhile, or who started this process is gone."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) or os.getppid() != _parent


def _described(stage: dict[str, Any]) -> Described:
    return describe(stage["experiment"], stage["stage"], Path(stage["folder"]), stage["config"])


def _tracker(spec: Spec) -> TrackerConfig:
    return TrackerConfig(**spec.tracker)


def _digest(described: Described) -> str:
    return str(described.manifest["digest"]) if described.manifest else ""


@contextmanager
def _alone(described: Described, gone: list[str]) -> Iterator[bool]:
    """Whether this process alone sends the stage for the length of a block."""
    folder = described.note.parent
    folder.mkdir(mode=0o700, exist_ok=True)
    with lease.held(folder, job_state=lambda job: False if job in gone else None) as mine:
        yield mine is not None


def read_note(described: Described, tracker: TrackerConfig) -> dict[str, Any]:
    """What was noted as sent to this server and project; {} where nothing was, or where it is another run by now."""
    found = read_json(described.note)
    known = isinstance(found, dict) and all(found.get(k) == v for k, v in _where(described, tracker).items())
    return found if known else {}


def _where(described: Described, tracker: TrackerConfig) -> dict[str, str]:
    return {
        "id": described.id,
        "server": mode.server(),
        "project": tracker.project,
        "entity": tracker.entity,
    }


def _note(described: Described, spec: Spec, **facts: Any) -> None:
    tracker = _tracker(spec)
    before = {key: value for key, value in read_note(described, tracker).items() if key != "failure"}
    value = {**before, **_where(described, tracker), "time": time.time(), **facts}
    try:
        write_json(described.note, value)
    except OSError:  # the server knows better anyway
        pass


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0][:200]


def line(spec: Spec) -> bytes:
    """The spec as this process reads it."""
    return json.dumps(asdict(spec)).encode() + b"\n"


if __name__ == "__main__":
    sys.exit(main())
