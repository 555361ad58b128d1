"""`doctor` on the site: what Slurm says of itself against what the config asks of it. No job is submitted.

`read` asks Slurm a handful of questions; every check below it is a plain function of the answers.
"""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import time
from dataclasses import dataclass, field

from cathpc.config import Config
from cathpc.dispatch import slurm
from cathpc.dispatch.config import ClusterConfig, JobConfig, Requeue, Runtime
from cathpc.dispatch.doctor_check import Check, fail, warn, well
from cathpc.dispatch.requests import shape
from cathpc.pipeline import STAGES, Place, stages

Rows = list[dict[str, str]]
NEEDED = ("sbatch", "squeue", "scontrol", "scancel", "srun")
SLOW_ANSWER_S = 5.0
QOS_FIELDS = "Name,GraceTime,MaxWall,MaxSubmitPU,MaxTRESPU,Preempt,PreemptMode"


@dataclass(frozen=True)
class Need:
    """What some stages ask of one partition."""

    key: str
    """The config key that names the partition."""
    partition: str
    timeout_key: str
    timeout_min: int
    nodes: int = 1
    gpus: int = 0
    """Of a node."""
    cpus: int = 1
    """Of a node."""
    mem_gb: float = 0.0
    training: bool = False
    network: bool = False
    """Whether its stages reach for the Hub."""


@dataclass
class Site:
    """Slurm's answers."""

    settings: dict[str, str]
    partitions: dict[str, dict[str, str]]
    nodes: Rows
    qos: Rows = field(default_factory=list)
    associations: Rows = field(default_factory=list)
    accounting: str = ""
    """Why accounting does not answer; '' where it does."""
    excluded: frozenset[str] = frozenset()
    answer_s: float = 0.0


def read(cluster: ClusterConfig, user: str) -> Site:
    """Ask Slurm; raises QueueError where the controller does not answer."""
    began = time.monotonic()
    slurm.queue(cluster)
    took = time.monotonic() - began
    site = Site(slurm.settings(cluster), slurm.partitions(cluster), nodes(_show(cluster, "node")), answer_s=took)
    if cluster.exclude:
        names = slurm.ask(cluster, "scontrol", "show", "hostnames", cluster.exclude).split()
        site.excluded = frozenset(names)
    try:
        slurm.ask(cluster, "sacct", "--noheader", "--allocations", "--starttime=now-1hours", timeout_s=20.0)
        site.qos = table(slurm.ask(cluster, "sacctmgr", "-P", "show", "qos", f"format={QOS_FIELDS}", timeout_s=20.0))
        what = ["show", "assoc", f"user={user}", "format=Account,QOS,MaxSubmit,MaxWall"]
        site.associations = table(slurm.ask(cluster, "sacctmgr", "-P", *what, timeout_s=20.0))
    except Exception as error:  # absent, switched off or silent: all the same to a run
        site.accounting = str(error)
    return site


def _show(cluster: ClusterConfig, what: str) -> str:
    return slurm.ask(cluster, "scontrol", "--oneliner", "show", what)


def nodes(text: str) -> Rows:
    """`scontrol --oneliner show node` as one dict a node."""
    return [row for line in text.splitlines() if "NodeName" in (row := dict(re.findall(r"(\w+)=(\S*)", line)))]


def table(text: str) -> Rows:
    """The output of a Slurm command with -P."""
    return list(csv.DictReader(io.StringIO(text), delimiter="|"))


def needs(config: Config) -> list[Need]:
    """What the stages ask for, each once: the training first, then the largest."""
    found: dict[Need, None] = {}
    for stage in stages(config):
        took, own = shape(stage, config), config.cluster.stages.get(stage.name, JobConfig())
        if stage.place is Place.network and not config.cluster.network_partition:
            continue  # `fetch` does it
        training = stage.place is Place.ranks
        kind = "network_partition" if stage.place is Place.network else "cpu_partition"
        key = f"stages.{stage.name}.partition" if own.partition else "partition" if training or took.gpus else kind
        limit = "timeout_min" if training else "short_timeout_min"
        limit = f"stages.{stage.name}.timeout_min" if own.timeout_min else limit
        need = Need(
            f"cluster.{key}",
            took.partition,
            f"cluster.{limit}",
            took.timeout_min,
            nodes=took.nodes,
            gpus=took.gpus,
            cpus=took.cpus * took.tasks_per_node,
            mem_gb=took.mem_gb,
            training=training,
            network=stage.place is Place.network,
        )
        found.setdefault(need)
    return sorted(found, key=lambda need: (not need.training, -need.gpus, -need.cpus))


