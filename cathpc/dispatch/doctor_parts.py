"""`doctor` on partitions: limits, nodes and preemption against what the stages ask for.

Plain functions of Slurm's answers; `trial` alone asks: what sbatch would say of the jobs of a run.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from cathpc.config import Config
from cathpc.dispatch import script, slurm
from cathpc.dispatch.config import ClusterConfig
from cathpc.dispatch.doctor_check import Check, fail, warn, well
from cathpc.dispatch.doctor_site import Need, Site, default_partition

DOWN = re.compile(r"DOWN|DRAIN|FAIL|NOT_RESPONDING|MAINT|UNKNOWN|FUTURE|POWER(ED|ING)_DOWN\+DRAIN")


def partition(need: Need, cluster: ClusterConfig, site: Site, groups: Iterable[str]) -> list[Check]:
    """One partition: whether it is there, open to this user, and gives the time and the nodes asked for."""
    name = need.partition or default_partition(site.partitions)
    label = f"partition {name or '?'}"
    if not name:
        return [fail(label, f"{need.key} is empty, and the site has no default", f"set {need.key}: {_names(site)}")]
    fields = site.partitions.get(name)
    if fields is None:
        return [fail(label, f"{need.key} is {name!r}: there is no such partition", f"valid: {_names(site)}")]
    checks = []
    if fields.get("State", "UP") != "UP":
        checks.append(
            fail(label, f"it is {fields['State']}", f"wait, or take another one ({need.key}): {_names(site)}")
        )
    limit = slurm.minutes(fields.get("MaxTime", "UNLIMITED"))
    if need.timeout_min > limit:
        seen = f"its limit is {limit:,.0f} min (MaxTime); {need.timeout_key} is {need.timeout_min:,}"
        checks.append(fail(label, seen, f"set {need.timeout_key}={limit:.0f}: the work goes on in the next job"))
    most = fields.get("MaxNodes", "UNLIMITED")
    if most.isdigit() and int(most) < need.nodes:
        checks.append(fail(label, f"a job gets {most} nodes (MaxNodes); cluster.nodes is {need.nodes}", "lower it"))
    checks += _admission(label, fields, cluster, site, set(groups))
    if not checks:
        checks.append(well(label, f"up, limit {fields.get('MaxTime', '?')}, {fields.get('TotalNodes', '?')} nodes"))
    return checks


def _names(site: Site) -> str:
    return ", ".join(sorted(site.partitions))


def _admission(label: str, fields: dict[str, str], cluster: ClusterConfig, site: Site, groups: set[str]) -> list[Check]:
    """AllowAccounts, DenyAccounts, AllowQos, DenyQos and AllowGroups of a partition."""
    accounts = {cluster.account} if cluster.account else {row.get("Account", "") for row in site.associations} - {""}
    mine = {"Accounts": accounts, "Qos": {cluster.qos or "normal"}, "Groups": groups}
    keys = {"Accounts": "cluster.account", "Qos": "cluster.qos", "Groups": "your Unix groups"}
    checks = []
    for what, values in mine.items():
        allowed = fields.get(f"Allow{what}", "ALL")
        denied = fields.get(f"Deny{what}", "")
        if allowed not in ("ALL", "", "(null)") and values and not values & set(allowed.split(",")):
            seen = f"it takes only {what.lower()} {allowed}; yours: {', '.join(sorted(values))}"
            checks.append(fail(label, seen, f"change {keys[what]}, or take another partition"))
        elif values and values <= set(denied.split(",")):
            checks.append(fail(label, f"it refuses {what.lower()} {denied}", f"change {keys[what]}"))
    return checks


def gpus(gres: str, kind: str = "") -> int:
    """GPUs in a node's Gres, such as 'gpu:a100:8(S:0-1),gpu:h100:4'; of one type where `kind` names it."""
    count = 0
    for part in re.sub(r"\([^)]*\)", "", gres).split(","):
        words = part.split(":")
        if words[0] == "gpu" and (not kind or kind in words[1:-1]):
            count += int(words[-1]) if words[-1].isdigit() else 1
    return count


