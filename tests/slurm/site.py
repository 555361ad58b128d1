"""A real Slurm on this machine, and a private home on it from which commands run as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEVCLUSTER = ROOT / "slurm" / "devcluster"
USER = "cathpc"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}


def wait(ready: Callable[[], Any], seconds: float = 240.0, *, every_s: float = 0.3, what: str = "") -> Any:
    """The first true result of `ready`; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        found = ready()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain for {what or ready}"
        time.sleep(every_s)


@dataclass(frozen=True)
class Cluster:
    """A running one-machine cluster."""

    folder: Path

    def act(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """One act of `slurm/devcluster`, as root."""
        command = [sys.executable, str(DEVCLUSTER), arguments[0], "--folder", str(self.folder), *arguments[1:]]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd="/")

    def must(self, *arguments: str) -> str:
        """The same; fails where it fails."""
        done = self.act(*arguments)
        assert done.returncode == 0, f"devcluster {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def slurm(self, *command: str, timeout: float = 60) -> str:
        """What a command of Slurm prints, asked as root."""
        done = subprocess.run(
            command,
            env={**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout


@dataclass(frozen=True)
class Site:
    """A private home of the ordinary user on a cluster; stores, runs and cache lie in it."""

    cluster: Cluster
    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def command(self, *arguments: str, **environment: str) -> list[str]:
        """`python -m cathpc ARGUMENTS` as the ordinary user."""
        words = [f"{k}={v}" for k, v in {"PYTHONPATH": str(ROOT), "HOME": str(self.folder), **environment}.items()]
        inner = ["env", "-u", "CI", *words, "COLUMNS=180", sys.executable, "-m", "cathpc", *arguments]
        return [sys.executable, str(DEVCLUSTER), "shell", "--folder", str(self.cluster.folder), "--", *inner]

    def run(self, *arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            self.command(*arguments, **environment), cwd=self.folder, capture_output=True, text=True, timeout=timeout
        )

    def must(self, *arguments: str, **environment: str) -> str:
        """Run one command that has to succeed; returns what it printed."""
        done = self.run(*arguments, **environment)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start one command, to be killed or waited for by the test."""
        return subprocess.Popen(
            self.command(*arguments, **environment),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def queue(self) -> dict[str, tuple[str, str]]:
        """Job id -> (state, reason) of what is in the queue and was submitted from this home."""
        text = self.cluster.slurm("squeue", "--noheader", f"--user={USER}", "--format=%i|%T|%r|%Z")
        rows = [line.split("|") for line in text.splitlines()]
        return {r[0]: (r[1], r[2]) for r in rows if len(r) == 4 and r[3] == str(self.folder)}

    def record(self, stage: str) -> dict[str, Any]:
        """The newest submission of a stage that has only one folder."""
        (path,) = self.store.glob(f"{stage}/*/.jobs/job.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    def job(self, stage: str) -> str:
        """Id of the stage's last job."""
        return str(self.record(stage)["jobs"][-1]["id"])

    def history(self, job: str) -> list[str]:
        """States of a job's attempts in accounting, oldest first."""
        text = self.cluster.slurm("sacct", "-X", "-n", "-P", "--duplicates", "-j", job, "--format=State")
        return [line.split()[0] for line in text.splitlines() if line.strip()]

    def states(self) -> dict[str, set[str]]:
        """Stage -> final states of its jobs (tasks of arrays too)."""
        found: dict[str, set[str]] = {}
        for path in self.store.glob("*/*/.jobs/job.json"):
            ids = [j["id"] for j in json.loads(path.read_text())["jobs"]]
            text = self.cluster.slurm("sacct", "-X", "-n", "-P", "-j", ",".join(ids), "--format=State")
            found.setdefault(path.parts[-4], set()).update(line.split()[0] for line in text.splitlines() if line)
        return found

    def settled(self, seconds: float = 420, *, expect_all: bool = True) -> None:
        """Wait until nothing of this home is queued or runs."""
        wait(lambda: not self.queue(), seconds, every_s=1.0, what=f"an empty queue; now {self.queue()}")

    def stage(self, name: str) -> Path:
        """The only folder of a stage."""
        (found,) = [p for p in (self.store / name).iterdir() if not p.name.startswith(".")]
        return found

    def manifest(self, name: str) -> dict[str, Any]:
        """The manifest of a stage that has one folder."""
        found: dict[str, Any] = json.loads((self.stage(name) / "manifest.json").read_text())
        return found

    def processes(self, *words: str) -> list[int]:
        """Ids of processes of the ordinary user whose command line holds all `words`, and this home's folder."""
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                try:
                    line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                except OSError:
                    continue
                if all(w in line for w in (*words, str(self.folder))) and "slurm/devcluster" not in line:
                    found.append(int(process.name))
        return sorted(found)

    def ranks(self, stage: str = "train") -> list[int]:
        """Process ids of a stage's ranks (not of srun)."""
        return [p for p in self.processes("cathpc.dispatch.job", f"/store/{stage}/") if _is_python(p)]

    def own(self) -> None:
        """Give everything in the home to the ordinary user."""
        for path in [self.folder, *self.folder.rglob("*")]:
            shutil.chown(path, USER, USER) if not path.is_symlink() else os.lchown(path, *_ids())

    def logs(self, stage: str) -> str:
        """All logs of a stage."""
        return "\n".join(p.read_text(errors="replace") for p in sorted(self.folder.glob(f"runs/*/logs/{stage}/*.out")))


def _is_python(pid: int) -> bool:
    try:
        return "python" in os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return False


def _ids() -> tuple[int, int]:
    import pwd

    entry = pwd.getpwnam(USER)
    return entry.pw_uid, entry.pw_gid


def copy_store(source: Path, home: Site, *stages: str) -> None:
    """Copy the finished folders of these stages, without what the dispatcher left there."""
    for stage in stages:
        shutil.copytree(
            source / stage, home.store / stage, symlinks=True, ignore=shutil.ignore_patterns(".jobs", "claim-*.json")
        )
    home.own()