def default_partition(partitions: dict[str, dict[str, str]]) -> str:
    """The partition of jobs that name none."""
    return next((name for name, fields in partitions.items() if fields.get("Default") == "YES"), "")


# --- commands, accounting, requeueing ---------------------------------------------------------------------------------


def commands(which: dict[str, bool]) -> Check:
    """Whether this machine has Slurm's commands."""
    missing = [name for name in NEEDED if not which[name]]
    if missing:
        return fail(
            "commands", f"not found: {', '.join(missing)}", "start this on a login node, or load Slurm's module"
        )
    extra = [name for name in ("sacct", "sacctmgr") if not which[name]]
    if extra:
        advice = "`status` then knows only what the queue shows: ask the administrator for the client tools"
        return warn("commands", f"not found: {', '.join(extra)}", advice)
    return well("commands", ", ".join((*NEEDED, "sacct", "sacctmgr")))


def found_commands() -> dict[str, bool]:
    """Which of Slurm's commands are on the PATH."""
    return {name: shutil.which(name) is not None for name in (*NEEDED, "sacct", "sacctmgr")}


def controller(site: Site) -> Check:
    """Version and answering time of slurmctld."""
    seen = f"Slurm {site.settings.get('SLURM_VERSION', '?')}, answers in {site.answer_s:.1f} s"
    if site.answer_s > SLOW_ANSWER_S:
        return warn("controller", seen, "a busy controller: submit large graphs outside of rush hours")
    return well("controller", seen)


def accounting(site: Site) -> Check:
    """Whether ended jobs can be asked for."""
    if site.accounting:
        advice = "runs work; `status` cannot say why an attempt ended once Slurm has forgotten it (MinJobAge)"
        return warn("accounting", f"does not answer: {site.accounting}", advice)
    return well("accounting", site.settings.get("AccountingStorageType", "it answers"))


def rights(cluster: ClusterConfig, site: Site) -> list[Check]:
    """Account and QOS of the config against those that accounting knows for this user."""
    if site.accounting:
        return []
    enforced = site.settings.get("AccountingStorageEnforce", "none").lower()
    strict = "associations" in enforced or "limits" in enforced or "qos" in enforced
    verdict = fail if strict else warn
    checks = []
    accounts = sorted({row.get("Account", "") for row in site.associations} - {""})
    if cluster.account and cluster.account not in accounts:
        seen = f"cluster.account is {cluster.account!r}; you may use: {', '.join(accounts) or 'none'}"
        checks.append(verdict("account", seen, "name one of them, or ask for membership"))
    elif not accounts and strict:
        checks.append(fail("account", "you have no account here", "ask the administrator for an association"))
    else:
        checks.append(well("account", cluster.account or f"the default one of: {', '.join(accounts) or '(none)'}"))
    if cluster.qos:
        allowed = sorted({q for row in site.associations for q in row.get("QOS", "").split(",")} - {""})
        known = [row["Name"] for row in site.qos]
        if cluster.qos not in known or (strict and cluster.qos not in allowed):
            seen = f"cluster.qos is {cluster.qos!r}; you may use: {', '.join(allowed if strict else known) or 'none'}"
            checks.append(verdict("qos", seen, "name one of them, or leave cluster.qos empty"))
        else:
            checks.append(well("qos", cluster.qos))
    return checks


