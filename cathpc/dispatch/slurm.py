"""What is asked of Slurm: the queue, the accounting, the site's settings.

A question costs one process and, on a busy site, seconds: each command here is sent once for all jobs of a user, never
once a job. A controller that does not answer raises `QueueError`; what is not known is never guessed.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cathpc.dispatch.config import ClusterConfig
from cathpc.errors import TryAgainError, UserError

TIMEOUT_S = 60.0
TERMINAL = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT")
)


class QueueError(TryAgainError):
    """Slurm could not be asked."""


@dataclass(frozen=True)
class QueueJob:
    """One line of squeue: a job, a running task of an array, or the waiting rest of an array."""

    id: str
    """'123', '123_7', or '123_[8-99]' for tasks that wait."""
    base: str
    """'123': what `sbatch` printed."""
    name: str
    state: str
    reason: str
    nodes: str
    start: str
    """When it started, or is expected to; '' where nobody knows."""
    comment: str = ""

    @property
    def tasks(self) -> int:
        """How many tasks of an array the line stands for."""
        inside = re.search(r"\[([^\]%]+)", self.id)
        if not inside:
            return 1
        count = 0
        for part in inside.group(1).split(","):
            first, _, last = part.partition("-")
            count += int(last.split(":")[0]) - int(first) + 1 if last else 1
        return count


def environment(cluster: ClusterConfig) -> dict[str, str]:
    """The environment of Slurm's commands: the user's, with the cluster's slurm.conf where he has set none."""
    if cluster.slurm_conf and "SLURM_CONF" not in os.environ:
        return {**os.environ, "SLURM_CONF": cluster.slurm_conf}
    return dict(os.environ)


