"""`doctor` on the nodes: one tiny job a partition, and what it found.

A job is made by the same machinery as a run's (environment, modules, setup lines, container), so that what is checked
is what a run gets; only the trap that brings a job back is left out. The waiting is the caller's: `wait` returns when
all have answered, when a job can never start, or when the time is over, and cancels what is left.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cathpc.config import Config
from cathpc.dispatch import script, slurm
from cathpc.dispatch.config import ClusterConfig
from cathpc.dispatch.doctor_check import Check, fail, warn, well
from cathpc.dispatch.doctor_machine import folders
from cathpc.dispatch.doctor_site import Need, Site, default_partition
from cathpc.dispatch.requests import mounts
from cathpc.errors import TryAgainError

TIMEOUT_MIN = 10
RUNNING_S = 300.0
"""A job that has started is given this long, whatever `--wait` says of the queue."""
POLL_S = 1.0
LAG_S = 10.0
"""How long a file of a node may take to be seen here, once its job has ended."""
NEVER = frozenset(
    {"PartitionTimeLimit", "PartitionNodeLimit", "PartitionDown", "PartitionInactive", "BadConstraints"}
    | {"InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed", "JobHeldAdmin", "JobHeldUser"}
)
"""Reasons for which a job waits for ever."""


@dataclass(frozen=True)
class Target:
    """One partition and what is looked at there."""

    partition: str
    nodes: int
    gpus: int
    network: bool


@dataclass
class Visit:
    """A job on a target, from its submission to its end."""

    target: Target
    folder: Path
    job: str = ""
    state: str = ""
    reason: str = ""
    start: str = ""
    after: float = 0.0
    """The last moment at which it had not started."""
    until: float = 0.0
    """When its answers were seen."""
    nodes: list[dict[str, Any]] = field(default_factory=list)
    fault: str = ""


def targets(needs: Iterable[Need], site: Site, *, all_gpus: bool) -> list[Target]:
    """One target a partition that exists; of the nodes two where a job takes several, of the GPUs one or all."""
    found: dict[str, Target] = {}
    for need in needs:
        name = need.partition or default_partition(site.partitions)
        if name not in site.partitions:
            continue
        gpus = need.gpus if all_gpus else min(1, need.gpus)
        old = found.get(name, Target(name, 1, 0, False))
        found[name] = Target(name, max(old.nodes, min(2, need.nodes)), max(old.gpus, gpus), old.network or need.network)
    return list(found.values())


@contextmanager
def probes(config: Config, nonce: str) -> Iterator[dict[str, str]]:
    """A small file in each folder of a run, which the nodes read and answer; all go away at the end."""
    made = {}
    try:
        for key, folder in folders(config.paths).items():
            path = folder / f".doctor-{nonce}"
            try:
                path.write_text(nonce, encoding="utf-8")
                made[key] = str(path)
            except OSError:  # the checks of this machine say so
                continue
        yield made
    finally:
        for name in made.values():
            for path in [Path(name), *Path(name).parent.glob(f".doctor-{nonce}.*")]:
                path.unlink(missing_ok=True)


def answered(probe: str, nonce: str, node: dict[str, Any]) -> bool:
    """Whether the answer that a node wrote beside a probe is seen here."""
    try:
        os.listdir(Path(probe).parent)  # a network file system then looks anew
        return Path(f"{probe}.{node['node']}.{node['rank']}").read_text(encoding="utf-8") == nonce
    except OSError:
        return False


def submit(target: Target, config: Config, folder: Path, spec: dict[str, Any]) -> Visit:
    """Submit the job of a target; its spec, its log and its answers lie in `folder`."""
    cluster = config.cluster
    folder.mkdir(mode=0o700)
    path = folder / "spec.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    request = script.Request(
        name="cathpc-doctor",
        stage="doctor",
        spec=path,
        content=spec,
        logs=folder,
        partition=target.partition,
        timeout_min=TIMEOUT_MIN,
        nodes=target.nodes,
        cpus_per_task=max(1, min(2, cluster.cpus)),
        gpus_per_node=target.gpus,
        mem_gb=min(4.0, cluster.cpu_mem_gb),
        place="network" if target.network else "cpu",
        lead_s=10,
        mounts=mounts(config),
    )
    visit = Visit(target, folder, after=time.time())
    executor = script.executor(request, cluster)
    executor.parameters["setup"] = [*environment(executor.parameters["setup"]), outside(folder)]
    extra = executor.parameters["additional_parameters"]
    executor.parameters["additional_parameters"] = {k: v for k, v in extra.items() if k != "requeue"} | {
        "no-requeue": True
    }
    command = f"{script.python(request, cluster)} -m cathpc.dispatch.doctor_node {shlex.quote(str(path))}"
    try:
        visit.job = executor.send(command)
    except TryAgainError as error:
        visit.fault = str(error)
    return visit


def environment(setup: list[str]) -> list[str]:
    """The lines of a job's setup without the trap that brings it back."""
    end = next((n for n, line in enumerate(setup) if line.startswith("cathpc_end()")), len(setup))
    return setup[:end]