def requeueing(cluster: ClusterConfig, site: Site) -> Check:
    """Slurm's own second net below the job's own requeue, and the number of requeues that it allows."""
    own = "jobs requeue themselves" if cluster.requeue is Requeue.scontrol else f"{cluster.segments} chained segments"
    codes = re.split(r"[,\s]+", site.settings.get("RequeueExit", ""))
    net = "RequeueExit 85 is a second net" if "85" in codes else "no second net (RequeueExit has no 85)"
    most = site.settings.get("MaxBatchRequeue", "5")
    return well("requeue", f"{own}; {net}; Slurm holds a job after {most} requeues of its own (MaxBatchRequeue)")


def lead(cluster: ClusterConfig, asked: list[Need]) -> Check:
    """The warning before a limit against the limits themselves, by the rule that `run` refuses by."""
    faults = []
    for need in asked:
        seconds = cluster.lead_s if need.training else min(cluster.lead_s, 60)
        if seconds * 2 > need.timeout_min * 60:
            faults.append(f"{need.timeout_key} is {need.timeout_min} min, {seconds} s of which are for a last save")
    if faults:
        seen = f"cluster.lead_s is {cluster.lead_s}; {'; '.join(dict.fromkeys(faults))}"
        return fail("lead time", seen, "raise the limit to twice the lead or more, or lower cluster.lead_s")
    if not cluster.lead_s:
        advice = "what the last periodic checkpoint does not hold is done again: give a save its time (cluster.lead_s)"
        return warn("lead time", "no warning before a limit (cluster.lead_s is 0)", advice)
    return well("lead time", f"{cluster.lead_s} s before a limit of {asked[0].timeout_min:,} min (cluster.lead_s)")


def arrays(cluster: ClusterConfig, site: Site) -> list[Check]:
    """Widths of the array jobs against the site's largest array and the jobs that it lets a user submit."""
    most = int(site.settings.get("MaxArraySize", "1001")) - 1
    wide = {name: math.ceil(width / most) for name, width in cluster.arrays.items() if width > most}
    widths = ", ".join(f"{name} {width}" for name, width in cluster.arrays.items())
    if wide:
        seen = f"{widths}; the site takes {most} tasks at most (MaxArraySize)"
        parts = ", ".join(f"{name} is split into {jobs} jobs" for name, jobs in wide.items())
        checks = [warn("arrays", seen, f"{parts}; to avoid it, lower cluster.arrays")]
    else:
        checks = [well("arrays", f"{widths}; the site takes up to {most:,} tasks")]
    name = cluster.qos or "normal"
    limits = [row.get("MaxSubmitPU", "") for row in site.qos if row["Name"] == name]
    limits += [row.get("MaxSubmit", "") for row in site.associations if cluster.account in ("", row.get("Account"))]
    known = [int(text) for text in limits if text.isdigit()]
    if not known:
        return checks
    single = len(STAGES) + len(cluster.arrays)
    jobs = single + sum(cluster.arrays.values())
    seen = f"a run has up to {jobs} jobs and tasks in the queue; you may have {min(known)}"
    if min(known) < single + len(cluster.arrays):
        checks.append(fail("submissions", seen, f"ask for a QOS that takes {single} jobs of a user, or more"))
    elif min(known) < jobs:
        width = (min(known) - single) // max(1, len(cluster.arrays))
        better = ", ".join(f"cluster.arrays.{name}={width}" for name in cluster.arrays)
        advice = f"arrays are cut to what the QOS takes; better: {better}"
        checks.append(warn("submissions", seen, advice))
    else:
        checks.append(well("submissions", seen))
    return checks


def container(cluster: ClusterConfig, runtime: bool, image: bool) -> list[Check]:
    """The container's runtime and image; `runtime` and `image` say whether they were found."""
    wanted = cluster.container
    if wanted.runtime is Runtime.none:
        return []
    name = wanted.runtime.name
    if not runtime:
        advice = "the nodes may have it all the same: see their checks" if name == "apptainer" else "ask for the plugin"
        return [warn("container", f"{name} is not found here", advice)]
    if not image and wanted.image.startswith(("/", ".")):
        return [fail("container", f"there is no {wanted.image}", "name the image's file: cluster.container.image=PATH")]
    return [well("container", f"{name}, {wanted.image}")]
