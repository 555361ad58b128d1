"""Who works on a folder: leases with fencing numbers.

A lease is a file `claim-000007.json` in the folder, made by a hard link, which fails where the name exists: of two that
race, one gets it. The holder of the highest number owns the folder. Who takes over from a dead owner takes the next
number, and what the old one still does is fenced: before it commits anything it looks whether its number is still the
highest (`fence`). Slurm is no fence: after the death of a node's daemon a job may be started elsewhere while its old
processes live on under the same job id; so a later attempt of a job always outranks an earlier one.

Nobody steals: an owner on another machine is dead only if its job is known to be gone, or is an earlier attempt of the
same job. Costs: one small file, and a listing of it at each commit.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cathpc.errors import FencedError

PATTERN = re.compile(r"claim-(\d{6})\.json")
Owner = dict[str, Any]
JobState = Callable[[str], bool | None]
"""Whether a job lives; None where the queue cannot be asked."""

_held: list[Lease] = []


def _unknown(job: str) -> bool | None:
    return None


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; tells a process from a later one with the same id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    after = stat.rpartition(")")[2].split()
    return None if after[0] == "Z" else int(after[19])


def slurm_job() -> tuple[str, int]:
    """Id of the Slurm job that this process belongs to (`<array>_<task>` of an array, '' of none) and its attempt."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
    return job, int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def owner(job: str = "") -> Owner:
    """This process, as a lease names it; `job` is what its ranks have in common."""
    pid = os.getpid()
    slurm, restart = slurm_job()
    return {
        "job": slurm or job,
        "slurm": bool(slurm),
        "restart": restart,
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": pid,
        "ticks": _start_ticks(pid),
        "time": time.time(),
        "nonce": secrets.token_hex(4),
    }


def alive(claim: Owner, *, job_state: JobState = _unknown) -> bool:
    """Whether the owner may still be at work; one that cannot be asked is."""
    if claim.get("host") == socket.gethostname():
        return claim.get("boot") == _boot() and _start_ticks(int(claim["pid"])) == claim.get("ticks")
    return not (claim.get("slurm") and job_state(str(claim["job"])) is False)


def _outranked(claim: Owner, mine: Owner) -> bool:
    """Whether `claim` is of an earlier attempt of the same Slurm job."""
    return bool(claim.get("slurm") and claim["job"] == mine["job"] and claim["restart"] < mine["restart"])


@dataclass(frozen=True)
class Lease:
    """A folder's lease, held by this process."""

    folder: Path
    number: int
    owner: Owner

    @property
    def path(self) -> Path:
        """The lease's file."""
        return self.folder / f"claim-{self.number:06d}.json"

    def check(self) -> None:
        """Raise FencedError where the folder has another owner by now."""
        number, now = _highest(self.folder)
        if number != self.number or now != self.owner:
            who = f"job {now['job']} on {now['host']}" if now else "nobody"
            raise FencedError(f"{self.folder} belongs to {who} now: this process writes nothing more there")


def _highest(folder: Path) -> tuple[int, Owner | None]:
    """Number and owner of the folder's newest lease; (0, None) where there is none, (n, {}) where it is torn."""
    numbers = [int(m.group(1)) for p in folder.glob("claim-*.json") if (m := PATTERN.fullmatch(p.name))]
    if not numbers:
        return 0, None
    number = max(numbers)
    try:
        found = json.loads((folder / f"claim-{number:06d}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0, None
    except (OSError, ValueError):
        return number, {}
    return number, found if isinstance(found, dict) else {}


def holder(folder: Path, *, job_state: JobState = _unknown) -> Owner | None:
    """The living owner of `folder`, or None."""
    _, found = _highest(folder)
    return found if found and alive(found, job_state=job_state) else None


def take(folder: Path, job: str = "", *, job_state: JobState = _unknown) -> Lease | None:
    """The lease of `folder` for this process, or None where a living owner holds it."""
    mine = owner(job)
    number, found = _highest(folder)
    if found and not _outranked(found, mine) and alive(found, job_state=job_state):
        return None
    lease = Lease(folder, number + 1, mine)
    temporary = folder / f".claim.{mine['nonce']}.tmp"
    temporary.write_text(json.dumps(mine), encoding="utf-8")
    try:
        os.link(temporary, lease.path)
    except FileExistsError:
        return None
    finally:
        temporary.unlink(missing_ok=True)
    if _highest(folder) != (lease.number, mine):  # who read an older state may have got a lower number than the owner's
        lease.path.unlink(missing_ok=True)
        return None
    for path in folder.glob("claim-*.json"):
        if (m := PATTERN.fullmatch(path.name)) and int(m.group(1)) < lease.number:
            path.unlink(missing_ok=True)
    _held.append(lease)
    return lease


def release(lease: Lease) -> None:
    """Give the folder free, if it is still ours."""
    if lease in _held:
        _held.remove(lease)
    with contextlib.suppress(FencedError, OSError):
        lease.check()
        lease.path.unlink(missing_ok=True)


def release_all() -> None:
    """Give free whatever this process holds, before it ends without unwinding."""
    for lease in list(_held):
        release(lease)


@contextlib.contextmanager
def held(folder: Path, job: str = "", *, job_state: JobState = _unknown) -> Iterator[Lease | None]:
    """`take` for the length of a block; yields None where another holds it."""
    lease = take(folder, job, job_state=job_state)
    try:
        yield lease
    finally:
        if lease:
            release(lease)


def fence(path: Path) -> None:
    """Raise FencedError where `path` lies in a folder whose lease this process had and lost.

    Called right before anything is committed; a process that never took a lease (a test, a direct call) is not fenced.
    """
    for lease in _held:
        if path == lease.folder or path.is_relative_to(lease.folder):
            lease.check()
