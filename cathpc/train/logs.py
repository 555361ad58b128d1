"""Rank 0's two logs and its line a step for people."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from cathpc.train import metrics
from cathpc.train.batches import EMPTY

if TYPE_CHECKING:
    from cathpc.train.config import TrainConfig


class Logs:
    """`metrics.jsonl`, `samples.jsonl` and the terminal."""

    def __init__(self, out: Path, global_step: int, config: TrainConfig) -> None:
        began = float(os.environ.get("SLURM_JOB_START_TIME") or 0) or psutil.Process().create_time()
        self.metrics = metrics.Log(out / metrics.METRICS, global_step, began=began)
        self.samples = metrics.Log(out / metrics.SAMPLES, global_step)
        self.ranks_per_node = config.ranks_per_node

    def step(self, row: dict[str, Any], rows: list[int], *, shown: bool) -> None:
        """Write a step's metrics and the rows that the ranks say they consumed."""
        self.metrics.write(row)
        where = {"global_step": row["global_step"], "epoch": row["epoch"]}
        self.samples.write({**where, "bins": [number for number in rows if number != EMPTY]})
        if shown:
            mfu = f"  MFU {row['mfu']:5.1%}" if "mfu" in row else ""
            metrics.say(
                f"step {row['global_step']:6d}  epoch {row['epoch'] + 1:2d}  loss {row.get('loss', math.nan):7.4f}  "
                f"lr {row['lr']:.3e}  grad {row.get('grad_norm', math.nan):8.3f}  "
                f"{row['tokens_per_s']:9.1f} tokens/s{mfu}  {row['memory_gb']:6.2f} GB"
            )
        if "fault" in row:
            metrics.say(f"step {row['global_step']:6d}  is dropped: {row['fault']}")
        for rank in row.get("slow_ranks", ()):
            metrics.say(
                f"step {row['global_step']:6d}  rank {rank} (node {rank // self.ranks_per_node} of this job) computes "
                f"slowly and holds up the others: look at its clocks and its temperature"
            )

    def sync(self) -> None:
        """Wait until both are on the disk."""
        self.metrics.sync()
        self.samples.sync()

    def close(self) -> None:
        """Close both."""
        self.metrics.close()
        self.samples.close()