def hardware(need: Need, cluster: ClusterConfig, site: Site) -> Check:
    """Whether the partition has enough nodes with what a stage asks for, and whether they are up."""
    name = need.partition or default_partition(site.partitions)
    label = f"nodes of {name}"
    members = [n for n in site.nodes if name in n.get("Partitions", "").split(",")]
    members = [n for n in members if n["NodeName"] not in site.excluded]
    if re.fullmatch(r"[\w.-]+", cluster.constraint):
        members = [n for n in members if cluster.constraint in n.get("AvailableFeatures", "").split(",")]
    fit = [n for n in members if _fits(n, need, cluster.gpu_type)]
    kind = f" {cluster.gpu_type}" if cluster.gpu_type else ""
    asked = f"{need.nodes} x " + ", ".join(
        filter(
            None,
            [
                f"{need.gpus}{kind} GPUs" if need.gpus else "",
                f"{need.cpus} CPUs",
                f"{need.mem_gb:g} GB" if need.mem_gb else "",
            ],
        )
    )
    if len(fit) < need.nodes:
        has = (
            ", ".join(sorted({_describe(n) for n in members})) or "no node under cluster.constraint and cluster.exclude"
        )
        keys = "cluster.nodes, gpus_per_node, gpu_type, cpus, cpus_per_rank, mem_gb or cpu_mem_gb"
        return fail(label, f"{need.key}: {asked} asked, {len(fit)} nodes fit; it has {has}", f"lower {keys}")
    up = [n for n in fit if not DOWN.search(n.get("State", ""))]
    if len(up) < need.nodes:
        return warn(label, f"{asked} asked; {len(up)} of {len(fit)} such nodes are up", "the job waits for the others")
    return well(label, f"{asked} asked; {len(up)} such nodes are up")


def _fits(node: dict[str, str], need: Need, kind: str) -> bool:
    return (
        gpus(node.get("Gres", ""), kind) >= need.gpus
        and int(node.get("CPUTot", "0")) >= need.cpus
        and int(node.get("RealMemory", "0")) >= need.mem_gb * 1000
    )


def _describe(node: dict[str, str]) -> str:
    parts = [f"{node.get('CPUTot', '?')} CPUs", f"{int(node.get('RealMemory', '0')) / 1000:.0f} GB"]
    gres = node.get("Gres", "(null)")
    return " ".join([*parts, *([gres] if gres != "(null)" else [])])


def preemption(need: Need, cluster: ClusterConfig, site: Site) -> Check:
    """Whether others may take the partition's nodes, and whether the warning then is long enough for a save."""
    name = need.partition or default_partition(site.partitions)
    label, fields = f"preemption {name}", site.partitions.get(name, {})
    by, qos, mode = _preempted(name, fields, cluster, site)
    if not by:
        return well(label, "no job is preempted here")
    grace = _seconds(qos.get("GraceTime") or "0") if "qos" in _type(site) else _seconds(fields.get("GraceTime") or "0")
    wait = _seconds(site.settings.get("KillWait", "30"))
    signal = "USR2 and TERM" if "preempt_send_user_signal" in site.settings.get("SlurmctldParameters", "") else "TERM"
    seen = f"{by} preempts ({mode}): {signal}, then {grace} s GraceTime + {wait} s KillWait"
    if "SUSPEND" in mode or "GANG" in mode:
        return warn(label, seen, "suspended ranks hang and time out: ask for PreemptMode=REQUEUE on this partition")
    if "CANCEL" in mode:
        return warn(label, seen, "a preempted job does not come back by itself: give the same command again")
    if not need.training:
        return well(label, f"{seen}; a shard that is cut off is done again")
    seen += f"; a save has {cluster.lead_s} s at a limit (cluster.lead_s)"
    if grace + wait < cluster.lead_s:
        advice = (
            "what the last periodic checkpoint does not hold is done again: lower train.save_every_steps, or ask for "
            f"GraceTime={cluster.lead_s}"
        )
        return warn(label, seen, advice)
    return well(label, seen)


def _type(site: Site) -> str:
    return site.settings.get("PreemptType", "none").rpartition("/")[2]


