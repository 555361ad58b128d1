"""How far an experiment is: stages, jobs, shards, steps, as plain data for `status`.

In: the config; the store, what the dispatcher wrote there, and the queue. Out: one `StageStatus` a stage. Reads a few
small files a stage, the tail of one log, and asks squeue once, whatever the number of shards' records; the listing of
done-markers grows with the shards.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cathpc import lease, progress, shards, store
from cathpc.config import Config
from cathpc.dispatch import jobs, slurm
from cathpc.dispatch.config import ClusterKind
from cathpc.errors import CathpcError

REASONS = {
    "None": "",
    "Priority": "waits for its turn behind other jobs",
    "Resources": "next in line; waits for free nodes",
    "Dependency": "waits for another stage",
    "DependencyNeverSatisfied": "what it waits for has failed",
    "BeginTime": "was put back; starts again in a moment",
    "Cleaning": "its last attempt is still ending",
    "JobArrayTaskLimit": "as many of its tasks run as may at a time",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "PartitionNodeLimit": "asks for more nodes than the partition allows",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is closed",
    "ReqNodeNotAvail": "a node that it needs is down or reserved",
    "Reservation": "waits for a reservation to begin",
    "AssocGrpCpuLimit": "the account's share of CPUs is in use",
    "AssocGrpGRES": "the account's share of GPUs is in use",
    "AssocMaxJobsLimit": "as many jobs of the account run as may",
    "QOSMaxJobsPerUserLimit": "as many of your jobs run as the QOS allows",
    "QOSMaxGRESPerUser": "you hold as many GPUs as the QOS allows",
    "QOSMaxCpuPerUserLimit": "you hold as many CPUs as the QOS allows",
    "QOSGrpGRES": "all GPUs of the QOS are in use",
    "NodeDown": "its node is down",
    "BadConstraints": "no node that is left fulfils what it asks for",
    "InvalidAccount": "its account is not valid",
    "InvalidQOS": "its QOS is not valid",
    "JobHeldUser": "held",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "held by Slurm after nodes failed under it again and again",
    "launch failed requeued held": "held by Slurm after nodes failed under it again and again",
}
"""squeue's reasons in plain words; what is not here is shown as Slurm says it."""
HELD = ("JobHeld", "JobHold", "held")
TAIL_BYTES = 65_536


@dataclass
class StageStatus:
    """One stage, as it is now."""

    state: str
    """done, running, queued, held, failed, stale or waiting."""
    line: str = ""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    """id, state, reason, words, nodes, start, tasks."""
    shards: dict[str, int] = field(default_factory=dict)
    """done, failed, running."""
    failed_shards: list[int] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    """step, steps, loss, tokens_per_s, left_s, last_checkpoint, attempts."""
    requeues: int = 0
    message: str = ""
    """Why it failed, or what to do."""


def gather(config: Config) -> tuple[dict[str, StageStatus], str]:
    """The status of every stage, and what hindered the asking ('' for nothing)."""
    queue: list[slurm.QueueJob] = []
    hindrance = ""
    if config.cluster.kind is ClusterKind.slurm:
        try:
            queue = slurm.queue(config.cluster)
        except CathpcError as error:
            hindrance = f"the queue is not known: {error}"
    return {n: _stage(p, queue, known=not hindrance) for n, p in store.places(config).items()}, hindrance