def outside(folder: Path) -> str:
    """A shell line that writes which of Slurm's commands the node has, outside of any container."""
    words = "scontrol squeue sacct apptainer"
    return f"for word in {words}; do command -v $word; done > {shlex.quote(str(folder / 'commands.txt'))}"


def wait(cluster: ClusterConfig, visits: list[Visit], seconds: float, say: Callable[[str], None]) -> None:
    """Follow the jobs until all have answered; fills the visits. Cancels what is left, also when it is interrupted."""
    began = time.monotonic()
    ended: dict[str, float] = {}
    said: dict[str, str] = {}
    open_ = [v for v in visits if v.job]
    try:
        while open_:
            now, waited = time.time(), time.monotonic() - began
            try:
                known = {j.base: j for j in slurm.queue(cluster)}
            except TryAgainError as error:
                known = None
                say(f"the queue does not answer: {error}")
            for visit in list(open_):
                visit.nodes = _answers(visit.folder)
                if len(visit.nodes) == visit.target.nodes:
                    visit.until = time.time()
                    open_.remove(visit)
                    continue
                if known is None:
                    continue
                job = known.get(visit.job)
                alive = job is not None and job.state not in slurm.TERMINAL
                if job is not None:
                    visit.state, visit.reason, visit.start = job.state, job.reason, job.start
                    if job.state == "PENDING":
                        visit.after = now
                waiting = visit.state == "PENDING" and visit.reason != "None"
                text = f"{visit.state}: {visit.reason}" if waiting else visit.state
                if alive and said.get(visit.job) != text:
                    said[visit.job] = text
                    say(f"job {visit.job} on {visit.target.partition}: {text}")
                if not alive:
                    gone = time.monotonic() - ended.setdefault(visit.job, time.monotonic()) > LAG_S
                else:
                    limit = seconds if visit.state == "PENDING" else max(seconds, RUNNING_S)
                    gone = waited > limit or visit.reason in NEVER
                if gone:
                    visit.fault = (
                        "ended" if not alive else "never" if visit.reason in NEVER else "late"
                    ) or visit.fault
                    open_.remove(visit)
                    if alive:
                        _cancel(cluster, [visit], say)
            if open_:
                time.sleep(POLL_S)
    finally:
        _cancel(cluster, open_, say)


def _cancel(cluster: ClusterConfig, visits: list[Visit], say: Callable[[str], None]) -> None:
    ids = [visit.job for visit in visits]
    try:
        slurm.cancel(cluster, ids)
    except TryAgainError as error:  # they end by themselves after TIMEOUT_MIN
        say(f"not cancelled: scancel {' '.join(ids)} ({error})")


def _answers(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(Path(folder, name) for name in os.listdir(folder) if name.startswith("node-")):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError):
            continue
    return found


def outcome(visit: Visit, cluster: ClusterConfig) -> Check:
    """How the job itself went."""
    label, where = "job", f"{visit.target.nodes} node(s), {visit.target.gpus} GPU(s) each"
    if visit.job and not visit.fault:
        took = visit.until - visit.after
        return well(label, f"{visit.job} on {', '.join(n['node'] for n in visit.nodes)}: answered in {took:.0f} s")
    if not visit.job:
        return fail(label, visit.fault, "sbatch took no job: correct what it names in the cluster's file")
    if visit.fault == "late" and visit.state == "PENDING":
        start = f", expected to start {visit.start}" if visit.start else ""
        seen = f"{visit.job} ({where}) still waits: {visit.reason}{start}; cancelled"
        return warn(label, seen, "the queue is busy; run doctor later, or with a longer --wait")
    if visit.fault == "never":
        advice = "Slurm would never start it: correct the partition, account, qos or limits that the reason names"
        return fail(label, f"{visit.job} waits for ever: {visit.reason}; cancelled", advice)
    history = slurm.history(cluster, [visit.job])
    state = history[-1].state if history else visit.state or "gone"
    missing = visit.target.nodes - len(visit.nodes)
    seen = f"{visit.job} ended ({state}), {missing} of {visit.target.nodes} nodes left no answer{_said(visit.folder)}"
    advice = f"paths.runs and this Python must be visible on the nodes; its folder is kept: {visit.folder}"
    return fail(label, seen, advice)


def _said(folder: Path) -> str:
    """The last line of the job's log, as a remark."""
    for path in sorted(folder.glob("*.out")):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines and not lines[-1].startswith("{"):
            return f"; its log ends: {lines[-1][:200]}"
    return ""
