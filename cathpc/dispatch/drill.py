"""A drill on the user's own cluster: a tiny training is disturbed on purpose, and must come back identical.

In: the config of a tiny experiment on a cluster. Out: one `Result` a fault. First an undisturbed run is made, from data
to export; then, for every fault, the same training once more on copies of its data, disturbed as soon as it has saved
something. Each takes a job or two of a few minutes on the training's nodes; queues may make it hours, and a drill that
is started again goes on with what it has.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from signal import SIGSEGV
from typing import Any

from cathpc import store
from cathpc.config import Config
from cathpc.dispatch import graph, jobs, slurm
from cathpc.dispatch.status import failure
from cathpc.errors import UserError
from cathpc.runs import Run
from cathpc.train import metrics

LAST = "export"
UNTIL = ("pull", "base", "reference", "pool", "refusal", "score", "select", "cards", "pack", "train", LAST)
POLL_S = 2.0
Note = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """How one drill ended."""

    fault: str
    came_back: bool
    identical: bool
    difference: float
    """Largest difference of a loss, in nats a token."""
    attempts: int
    again: int
    """Steps that were taken twice, because they had not been saved."""
    seconds: float
    remark: str = ""


def signal(config: Config, job: str, folder: Path) -> None:
    """What Slurm sends before a limit or a preemption."""
    slurm.ask(config.cluster, "scancel", "--signal=USR2", job)


def kill(config: Config, job: str, folder: Path) -> None:
    """All ranks die at once, without a word. (KILL would be read as the wish to cancel the job.)"""
    slurm.ask(config.cluster, "scancel", f"--signal={SIGSEGV.value}", job)


def torn(config: Config, job: str, folder: Path) -> None:
    """All ranks die, and the newest checkpoint turns out to be cut short."""
    kill(config, job, folder)
    newest = max(folder.glob("checkpoints/step-*/manifest.json"), key=lambda p: p.parent.name).parent
    file = max((p for p in newest.rglob("*.pt")), key=lambda p: p.stat().st_size)
    with open(file, "r+b") as stream:
        stream.truncate(file.stat().st_size // 2)


def lost(config: Config, job: str, folder: Path) -> None:
    """What Slurm does when a node is lost: everything is killed, and the job starts again from the queue."""
    slurm.ask(config.cluster, "scontrol", "requeue", job)


FAULTS: dict[str, Callable[[Config, str, Path], None]] = {"signal": signal, "kill": kill, "torn": torn, "lost": lost}


def drill(config: Config, home: Path, faults: list[str], *, wait_s: float, note: Note) -> list[Result]:
    """Run the drills of these names in `home`; raises `UserError` where the undisturbed run does not end well."""
    calm = _config(config, home / "calm")
    note("undisturbed run")
    _submit(calm, home / "calm")
    _wait(calm, LAST, wait_s, note)
    results = []
    for name in faults:
        disturbed = _config(config, home / name)
        _copy(calm, disturbed)
        note(name)
        results.append(_disturb(name, calm, disturbed, home / name, wait_s, note))
    return results


def _config(config: Config, home: Path) -> Config:
    paths = replace(config.paths, store=str(home / "store"), runs=str(home / "runs"))
    return replace(config, paths=paths)


def _submit(config: Config, home: Path) -> None:
    folder = home / "runs" / "drill"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    graph.submit(config, Run("drill", folder), stages=frozenset(UNTIL))


def _copy(calm: Config, disturbed: Config) -> None:
    """Give the disturbed run the finished stages before the training."""
    for name, place in store.places(calm).items():
        if name in UNTIL and name not in ("train", LAST):
            target = Path(disturbed.paths.store) / name / place.fingerprint
            if not target.exists():
                ignore = shutil.ignore_patterns(jobs.FOLDER, "claim-*.json")
                shutil.copytree(place.folder, target, symlinks=True, ignore=ignore)


def _disturb(name: str, calm: Config, config: Config, home: Path, wait_s: float, note: Note) -> Result:
    began = time.monotonic()
    place = store.places(config)["train"]
    fresh = place.fresh()
    _submit(config, home)
    if not fresh:
        record = jobs.read(place.folder)
        assert record is not None
        _until(lambda: _saved(place.folder) or place.fresh(), wait_s, "a checkpoint", note, config, "train")
        if place.fresh():
            return Result(name, False, False, 0.0, 1, 0, 0.0, "the training was over before it could be disturbed")
        FAULTS[name](config, record.last, place.folder)
        note(f"{name}: job {record.last} was disturbed")
    _wait(config, LAST, wait_s, note)
    return compare(name, store.places(calm), store.places(config), time.monotonic() - began)


def _saved(folder: Path) -> bool:
    return len(list(folder.glob("checkpoints/step-*/manifest.json"))) >= 2


def compare(name: str, calm: dict[str, store.Place], disturbed: dict[str, store.Place], seconds: float) -> Result:
    """Whether losses and exported weights of two finished runs are the same."""
    mine, theirs = (losses(p["train"].folder) for p in (disturbed, calm))
    weights = [
        sorted(store.file_hash(f) for f in (p[LAST].folder / "model").glob("*.safetensors")) for p in (disturbed, calm)
    ]
    same_steps = mine.keys() == theirs.keys()
    difference = max((abs(mine[s] - theirs[s]) for s in mine.keys() & theirs.keys()), default=float("inf"))
    rows = _rows(disturbed["train"].folder)
    attempts = max((int(row["attempt"]) for row in rows), default=0)
    taken = sum("loss" in row for row in rows)
    identical = same_steps and difference == 0 and weights[0] == weights[1] and bool(weights[0])
    return Result(name, attempts > 1, identical, difference, attempts, taken - len(mine), seconds)


def losses(folder: Path) -> dict[int, float]:
    """Loss by step, of the attempts that count."""
    return {row["global_step"]: row["loss"] for row in metrics.by_step(folder / metrics.METRICS) if "loss" in row}


def _rows(folder: Path) -> list[dict[str, Any]]:
    rows = []
    for line in (folder / metrics.METRICS).read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _wait(config: Config, stage: str, wait_s: float, note: Note) -> None:
    place = store.places(config)[stage]
    _until(place.fresh, wait_s, stage, note, config, stage)


def _until(ready: Callable[[], bool], wait_s: float, what: str, note: Note, config: Config, stage: str) -> None:
    """Wait; say why it waits whenever that changes; fail where no job is left that could bring it about."""
    deadline = time.monotonic() + wait_s
    said = ""
    places = store.places(config)
    while not ready():
        queue = slurm.queue(config.cluster)
        record = jobs.read(places[stage].folder)
        if record and record.last not in slurm.live(queue) and not ready():
            reasons = {n: failure(p.folder, jobs.read(p.folder)) for n, p in places.items()}
            why = "; ".join(f"{n}: {reason}" for n, reason in reasons.items() if reason)
            raise UserError(f"no job is left that could make {what}: {why or 'see the logs'}. Logs: {record.logs}")
        ids = {q.base for n in UNTIL if (r := jobs.read(places[n].folder)) for q in queue if q.base in r.ids}
        states = sorted(
            {f"{q.state.lower()} ({q.reason})" for q in queue if q.base in ids and q.reason != "Dependency"}
        )
        text = ", ".join(states)
        if text != said:
            note(f"  {text or 'between two jobs'}")
            said = text
        if time.monotonic() > deadline:
            raise UserError(f"waited {wait_s:.0f} s for {what}; the jobs go on. Start the drill again to go on with it")
        time.sleep(POLL_S)