def _preempted(
    name: str, fields: dict[str, str], cluster: ClusterConfig, site: Site
) -> tuple[str, dict[str, str], str]:
    """(who preempts jobs of the partition or '', the QOS they run under, how)."""
    own: dict[str, str] = next((row for row in site.qos if row["Name"] == (cluster.qos or "normal")), {})
    mode = fields.get("PreemptMode", site.settings.get("PreemptMode", "OFF"))
    if _type(site) == "partition_prio" and mode != "OFF":
        tier = int(fields.get("PriorityTier", "1"))
        beside = {p for node in site.nodes for p in _shared(node, name)}
        higher = sorted(p for p in beside if int(site.partitions.get(p, {}).get("PriorityTier", "1")) > tier)
        return f"partition {', '.join(higher)}" if higher else "", own, mode
    if _type(site) == "qos":
        over = sorted(row["Name"] for row in site.qos if own.get("Name") in row.get("Preempt", "").split(","))
        how = own.get("PreemptMode", "cluster")
        how = site.settings.get("PreemptMode", "OFF") if how.lower() in ("", "cluster") else how.upper()
        return f"QOS {', '.join(over)}" if over and how != "OFF" else "", own, how
    return "", own, "OFF"


def _shared(node: dict[str, str], name: str) -> set[str]:
    names = set(node.get("Partitions", "").split(","))
    return names - {name} if name in names else set()


def _seconds(text: str) -> int:
    """'10 sec', '120' or '00:02:00' in seconds."""
    first = text.split()[0] if text.split() else "0"
    return int(first) if first.isdigit() else round(slurm.minutes(first) * 60)


def walls(needs: list[Need], cluster: ClusterConfig, site: Site) -> list[Check]:
    """The QOS's own limits of time and GPUs of a user."""
    own: dict[str, str] = next((row for row in site.qos if row["Name"] == (cluster.qos or "normal")), {})
    checks: list[Check] = []
    limit = slurm.minutes(own.get("MaxWall", ""))
    longest = max(needs, key=lambda n: n.timeout_min)
    if longest.timeout_min > limit:
        seen = f"QOS {own['Name']} ends jobs after {limit:,.0f} min; {longest.timeout_key} is {longest.timeout_min:,}"
        checks.append(fail("qos limits", seen, f"set {longest.timeout_key}={limit:.0f}"))
    most = dict(re.findall(r"([\w/]+)=(\d+)", own.get("MaxTRESPU", "")))
    for tres, asked in (("gres/gpu", max(n.gpus * n.nodes for n in needs)), ("node", max(n.nodes for n in needs))):
        if tres in most and int(most[tres]) < asked:
            seen = f"QOS {own['Name']} gives a user {tres}={most[tres]}; the training asks {asked}"
            checks.append(fail("qos limits", seen, "take another cluster.qos, or fewer nodes and GPUs"))
    return checks


def trial(need: Need, config: Config, folder: Path) -> Check:
    """What sbatch says of the job that the stages really ask for (`--test-only`): nothing is submitted."""
    cluster = config.cluster
    ranks = max(1, config.train.ranks_per_node) if need.training else 1
    request = script.Request(
        name="cathpc-doctor",
        stage="doctor",
        spec=folder / "none",
        content={},
        logs=folder,
        partition=need.partition,
        timeout_min=need.timeout_min,
        nodes=need.nodes,
        tasks_per_node=ranks,
        cpus_per_task=max(1, need.cpus // ranks),
        gpus_per_node=need.gpus,
        mem_gb=need.mem_gb,
        lead_s=cluster.lead_s,
        exclusive=cluster.exclusive and need.training,
    )
    path = folder / "trial.sh"
    path.write_text(script.script(request, cluster), encoding="utf-8")
    command = ["sbatch", "--test-only", str(path)]
    try:
        done = subprocess.run(
            command, env=slurm.environment(cluster), capture_output=True, text=True, timeout=60, check=False
        )
    except subprocess.TimeoutExpired:
        return warn(f"sbatch {need.partition}", "no answer within 60 s", "the controller is busy; run doctor later")
    return tried(need, done.returncode, done.stderr)


def tried(need: Need, code: int, said: str) -> Check:
    """The verdict on what `sbatch --test-only` said."""
    name, what = f"sbatch {need.partition}".strip(), "the training" if need.training else f"a job of {need.key}"
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()] or ["nothing"]
    if code:
        return fail(name, f"{what}: {lines[-1]}", f"correct {need.key}, {need.timeout_key} or its sizes")
    start = next((line for line in lines if " to start at " in line), lines[-1])
    return well(name, f"{what} would be taken (--test-only): {start.removeprefix('sbatch: ')}")
