"""An offline run through three requeues: a real training, killed three times, read back from W&B's files, then sent."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest

from cathpc.train.metrics import by_step
from tests import wandb_reader
from tests.e2e.harness import Home
from tests.e2e.test_smoke import SMOKE, _ranks, _wait
from tests.wandb_server import Server

WORDS = (SMOKE, "train.epochs=40", "evaluate.max_probes=2")
KILLS = 3


def newest(checkpoints: Path) -> int:
    return max((int(p.parent.name.removeprefix("step-")) for p in checkpoints.glob("step-*/manifest.json")), default=0)


def killed(home: Home, saved: int) -> int:
    """Start the run, kill its training after a checkpoint behind the step `saved`; the step of the newest one."""
    running = home.start(*WORDS)
    _wait(lambda: len(_ranks(home.store)) >= 2 or running.poll() is not None, 1500)
    (folder,) = (home.store / "train").iterdir()
    _wait(lambda: newest(folder / "checkpoints") > saved or running.poll() is not None, 1500)
    for pid in _ranks(home.store):
        os.kill(pid, signal.SIGKILL)
    out, _ = running.communicate(timeout=300)
    assert running.returncode == 1, out
    return newest(folder / "checkpoints")


@pytest.mark.timeout(3600)
def test_every_step_is_there_once_after_three_requeues_and_once_more_on_the_server(tmp_path: Path) -> None:
    home = Home(tmp_path)
    saved = 0
    for _ in range(KILLS):
        saved = killed(home, saved)
    (folder,) = (home.store / "train").iterdir()
    done = home.run(*WORDS, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "W&B      offline (as configured)" in done.stdout

    raw = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    truth = by_step(folder / "metrics.jsonl")
    steps = [row["global_step"] for row in truth]
    assert max(row["attempt"] for row in raw) == KILLS + 1 and steps == list(range(1, len(steps) + 1))
    taken = Counter(row["global_step"] for row in raw if "step_s" in row)
    assert max(taken.values()) > 1, "steps were taken again"

    def compare(rows: list[dict[str, object]]) -> None:
        assert [row["global_step"] for row in rows] == steps
        for row, true in zip(rows, truth, strict=True):
            for key in ("loss", "lr", "grad_norm", "tokens", "tokens_seen", "tokens_per_s", "memory_gb", "attempt"):
                assert row[f"train/{key}"] == true[key], f"step {true['global_step']}: {key}"
            assert row.get("eval/loss") == true.get("eval_loss")
            assert {k.rpartition("/")[2]: v for k, v in row.items() if k.startswith("train/seconds/")} == true[
                "seconds"
            ]
        assert rows[-1]["train/requeues"] == KILLS and 0 < float(str(rows[-1]["train/goodput"])) <= 1

    (report,) = (home.store / "report").iterdir()
    files = {
        r.run.job_type: f for f in report.rglob("run-*.wandb") for r in wandb_reader.records(f) if r.HasField("run")
    }
    assert len(files) == 13, "every stage has left its run"
    compare([row for row in wandb_reader.history(files["train"]) if "train/loss" in row])

    with Server() as server:
        reach = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        for _ in range(2):
            sent = home.run("sync", *WORDS, timeout=900, **reach)
            assert sent.returncode == 0, sent.stdout + sent.stderr
        assert sent.stdout.count("up to date") == 13
        (run,) = [name for name, facts in server.runs.items() if facts["jobType"] == "train"]
        compare([row for row in server.history[run] if "train/loss" in row])
        assert {facts["groupName"] for facts in server.runs.values()} == {"smoke"}
        assert ("smoke-export", "model") in {(n, a["artifactTypeName"]) for n, a in server.artifacts.items()}
