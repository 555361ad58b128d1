"""The steps of a training as W&B gets them: `metrics.jsonl` in, one row a step out, while the file grows or after.

A row is final once a later step has begun, or the training is complete: only then is it given out, with the held-out
loss and the time of the save that belong to its step. Of steps that were taken again after a requeue the newest version
counts, as long as the row was not given out yet. Memory: some hundred bytes a step.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

AXIS = "global_step"


class Tail:
    """Reads what was appended since it last looked; a line that is not whole yet is left for the next look."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._attempt = 0
        self._attempts: set[int] = set()
        self._steps: dict[int, dict[str, Any]] = {}
        self._useful: dict[int, float] = {}
        """Step -> seconds that made progress."""
        self._progress_s = 0.0
        self._faults: set[int] = set()
        self._spans: dict[int, tuple[float, float]] = {}
        """Attempt -> time of its start and of its last line."""
        self._given = -1

    def read(self) -> None:
        """Take in the lines that are whole."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                block = file.read()
        except OSError:
            return
        whole = block[: block.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the half line of a killed attempt
            if isinstance(row, dict) and "attempt" in row and AXIS in row:
                self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        step, attempt = int(row[AXIS]), int(row["attempt"])
        if "time" in row:
            first = self._spans.get(attempt, (row["time"], 0.0))[0]
            self._spans[attempt] = first, row["time"]
        if row.get("start"):
            self._attempt = attempt
            self._steps = {s: found for s, found in self._steps.items() if s <= step}
            self._useful = {s: seconds for s, seconds in self._useful.items() if s <= step}
            self._progress_s = sum(self._useful.values())
            self._faults = {s for s in self._faults if s <= step}
            return
        if attempt < self._attempt:  # of an earlier attempt that still lives
            return
        self._attempts.add(attempt)
        if "fault" in row:
            self._faults.add(step)
        elif "step_s" in row:
            self._useful[step] = float(row["step_s"])
            self._progress_s += self._useful[step]
        into = self._steps.setdefault(step, {AXIS: step})
        into.update(_flat(row))
        held = sum(last - first for first, last in self._spans.values())
        if held > 0:
            into["train/goodput"] = round(min(1.0, self._progress_s / held), 6)
        into["train/requeues"] = len(self._attempts) - 1
        into["train/spikes"] = len(self._faults)

    def final(self, *, complete: bool = False) -> list[dict[str, Any]]:
        """The rows that are final and were not given out yet, rising; all that are left where the training is
        `complete`."""
        newest = max(self._steps, default=-1)
        ready = sorted(s for s in self._steps if s > self._given and (complete or s < newest))
        if ready:
            self._given = ready[-1]
        return [self._steps.pop(step) for step in ready]


def _flat(row: dict[str, Any]) -> dict[str, float]:
    """A line's figures under W&B's names: `train/loss`, `eval/loss`, `train/seconds/forward`."""
    flat = {key: value for key, value in row.items() if key != AXIS}
    flat |= {f"seconds/{key}": value for key, value in row.get("seconds", {}).items()}
    found = {}
    for key, value in flat.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            found[f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"] = value
    if "slow_ranks" in row:
        found["train/slow_ranks"] = len(row["slow_ranks"])
    return found
