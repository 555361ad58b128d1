"""An offline run through three requeues: a real training, killed three times, read back from W&B's files, then sent."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cathpc.train.metrics import by_step
from tests import wandb_reader
from tests.e2e.harness import Home
from tests.e2e.test_smoke import SMOKE, _ranks, _wait
from tests.wandb_server import Server

WORDS = (SMOKE, "train.epochs=40", "evaluate.max_probes=2")
KILLS = 3
FIGURES = ("loss", "lr", "grad_norm", "tokens", "tokens_seen", "tokens_per_s", "memory_gb", "step_s", "attempt", "time")


def newest(checkpoints: Path) -> int:
    return max((int(p.parent.name.removeprefix("step-")) for p in checkpoints.glob("step-*/manifest.json")), default=0)


def logged(folder: Path) -> int:
    steps = by_step(folder / "metrics.jsonl")
    return max((row["global_step"] for row in steps), default=0)


def killed(home: Home, saved: int) -> int:
    """Start the run, kill its training in the steps after a checkpoint behind `saved`; the step of the newest one."""
    running = home.start(*WORDS)
    _wait(lambda: len(_ranks(home.store)) >= 2 or running.poll() is not None, 1500)
    (folder,) = (home.store / "train").iterdir()
    _wait(lambda: logged(folder) > newest(folder / "checkpoints") > saved or running.poll() is not None, 1500)
    for pid in _ranks(home.store):
        os.kill(pid, signal.SIGKILL)
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 1, out
    return newest(folder / "checkpoints")


def compare(history: list[dict[str, Any]], truth: list[dict[str, Any]]) -> None:
    """Every step of `metrics.jsonl` is there once, in its order, with all its figures."""
    rows = [row for row in history if "global_step" in row]
    assert [row["global_step"] for row in rows] == [row["global_step"] for row in truth]
    for row, true in zip(rows, truth, strict=True):
        for key in FIGURES:
            assert row.get(f"train/{key}") == true.get(key), f"step {true['global_step']}: {key}"
        assert row.get("eval/loss") == true.get("eval_loss")
        assert {k.rpartition("/")[2]: v for k, v in row.items() if k.startswith("train/seconds/")} == true["seconds"]
    assert rows[-1]["train/requeues"] == KILLS and 0 < rows[-1]["train/goodput"] <= 1


@pytest.mark.timeout(3600)
def test_every_step_is_there_once_after_three_requeues_and_once_more_on_the_server(tmp_path: Path) -> None:
    home = Home(tmp_path)
    saved = 0
    for _ in range(KILLS):
        saved = killed(home, saved)
    done = home.run(*WORDS, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "W&B      offline (as configured)" in done.stdout
    read_back(home)


def read_back(home: Home) -> None:
    """Compare W&B's files, and what a server gets of two calls of `sync`, with what the training wrote."""
    (folder,) = (home.store / "train").iterdir()
    raw = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    truth = by_step(folder / "metrics.jsonl")
    steps = [row["global_step"] for row in truth]
    assert max(row["attempt"] for row in raw) == KILLS + 1 and steps == list(range(len(steps)))
    taken = Counter(row["global_step"] for row in raw if "step_s" in row)
    assert max(taken.values()) > 1, "steps were taken again"

    (report,) = (home.store / "report").iterdir()
    files = {
        r.run.job_type: f for f in report.rglob("run-*.wandb") for r in wandb_reader.records(f) if r.HasField("run")
    }
    assert len(files) == 13, "every stage has left its run"
    compare(wandb_reader.history(files["train"]), truth)

    with Server() as server:
        reach = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        for _ in range(2):
            sent = home.run("sync", *WORDS, timeout=1500, **reach)
            assert sent.returncode == 0, sent.stdout + sent.stderr
        assert sent.stdout.count("up to date") == 13
        (run,) = [name for name, facts in server.runs.items() if facts["jobType"] == "train"]
        compare(server.history[run], truth)
        assert {facts["groupName"] for facts in server.runs.values()} == {"smoke"}
        assert ("smoke-export", "model") in {(n, a["artifactTypeName"]) for n, a in server.artifacts.items()}
