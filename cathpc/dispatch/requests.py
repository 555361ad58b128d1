"""What each stage asks of Slurm: stages and config in, `Request`s out. Nothing is submitted here and nobody is asked.

A stage is one job; a sharded one is an array of fixed width and a small last job that puts the shards together, so that
neither the number of shards nor a shard that fails decides over the graph. Arrays wider than MaxArraySize are split.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cathpc.cards.config import WriterKind
from cathpc.config import Config, as_plain
from cathpc.data import lock
from cathpc.dispatch import jobs
from cathpc.dispatch.config import JobConfig, Requeue
from cathpc.dispatch.script import Request
from cathpc.models.shape import parameters
from cathpc.pipeline import Place, Stage
from cathpc.progress import duration
from cathpc.store import Place as Folder
from cathpc.train import estimate

COMMENT = "cathpc"
WIDTH = 16
"""Tasks of an array that the config says nothing of."""


@dataclass(frozen=True)
class Shape:
    """Nodes, tasks and limits of a stage's job."""

    partition: str
    timeout_min: int
    nodes: int
    tasks_per_node: int
    cpus: int
    gpus: int
    mem_gb: float


def shape(stage: Stage, config: Config) -> Shape:
    """What the stage's job takes: its own entry in `cluster.stages` first, then its kind's."""
    cluster, train = config.cluster, config.train
    own = cluster.stages.get(stage.name, JobConfig())
    weights = _weights(stage, config)
    fitting = max(1, math.ceil(weights / (cluster.gpu_memory_gb * 1e9))) if cluster.gpu_memory_gb else 1
    gpus = {Place.ranks: train.ranks_per_node, Place.accelerator: fitting}.get(stage.place, 0)
    gpus = own.gpus or min(gpus, cluster.gpus_per_node)
    asks = stage.name == "cards" and bool(asked_keys(config))
    if asks or (stage.name == "cards" and not config.cards.writes):
        gpus = 0  # nothing is written by a model of the job's own
    partition = cluster.partition if gpus or stage.place is Place.ranks else cluster.cpu_partition
    if stage.place is Place.network or asks:
        partition = cluster.network_partition or cluster.cpu_partition  # without one only what needs no network runs
    if stage.place is Place.ranks:
        return Shape(
            own.partition or partition,
            own.timeout_min or cluster.timeout_min,
            train.nodes,
            train.ranks_per_node,
            own.cpus or cluster.cpus_per_rank,
            gpus,
            own.mem_gb or cluster.mem_gb,
        )
    return Shape(
        own.partition or partition,
        own.timeout_min or cluster.short_timeout_min,
        1,
        1,
        own.cpus or max(1, int(cluster.cpus * stage.share)),
        gpus,
        own.mem_gb or max(cluster.cpu_mem_gb, float(math.ceil(weights / 1e9))),
    )


def asked_keys(config: Config) -> tuple[str, ...]:
    """The variables with keys that the cards' job needs: that of an endpoint elsewhere."""
    cards = config.cards
    elsewhere = cards.writer is WriterKind.openai and cards.endpoint.serve is None
    return (cards.endpoint.key_env,) if elsewhere else ()


def _weights(stage: Stage, config: Config) -> float:
    """Bytes of the model that the stage holds in bfloat16, and 15% for its activations; 0 where that is not known."""
    model = config.model
    asks = stage.name in ("evaluate", "benchmarks")
    return 1.15 * 2 * parameters(model.shape) if asks and model.shape.of == model.base else 0.0


def words(stage: Stage, config: Config, width: int | None = None) -> str:
    """What the stage's job asks for, in a few words; `width` of its array where it is another than the config's."""
    took = shape(stage, config)
    if stage.sharded and width != 0:
        size = f"{width or config.cluster.arrays.get(stage.name, WIDTH)} tasks"
    elif took.nodes * took.tasks_per_node > 1:
        size = f"{took.nodes} x {took.tasks_per_node} ranks"
    else:
        size = f"{took.cpus} CPU{'s' * (took.cpus > 1)}"
    gpus = f", {took.gpus} GPU{'s' * (took.gpus > 1)} a node" if took.gpus else ""
    return f"{size}{gpus} on {took.partition or 'the default partition'}, {duration(took.timeout_min * 60)}"


def lead_s(folder: Path, config: Config, stage: Stage) -> int:
    """Seconds of warning before the limit: what the config says, or longer where a measured run needs it.

    By the longest save and the longest step (with an evaluation's batch inside one), see `estimate.lead_seconds`.
    """
    asked = config.cluster.lead_s
    if stage.place is not Place.ranks:
        return min(asked, 60)
    save = step = 0.0
    try:
        with open(folder / "metrics.jsonl", encoding="utf-8") as file:
            for line in file:
                try:
                    seconds = json.loads(line).get("seconds", {})
                except ValueError:
                    continue
                save = max(save, seconds.get("save", 0.0))
                step = max(step, sum(seconds.get(k, 0.0) for k in ("data", "forward", "backward", "step")))
    except OSError:
        return asked
    return max(asked, estimate.lead_seconds(save, step)) if save else asked


