"""Runs `python -m cathpc` as a user would: in a process of its own, in an empty folder, with private stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NOBODY = 65534


@dataclass(frozen=True)
class Home:
    """A folder in which commands run; stores, runs and cache lie in it."""

    folder: Path

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cathpc", *arguments]

    def environment(self, **extra: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "HF_", "OMP_"))}
        return {**kept, "PYTHONPATH": str(ROOT), "HOME": str(self.folder), "COLUMNS": "160", **extra}

    def run(self, *arguments: str, timeout: float = 420, **extra: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start one command, to be killed or waited for by the test."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def manifests(self) -> dict[str, set[str]]:
        """Stage -> fingerprints of its finished folders."""
        found: dict[str, set[str]] = {}
        for manifest in self.store.glob("*/*/manifest.json"):
            found.setdefault(manifest.parts[-3], set()).add(manifest.parts[-2])
        return found

    def stage(self, name: str, run: str = "smoke") -> Path:
        """Folder of a stage of a run."""
        return (self.folder / "runs" / run / "stages" / name).resolve()

    def ledger(self, run: str = "smoke") -> list[dict[str, Any]]:
        """All events of a run."""
        text = (self.folder / "runs" / run / "ledger.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The one message of a refused command; fails when there is a traceback or more than one message."""
    assert "Traceback" not in result.stderr + result.stdout, result.stderr
    assert result.stderr.count("cathpc: ") == 1, result.stderr
    return result.stderr


def as_ordinary_user(command: list[str]) -> list[str]:
    """`command` as a user who is not root: the right to override permissions is what root must lose."""
    if os.getuid() != 0:
        return command
    accessible = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", sys.executable, "-c", "import cathpc"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd="/",
        capture_output=True,
    )
    if accessible.returncode == 0:
        return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command]
    lost = "-dac_override,-dac_read_search,-fowner"  # a checkout in root's home: root without its privileges
    return ["setpriv", f"--inh-caps={lost}", f"--bounding-set={lost}", *command]
