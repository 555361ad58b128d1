"""A training on the cluster that goes at the pace that a test sets, and what must be true of it when it is over.

Its data stages are those of the session's finished run, so a command submits `train` and what follows. A step of the
tiny model takes a tenth of a second, which no limit would interrupt: ranks wait in front of the question that the loop
asks after each step, whether to stop. The wait changes no result, so the calm run that all are compared with has none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cathpc.data.pack import COUNTS
from cathpc.train import metrics
from tests.slurm.hooks import plant
from tests.slurm.site import DEVCLUSTER, Site, copy_store, wait

BEFORE = ("pull", "base", "reference", "pool", "refusal", "score", "select", "cards", "pack")
EPOCHS, STEPS, INTERVAL = 6, 24, 4
TRAINING = (
    "+experiment=smoke",
    "cluster=devcluster",
    "train.nodes=1",
    "train.ranks_per_node=2",
    "train.global_batch=2",
    f"train.save_every_steps={INTERVAL}",
    "train.eval_every_steps=1000",
    "evaluate.max_probes=1",
)
HELD_S = 1e6
PACED = """
@after_import("cathpc.train.stop")
def pace(stop):
    plain = stop.requested

    def requested():
        began = time.monotonic()
        while time.monotonic() - began < float((HOOKS / "pace").read_text()):
            time.sleep(0.05)
        return plain()

    stop.requested = requested
"""


@dataclass(frozen=True)
class Training:
    """A training in a home of its own, and the command that submits it."""

    site: Site
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The stage's folder."""
        return self.site.stage("train")

    @property
    def job(self) -> str:
        """Id of its job; of a chain, of the last segment."""
        return self.site.job("train")

    def submit(self, *, pace_s: float, hook: str = "", everything: bool = False, **environment: str) -> None:
        """Submit it, with export and, where `everything` is wanted, evaluation and report behind it."""
        planted = plant(self.site, PACED + hook)
        self.pace(pace_s)
        self.site.must(*self.overrides, **planted, **environment)
        if not everything:
            self.site.cluster.slurm("scancel", self.site.job("evaluate"), self.site.job("report"))

    def pace(self, seconds: float) -> None:
        """From now on a step waits so long; `HELD_S` holds the training where it is."""
        path = self.site.folder / "hooks" / "pace"
        path.with_name(".pace").write_text(str(seconds))
        os.replace(path.with_name(".pace"), path)

    def rows(self) -> list[dict[str, Any]]:
        """A row a step that was taken, those of lost steps too."""
        return [row for row in metrics.lines(self.folder / metrics.METRICS) if "loss" in row]

    def started(self) -> int:
        """How many attempts have come as far as the first step."""
        found = self.site.store.glob(f"train/*/{metrics.METRICS}")
        return sum("start" in row for path in found for row in metrics.lines(path))

    def step(self) -> int:
        """The last step that was taken."""
        return max((row["global_step"] for row in self.rows()), default=0)

    def saved(self) -> int:
        """The step of the newest checkpoint."""
        return max((int(p.parent.name[5:]) for p in self.folder.glob("checkpoints/step-*/manifest.json")), default=0)

    def reach(self, step: int, seconds: float = 240) -> None:
        """Wait until so many steps were taken."""
        wait(lambda: self.step() >= step or self._over(), seconds, what=f"step {step}")
        assert self.step() >= step, self.site.logs("train")

    def _over(self) -> bool:
        return self.job not in self.site.queue()

    def restarts(self) -> int:
        """How often Slurm has put the job back."""
        (line,) = self.site.cluster.slurm("scontrol", "--oneliner", "show", "job", self.job).splitlines()
        return int(dict(word.partition("=")[::2] for word in line.split())["Restarts"])

    def back(self, times: int = 1, seconds: float = 240) -> None:
        """Wait until the job has come back so many times."""
        wait(lambda: self.restarts() >= times or self._over(), seconds, what=f"attempt {times + 1}")
        assert self.restarts() >= times, self.site.logs("train")

    def running(self, seconds: float = 240) -> str:
        """Wait until the job runs; returns its nodes."""

        def nodes() -> str:
            return self.site.cluster.slurm("squeue", "--noheader", "--states=R", f"--job={self.job}", "--format=%N")

        return str(wait(nodes, seconds, what="a running training")).strip()

    def attempts(self) -> list[str]:
        """Accounting's word for the end of each attempt, oldest first."""
        return self.site.history(self.job)

    def status(self) -> dict[str, Any]:
        """What `status` knows of the training."""
        found: dict[str, Any] = json.loads(self.site.must("status", *self.overrides, "--json"))["train"]
        return found

    def finish(self, seconds: float = 420) -> None:
        """Go on without waiting until everything is over; the training and its export have to be done."""
        self.pace(0)
        self.site.settled(seconds)
        states = self.site.states()
        assert self.attempts()[-1] == "COMPLETED", f"{self.attempts()}\n{self.site.logs('train')}"
        assert states["export"] == {"COMPLETED"}, f"{states}\n{self.site.logs('export')}"

    def lost(self) -> int:
        """Steps that were taken twice."""
        return len(self.rows()) - len({row["global_step"] for row in self.rows()})