@dataclass(frozen=True)
class Planned:
    """A job of a stage and what it is called in the record; `after` refers to jobs of the same stage by number."""

    job: jobs.Submitted
    request: Request
    afterok: bool
    """Whether it waits for the stage's inputs."""
    afterany: tuple[int, ...] = ()


def plan(
    place: Folder, config: Config, record: jobs.Record, *, shards: list[int] | None, max_array: int, logs: Path
) -> list[Planned]:
    """The jobs that make the stage, in the order in which they are submitted; the last one ends the stage.

    `shards`: those that are missing, where that is known; `record` gives the names.
    """
    stage, cluster = place.stage, config.cluster
    segments = cluster.segments if stage.place is Place.ranks else min(2, cluster.segments)
    rounds = segments if cluster.requeue is Requeue.chain else 1
    if not stage.sharded:
        planned: list[Planned] = []
        for number in range(rounds):
            job = jobs.Submitted(_name(place, record, f"s{number}"), "stage")
            request = _request(place, config, record, job, logs, shards=None)
            planned.append(Planned(job, request, afterok=not number, afterany=(number - 1,) if number else ()))
        return planned
    width = min(cluster.arrays.get(stage.name, WIDTH), len(shards) if shards is not None else 10**9)
    planned = []
    for number in range(rounds if width else 0):
        before = tuple(range(len(planned)))
        for first in range(0, width, max_array):
            job = jobs.Submitted(
                _name(place, record, f"w{number}.{first}"), "work", width=min(max_array, width - first), first=first
            )
            request = _request(place, config, record, job, logs, shards=shards, total=width)
            planned.append(Planned(job, request, afterok=not number, afterany=before))
    job = jobs.Submitted(_name(place, record, "f"), "finish")
    request = _request(place, config, record, job, logs, shards=None)
    small = replace(request, gpus_per_node=0, cpus_per_task=max(1, min(2, request.cpus_per_task)))
    if cluster.cpu_partition and not cluster.stages.get(stage.name, JobConfig()).partition:
        small = replace(small, partition=cluster.cpu_partition)
    return [*planned, Planned(job, small, afterok=True, afterany=tuple(range(len(planned))))]


def _name(place: Folder, record: jobs.Record, kind: str) -> str:
    """A name that tells a job of this submission from all others, so that it is found though its id was lost."""
    return f"{COMMENT}.{place.stage.name}.{place.fingerprint}.{record.nonce}.{kind}"


def mounts(config: Config) -> tuple[Path, ...]:
    """Folders that a container must see: the run's own, where data and models of the user's own lie, the lock file's,
    and scratch."""
    own = [name for name in (config.model.base, config.gpt.base, config.refusal.base, *config.cards.models) if name]
    folders = [config.paths.store, config.paths.runs, config.paths.cache, os.getcwd(), config.dataset.root]
    folders += [config.serving.environment, str(lock.lock_file().parent)]
    folders += [name for name in own if ":" not in name and name[0] in "./~"]
    folders.append(_fixed(config.cluster.scratch))
    return tuple(dict.fromkeys(Path(folder).expanduser().absolute() for folder in folders if folder))


def _fixed(path: str) -> str:
    """The folder of `path` that is known before a job has started: what lies above its first variable."""
    head, variable, _ = path.partition("$")
    return head.rpartition("/")[0] if variable else head


def _request(
    place: Folder,
    config: Config,
    record: jobs.Record,
    job: jobs.Submitted,
    logs: Path,
    *,
    shards: list[int] | None,
    total: int = 1,
) -> Request:
    stage, cluster, took = place.stage, config.cluster, shape(place.stage, config)
    lead = lead_s(place.folder, config, stage)
    ranks = took.nodes * took.tasks_per_node
    spec: dict[str, Any] = {
        "stage": stage.name,
        "kind": job.kind,
        "config": as_plain(config),
        "folder": str(place.folder),
        "threads": took.cpus,
        "first": job.first,
        "width": total,
        "shards": shards,
        "prefetch": stage.name == "base",
        "timeout_min": took.timeout_min,
        "lead_s": lead,
        "max_crashes": cluster.max_crashes,
        "requeue": cluster.requeue.name,
        "requeue_wait_s": cluster.requeue_wait_s,
        "gpus_per_node": took.gpus,
        "pretended_gpus": cluster.pretended_gpus,
        "health_command": cluster.health_command,
        "logs": str(logs),
    }
    path = place.folder / jobs.FOLDER / f"spec-{record.nonce}-{job.name.partition(record.nonce)[2].strip('.')}.json"
    return Request(
        name=job.name,
        stage=stage.name,
        spec=path,
        content=spec,
        logs=logs,
        partition=took.partition,
        timeout_min=took.timeout_min,
        nodes=took.nodes,
        tasks_per_node=took.tasks_per_node,
        cpus_per_task=took.cpus,
        gpus_per_node=took.gpus,
        mem_gb=took.mem_gb,
        width=job.width or None,
        place=stage.place.name,
        lead_s=lead,
        mounts=mounts(config),
        comment=record.run,
        keys=asked_keys(config) if stage.name == "cards" else (),
        exclusive=cluster.exclusive and stage.place is Place.ranks,
        health=cluster.health_check and stage.place is Place.ranks and ranks > 1,
    )
