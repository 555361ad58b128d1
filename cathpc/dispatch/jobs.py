"""What the dispatcher keeps in a stage's folder, in `.jobs/`: which jobs were submitted for it, and how they fared.

    job.json          the newest submission: its jobs, what they wait for, whose run it was
    spec-*.json       what a job does, as plain data
    attempts/         a file for each attempt that ended with anything but 0
    submit/           the lease of who is submitting at this moment

Standard library only: the shell of a job runs this on nodes where torch is not even installed.
"""

from __future__ import annotations

import json
import math
import os
import secrets
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cathpc.shards import marked

FOLDER = ".jobs"
"""In a stage's folder; no attempt empties it."""
RECORD = "job.json"
ATTEMPTS = "attempts"


@dataclass
class Submitted:
    """One job of a submission."""

    name: str
    kind: str
    """'stage', 'work' (an array, or a segment of it), 'finish'."""
    id: str = ""
    """What sbatch printed; '' while that is not known."""
    width: int = 0
    """Tasks of the array; 0 is a plain job."""
    first: int = 0
    """Index of its first task among all tasks of the stage."""


@dataclass
class Record:
    """The newest submission of a stage."""

    stage: str
    run: str
    nonce: str = field(default_factory=lambda: secrets.token_hex(3))
    jobs: list[Submitted] = field(default_factory=list)
    after: dict[str, str] = field(default_factory=dict)
    """Input stage -> id of the job that this submission waits for."""
    shards: list[int] | None = None
    """Those that were missing, where that was known; they are divided over the tasks."""
    gone: list[str] = field(default_factory=list)
    """Jobs that held the stage's folder and had left the queue when this was submitted."""
    whole: bool = False
    """Whether all of `jobs` were submitted."""
    logs: str = ""
    slurm_conf: str = ""
    """Of the cluster, where it is not the machine's own."""
    time: float = field(default_factory=time.time)

    @property
    def last(self) -> str:
        """Id of the job whose end is the end of the stage."""
        return self.jobs[-1].id if self.jobs else ""

    @property
    def ids(self) -> list[str]:
        """All ids that are known."""
        return [job.id for job in self.jobs if job.id]

    def has(self, *, id: str, name: str) -> bool:
        """Whether a job in the queue is one of these; by its name where sbatch took it and its id was lost."""
        return any(id == job.id or name == job.name for job in self.jobs)


def folder(stage_folder: Path) -> Path:
    """The dispatcher's folder, made where it is missing."""
    path = stage_folder / FOLDER
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def read(stage_folder: Path) -> Record | None:
    """The newest submission, or None."""
    try:
        data = json.loads((stage_folder / FOLDER / RECORD).read_text(encoding="utf-8"))
        return Record(**{**data, "jobs": [Submitted(**job) for job in data["jobs"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write(stage_folder: Path, record: Record) -> None:
    """Record a submission; after a crash the file is the old one or the new one."""
    _replace(folder(stage_folder) / RECORD, asdict(record))


def write_spec(path: Path, spec: dict[str, Any]) -> None:
    """Write what a job does."""
    _replace(path, spec)


def _replace(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def errors(stage_folder: Path, job: str = "", restart: int | None = None) -> list[dict[str, Any]]:
    """What ranks left behind when they ended with an error, of one job and attempt where these are given."""
    found = []
    for path in sorted(stage_folder.glob(f"error.{job}.*.json" if job else "error.*.json")):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(row, dict) and (restart is None or row.get("restart", 0) == restart):
            found.append(row)
    return found


def attempts(stage_folder: Path) -> list[dict[str, Any]]:
    """The attempts that ended badly, oldest first; those of one job by their count, as clocks may differ."""
    rows = []
    for path in (stage_folder / FOLDER / ATTEMPTS).glob("*.json"):
        try:
            row = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    first: dict[str, float] = {}
    for row in rows:
        first[row["job"]] = min(first.get(row["job"], math.inf), float(row["time"]))
    return sorted(rows, key=lambda row: (first[row["job"]], row["job"], row["restart"]))


def add_attempt(stage_folder: Path, row: dict[str, Any]) -> None:
    """Write down an attempt, in a file of its own: appending from several nodes mixes lines on some file systems."""
    path = folder(stage_folder) / ATTEMPTS
    path.mkdir(exist_ok=True, mode=0o700)
    _replace(path / f"{row['job']}.{row['restart']}.json", row)


def mark(stage_folder: Path, numbers: list[int] | None = None, *, index: int = 0, width: int = 1) -> int:
    """How much of a stage is safe on the disk: its newest checkpoint's step, plus the shards done of one task's."""
    steps = [
        int(path.parent.name.removeprefix("step-"))
        for path in stage_folder.glob("checkpoints/step-*/manifest.json")
        if path.parent.name.removeprefix("step-").isdigit()
    ]
    done = marked(stage_folder)
    mine = len(done & set(numbers)) if numbers is not None else sum(n % width == index for n in done)
    return max(steps, default=0) + mine