def ask(cluster: ClusterConfig, *command: str, timeout_s: float = TIMEOUT_S) -> str:
    """What a command of Slurm prints; QueueError where it fails, UserError where there is no Slurm."""
    if shutil.which(command[0]) is None:
        raise UserError(
            f"there is no Slurm on this machine ({command[0]} is not found). Start this on a login node of the "
            "cluster, take cluster=local, or try the one-machine cluster: slurm/devcluster up"
        )
    if cluster.slurm_conf and "SLURM_CONF" not in os.environ and not Path(cluster.slurm_conf).exists():
        raise UserError(
            f"cluster.slurm_conf: there is no {cluster.slurm_conf}. Is the cluster up? (slurm/devcluster up starts the "
            "one-machine cluster)"
        )
    if cluster.slurm_conf and "SLURM_CONF" not in os.environ:
        _refuse_planted(Path(cluster.slurm_conf))
    try:
        done = subprocess.run(
            command, env=environment(cluster), capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise QueueError(f"{command[0]} did not answer within {timeout_s:.0f} s") from None
    if done.returncode:
        raise QueueError(f"{command[0]}: {_first(done.stderr or done.stdout)}")
    return done.stdout


def _refuse_planted(conf: Path) -> None:
    """Raise `UserError` for a slurm.conf that somebody else may have put there: it says whence Slurm loads plugins."""
    for path in (conf, conf.parent):
        found = path.stat()
        if found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022:
            raise UserError(
                f"cluster.slurm_conf: {path} belongs to user {found.st_uid} or may be written by others. Only one of "
                "root's or your own is taken"
            )


def _first(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "it failed without a message"


def queue(cluster: ClusterConfig) -> list[QueueJob]:
    """The jobs of this user that wait, run or end at this moment."""
    form = "%i|%F|%j|%T|%r|%N|%S|%k"
    text = ask(cluster, "squeue", "--noheader", f"--user={os.getuid()}", f"--format={form}")
    jobs = []
    for line in text.splitlines():
        parts = line.split("|", 7)
        if len(parts) == 8:
            start = "" if parts[6] in ("N/A", "") else parts[6]
            jobs.append(QueueJob(parts[0], parts[1], parts[2], parts[3], parts[4], parts[5], start, parts[7]))
    return jobs


def live(jobs: Iterable[QueueJob]) -> set[str]:
    """Ids, as sbatch printed them, of the jobs that will still do something."""
    return {j.base for j in jobs if j.state not in TERMINAL and j.reason != "DependencyNeverSatisfied"}


def live_jobs(cluster: ClusterConfig, mine: Callable[[QueueJob], bool]) -> set[str] | None:
    """Ids of those that are `mine` and still live; None where the queue cannot be asked."""
    try:
        return live(filter(mine, queue(cluster)))
    except (QueueError, UserError):
        return None


def job_state(job: str) -> bool | None:
    """Whether the job lives, as a lease asks on a node; None where that cannot be known there."""
    try:
        done = subprocess.run(
            ["squeue", "--noheader", f"--job={job}", "--format=%T"], capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode:
        return False if "Invalid job id" in done.stderr else None
    return any(state.strip() not in TERMINAL for state in done.stdout.splitlines() if state.strip())


@dataclass(frozen=True)
class Ended:
    """One line of sacct: a job or a task of an array, in one of its attempts."""

    id: str
    name: str
    state: str
    exit: str
    seconds: int
    nodes: str


def history(cluster: ClusterConfig, ids: Iterable[str]) -> list[Ended]:
    """All attempts of these jobs that accounting knows; empty where there is no accounting."""
    wanted = ",".join(ids)
    if not wanted:
        return []
    fields = "JobID,JobName,State,ExitCode,ElapsedRaw,NodeList"
    try:
        command = ["sacct", "-X", "-n", "-P", "--duplicates", "-S", "2000-01-01"]
        text = ask(cluster, *command, f"--jobs={wanted}", f"--format={fields}")
    except QueueError:
        return []
    rows = []
    for line in text.splitlines():
        parts = line.split("|")
        if len(parts) == 6:
            state = parts[2].split()[0] if parts[2] else ""
            rows.append(Ended(parts[0], parts[1], state, parts[3], int(parts[4] or 0), parts[5]))
    return rows


@functools.lru_cache
def _show(conf: str, *what: str) -> str:
    return ask(ClusterConfig(slurm_conf=conf), "scontrol", "--oneliner", "show", *what)


def settings(cluster: ClusterConfig) -> dict[str, str]:
    """`scontrol show config`."""
    pairs = (line.partition("=") for line in _show(cluster.slurm_conf, "config").splitlines() if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}


def partitions(cluster: ClusterConfig) -> dict[str, dict[str, str]]:
    """`scontrol show partition`: name -> its settings."""
    found = {}
    for line in _show(cluster.slurm_conf, "partition").splitlines():
        fields = dict(re.findall(r"(\w+)=(\S*)", line))
        if "PartitionName" in fields:
            found[fields["PartitionName"]] = fields
    return found


def minutes(text: str) -> float:
    """Minutes of a time as Slurm writes it: '2-00:00:00', '04:00:00', '30:00', '90'; infinite for UNLIMITED."""
    if text.upper() in ("UNLIMITED", "INFINITE", "NONE", "N/A", "", "NOT_SET"):
        return float("inf")
    days, dash, rest = text.rpartition("-")
    parts = [int(p) for p in rest.split(":")]
    if dash:
        hours, mins, seconds = [*parts, 0, 0][:3]
        return int(days) * 1440 + hours * 60 + mins + seconds / 60
    if len(parts) == 1:
        return float(parts[0])
    if len(parts) == 2:
        return parts[0] + parts[1] / 60
    return parts[0] * 60 + parts[1] + parts[2] / 60


def max_array(cluster: ClusterConfig) -> int:
    """Most tasks of one array job."""
    return int(settings(cluster).get("MaxArraySize", "1001")) - 1


def max_submit(cluster: ClusterConfig) -> int | None:
    """Most jobs that the QOS lets this user have in the queue; None where it sets no limit or cannot be asked."""
    if not shutil.which("sacctmgr"):
        return None
    name = cluster.qos or "normal"
    try:
        text = ask(cluster, "sacctmgr", "-n", "-P", "show", "qos", f"name={name}", "format=MaxSubmitJobsPU")
    except QueueError:
        return None
    value = text.strip().splitlines()[0].strip() if text.strip() else ""
    return int(value) if value.isdigit() else None


def cancel(cluster: ClusterConfig, ids: Iterable[str]) -> None:
    """End these jobs, waiting or running."""
    wanted = sorted(set(ids))
    if wanted:
        try:
            ask(cluster, "scancel", *wanted)
        except QueueError as error:
            if "Invalid job id" not in str(error):  # one that has ended meanwhile
                raise
