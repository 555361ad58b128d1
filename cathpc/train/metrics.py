"""What a training writes line by line: `metrics.jsonl` and `samples.jsonl`, both by rank 0.

Every line has `attempt` and `global_step`. An attempt opens with {"start": true}: what an earlier attempt wrote of
later steps is superseded, because these steps are taken again. Files grow with steps (`samples.jsonl`: with records x
epochs).

`metrics.jsonl`, after a step: global_step (steps done), epoch, loss (nats a supervised token, over the global batch),
lr, grad_norm (before clipping), tokens and supervised_tokens (of this step), tokens_seen (of all steps),
tokens_per_s, seconds {data, forward, backward, step}, memory_gb (highest so far, of rank 0). After an evaluation:
eval_loss, seconds {eval}; after a checkpoint: seconds {save}. `samples.jsonl`, after a step: epoch, bins and records
that the ranks consumed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections import Counter
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"


class Log:
    """An append-only JSONL file of one attempt; a line is in the file when `write` returns, on the disk after
    `sync`."""

    def __init__(self, path: Path, global_step: int) -> None:
        self.attempt = 1 + max((row["attempt"] for row in _lines(path)), default=0)
        self.file = path.open("a", encoding="utf-8")
        if self.file.tell() and not _ends_a_line(path):
            self.file.write("\n")  # a killed attempt left half a line
        self.write({"start": True, "global_step": global_step})

    def write(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self.file.write(json.dumps({"attempt": self.attempt, **row}) + "\n")
        self.file.flush()

    def sync(self) -> None:
        """Wait until all rows are on the disk."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self.file.close()


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # the half line of a killed attempt
                if isinstance(row, dict) and "attempt" in row and "global_step" in row:
                    rows.append(row)
    return rows


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a log that count, in order: an attempt that starts at step s supersedes the rows after s before it,
    and whatever an earlier attempt that still lives writes after it."""
    rows: list[dict[str, Any]] = []
    attempt = 0
    for row in _lines(path):
        if row.get("start"):
            attempt = row["attempt"]
            rows = [earlier for earlier in rows if earlier["global_step"] <= row["global_step"]]
        elif row["attempt"] >= attempt:
            rows.append(row)
    return rows


def by_step(path: Path) -> list[dict[str, Any]]:
    """One row a global step of a metrics file: those of step, evaluation and checkpoint merged, `seconds` too."""
    steps: dict[int, dict[str, Any]] = {}
    for row in read(path):
        merged = steps.setdefault(row["global_step"], {})
        seconds = {**merged.get("seconds", {}), **row.get("seconds", {})}
        merged.update(row)
        merged["seconds"] = seconds
    return [steps[step] for step in sorted(steps)]


def consumed(path: Path) -> Counter[str]:
    """How often each record was trained on, by the ledger `samples.jsonl`."""
    return Counter(record for row in read(path) for record in row["records"])


def memory_gb() -> float:
    """Most memory that this process used so far: of the GPU where there is one, else resident; in GB of 1e9 bytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