def _stage(place: store.Place, queue: list[slurm.QueueJob], *, known: bool) -> StageStatus:
    record = jobs.read(place.folder)
    mine = [q for q in queue if record and record.has(id=q.base, name=q.name)]
    found = StageStatus("waiting", requeues=_requeues(place.folder, record))
    found.jobs = [
        {
            "id": q.id,
            "state": q.state,
            "reason": q.reason,
            "words": words(q.reason),
            "nodes": q.nodes,
            "start": q.start,
            "tasks": q.tasks,
        }
        for q in mine
    ]
    if place.stage.sharded:
        failed = shards.failed(place.folder)
        found.failed_shards = sorted(failed)
        found.shards = {
            "done": len(shards.marked(place.folder)),
            "failed": len(failed),
            "running": sum(_works(f, mine) for f in shards.running(place.folder).values()),
        }
    if place.stage.name == "train":
        found.training = training(place.folder)
    manifest = place.manifest()
    report = progress.read(place.folder)
    live = slurm.live(mine)
    if place.fresh():
        found.state, found.line = "done", str((manifest or {}).get("summary", {}).get("line", ""))
    elif held := [q for q in mine if any(word in q.reason for word in HELD)]:
        found.state = "held"
        ids = " ".join(sorted({q.base for q in held}))
        found.line = words(held[0].reason)
        found.message = (
            f"job {ids} is held ({held[0].reason}). Nothing is lost. Once the nodes are mended: scontrol release {ids} "
            "(where Slurm refuses it to you, send that line to your administrator)"
        )
    elif any(q.state in ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED") for q in mine):
        found.state = "running"
    elif live:
        found.state = "queued"
        found.line = next((j["words"] for j in found.jobs if j["words"]), "")
    elif not mine and (place.folder.is_dir() and lease.holder(place.folder, job_state=_gone(queue, known))):
        found.state = "running"
    elif why := failure(place.folder, record):
        found.state, found.line, found.message = "failed", why, why
    elif manifest:
        found.state = "stale"
    elif record and not known:
        found.state, found.line = "unknown", f"job {record.last}"
    if found.state == "running" and report:
        found.progress = report
        found.line = f"{report['done']:,.0f}/{report['total']:,.0f} {report['unit']}"
        if place.stage.sharded and found.shards["done"]:
            found.line = f"{found.shards['done']:,} shards done, {found.shards['running']:,} in work"
    return found


def words(reason: str) -> str:
    """squeue's reason in plain words: 'ReqNodeNotAvail, UnavailableNodes:gpu1' by what stands before the comma."""
    return REASONS.get(reason, REASONS.get(reason.split(",")[0], reason))


def _gone(queue: list[slurm.QueueJob], known: bool) -> lease.JobState:
    ids = {q.id for q in queue} | {q.base for q in queue}
    return lambda job: (job in ids or job.partition("_")[0] in ids) if known else None


def failure(stage_folder: Path, record: jobs.Record | None) -> str:
    """Why the stage's last jobs failed; '' where nothing says that they did."""
    rows = [r for r in jobs.attempts(stage_folder) if record and r["job"].partition("_")[0] in record.ids]
    finals = [r for r in rows if not r["again"] and r["code"] != 0]
    if finals:
        return str(finals[-1]["why"])
    errors = jobs.errors(stage_folder)
    return str(min(errors, key=lambda e: e["time"])["message"]) if errors else ""


def _works(facts: dict[str, Any], queue: list[slurm.QueueJob]) -> bool:
    """Whether the process that began a shard may still be at it: of a job in the queue, or of this machine."""
    job = f"{facts['job']}_{facts['task']}" if facts.get("task") else str(facts.get("job"))
    running = {q.id for q in queue if q.state in ("RUNNING", "COMPLETING")}
    return job in running or (facts.get("host") == socket.gethostname() and Path(f"/proc/{facts.get('pid')}").exists())


def _requeues(stage_folder: Path, record: jobs.Record | None) -> int:
    """How often jobs of the submission came back: of their own accord, or by Slurm's, which only the lease tells."""
    rows = [r for r in jobs.attempts(stage_folder) if record and r["job"].partition("_")[0] in record.ids]
    held = lease.holder(stage_folder) or {}
    mine = record is not None and str(held.get("job", "")).partition("_")[0] in record.ids
    return max(sum(bool(r["again"]) for r in rows), int(held["restart"]) if mine else 0)


def training(folder: Path) -> dict[str, Any]:
    """The newest figures of a training, from the tail of its metrics; {} where there are none."""
    steps = _tail(folder / "metrics.jsonl")
    trained = [row for row in steps if "loss" in row]
    saved = [p.parent.name for p in folder.glob("checkpoints/step-*/manifest.json")]
    found: dict[str, Any] = {"last_checkpoint": max(saved)} if saved else {}
    report = progress.read(folder)
    if trained:
        last = trained[-1]
        recent = [sum(v for k, v in r["seconds"].items() if k != "save") for r in trained[-10:]]
        found |= {
            "step": last["global_step"],
            "loss": last["loss"],
            "tokens_per_s": last["tokens_per_s"],
            **({"mfu": last["mfu"]} if "mfu" in last else {}),
            "attempts": last["attempt"],
        }
        if report and report["unit"] == "steps":
            found["steps"] = int(report["total"])
            found["left_s"] = max(0.0, (report["total"] - last["global_step"]) * sum(recent) / len(recent))
    return found


def _tail(path: Path) -> list[dict[str, Any]]:
    """The rows in the last `TAIL_BYTES` of a JSONL file."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "global_step" in row:
            rows.append(row)
    return rows
