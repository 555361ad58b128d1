"""What a training writes line by line: `metrics.jsonl` and `samples.jsonl`, both by rank 0.

Every line has `attempt` and `global_step`. An attempt opens with {"start": true}: what an earlier attempt wrote of
later steps is superseded, because these steps are taken again. Files grow with steps, `samples.jsonl` with rows x
epochs (some 8 bytes each).

`metrics.jsonl`, after a step: global_step (steps done), epoch, loss (nats a supervised token, over the global batch),
lr, grad_norm (before clipping), tokens and supervised_tokens (of this step), tokens_seen (of all steps), step_s (wall
time), tokens_per_s, tokens_per_s_per_rank, mfu (see `cathpc.train.flops`; absent where the card's peak is not known),
seconds {data, forward, backward, step}, memory_gb (highest so far, of rank 0), time (Unix); `fault` where the step was
dropped (loss and grad_norm are left out where they are not finite), `slow_ranks` where some compute slowly. After an
evaluation: eval_loss, seconds {eval}; after a checkpoint: seconds {save}, for which the training waited.
`samples.jsonl`, after a step: epoch and the rows of packed data that the ranks consumed.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
SAMPLES = "samples.jsonl"


class Log:
    """An append-only JSONL file of one attempt; a line is in the file when `write` returns, on the disk after `sync`.

    A full disk ends no training: lines wait in memory and are written when there is room again. Memory then grows with
    the steps.
    """

    def __init__(self, path: Path, global_step: int, *, began: float = 0.0) -> None:
        self.path = path
        self.attempt = 1 + _last_attempt(path)
        self.file = path.open("ab", buffering=0)
        self.waiting = b"" if _ends_a_line(path) else b"\n"  # a killed attempt left half a line
        self.failed = False
        self.write({"start": True, "global_step": global_step, "time": began or time.time()})

    def write(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self.waiting += json.dumps({"attempt": self.attempt, **row}).encode() + b"\n"
        try:
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting) :]
            self.failed = False
        except OSError as error:
            if not self.failed:  # once, not at every step
                say(f"cathpc: {self.path} cannot be written ({error.strerror}); the training goes on and tries again")
            self.failed = True

    def sync(self) -> None:
        """Wait until all rows are on the disk, but for those that it refuses."""
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            say(f"cathpc: {self.path} cannot be synced ({error.strerror})")

    def close(self) -> None:
        """Sync and close."""
        self.sync()
        self.file.close()


def say(line: str) -> None:
    """Print a line for people; a log that cannot be written (a full disk) hinders no training."""
    try:
        print(line, flush=True)
    except OSError:
        pass


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _last_attempt(path: Path) -> int:
    """Number of the attempt that opened last; parses only the lines that open one."""
    if not path.exists():
        return 0
    with path.open(encoding="utf-8", errors="replace") as file:
        return max((row["attempt"] for row in _rows(line for line in file if '"start"' in line)), default=0)


def _rows(texts: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in texts:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the half line of a killed attempt
        if isinstance(row, dict) and "attempt" in row and "global_step" in row:
            yield row


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """All rows of a log, in order, superseded ones too; half lines are passed over."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from _rows(iter(file))


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a log that count, in order: an attempt that starts at step s supersedes the rows after s before it,
    and whatever an earlier attempt that still lives writes after it."""
    rows: list[dict[str, Any]] = []
    attempt = 0
    for row in lines(path):
        if row.get("start"):
            attempt = row["attempt"]
            while rows and rows[-1]["global_step"] > row["global_step"]:
                rows.pop()
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


def consumed(path: Path) -> Counter[int]:
    """How often each row of packed data was trained on, by the ledger `samples.jsonl`."""
    return Counter(bin for row in read(path) for bin in row["bins"])


def held_s(path: Path) -> float:
    """Seconds for which all attempts held their nodes, from each one's start to its last line in a metrics file."""
    first: dict[int, float] = {}
    last: dict[int, float] = {}
    for row in lines(path):
        if "time" in row:
            first.setdefault(row["attempt"], row["time"])
            last[row["attempt"]] = row["time"]
    return sum(last[attempt] - first[attempt] for attempt in first)


def goodput(path: Path) -> float:
    """Share of the held time that made progress: steps that count and changed the weights, over all attempts.

    What an attempt did after its last line (a few seconds at most) is not seen, nor the wait in the queue.
    """
    held = held_s(path)
    progress = sum(row["step_s"] for row in read(path) if "step_s" in row and "fault" not in row)
    return progress / held if held else 0.0


def memory_gb() -> float:
    """Most memory that this process used so far: of the GPU where there is one, else resident; in GB of 1e9 bytes."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resident_peak() / 1e9


def resident_peak() -> int:
    """Most bytes that this process had in memory so far. Linux's `ru_maxrss` would count what the process had before
    its exec, as a copy of its parent."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            (line,) = (line for line in file if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    except OSError:  # no Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