def losses(training: Training) -> dict[int, tuple[float, float]]:
    """Step -> loss and norm of the gradient."""
    rows = metrics.read(training.folder / metrics.METRICS)
    return {row["global_step"]: (row["loss"], row["grad_norm"]) for row in rows if "loss" in row}


def assert_same(training: Training, calm: Training) -> None:
    """Losses, held-out losses and exported weights equal to the bit; each record seen `epochs` times, no more."""
    assert training.folder.name == calm.folder.name, "the same fingerprint"
    assert losses(training) == losses(calm)
    assert sorted(losses(training)) == list(range(1, max(losses(calm)) + 1))
    mine, theirs = (json.loads((t.folder / "final.json").read_text()) for t in (training, calm))
    assert mine["evals"] == theirs["evals"]
    (one,), (other,) = ((t.site.stage("export") / "model").glob("*.safetensors") for t in (training, calm))
    assert one.read_bytes() == other.read_bytes()
    ledger = metrics.consumed(training.folder / metrics.SAMPLES)
    records = calm.site.manifest("pack")["summary"]["train"]["records"]
    in_row = np.load(calm.site.stage("pack") / "train/counts.npy")[:, COUNTS.index("records")]
    assert ledger == dict.fromkeys(range(len(in_row)), mine["epochs"]) and in_row.sum() == records


def preempt(training: Training, node: str = "", *, seconds: int = 5) -> str:
    """A job of a partition of higher rank takes a node of the training for itself; returns its id."""
    node = node or training.running()
    words = ["sbatch", "--parsable", "--partition=preempt", f"--nodelist={node}", "--exclusive", "--output=/dev/null"]
    folder = training.site.cluster.folder
    done = subprocess.run(
        [sys.executable, str(DEVCLUSTER), "shell", "--folder", str(folder), "--", *words, f"--wrap=sleep {seconds}"],
        cwd=training.site.folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def training(finished: Site, site: Site) -> Callable[..., Training]:
    """Makes the training of this test, with its own overrides."""

    def make(*overrides: str, epochs: int = EPOCHS) -> Training:
        copy_store(finished.store, site, *BEFORE)
        fast = () if any("health_check" in o for o in overrides) else ("cluster.health_check=false",)
        return Training(site, (*TRAINING, f"train.epochs={epochs}", *fast, *overrides))

    return make


@pytest.fixture(scope="session")
def calm(finished: Site, homes: Callable[[], Site]) -> Callable[..., Training]:
    """The uninterrupted training of so many epochs; made when it is first asked for."""
    made: dict[int, Training] = {}

    def make(epochs: int = EPOCHS) -> Training:
        if epochs not in made:
            home = homes()
            copy_store(finished.store, home, *BEFORE)
            made[epochs] = Training(home, (*TRAINING, f"train.epochs={epochs}"))
            made[epochs].submit(pace_s=0)
            made[epochs].finish()
            assert made[epochs].attempts() == ["COMPLETED"]
        return made[epochs]

    return make
