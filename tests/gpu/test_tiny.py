"""`python -m tests.gpu --tiny`: the command for GPUs does all that it promises, on the CPU with tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.bench.contenders import OURS, PEER

ROOT = Path(__file__).parents[2]


def test_the_command_for_gpus_does_all_its_parts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.gpu", "--tiny", "--minutes", "30", "--out", str(tmp_path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert file.name == f"cpu-{found['date'][:10]}.json"
    assert found["failed"] == []
    assert found["versions"]["deepspeed"]
    assert all(case["equal"] for case in found["card"]["attention"])
    (one,) = found["training"].values()
    assert one[OURS]["steps"] == 4
    assert one[OURS]["tokens_per_s"] > 0 and one[OURS]["mfu"] > 0
    assert one[OURS]["memory"]["allocated"] > 0 and one["plan"]["tensors"] > 0
    assert "skipped" in one[PEER] or one["losses_apart"] < 0.01
    assert found["deterministic"]["equal"] and found["deterministic"]["tensors"] == 20
    assert "a resumed deterministic training is the same" in done.stdout
