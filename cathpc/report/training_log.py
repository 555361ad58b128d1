"""The attempts at a training as its metrics file tells them: what each held its nodes for, which steps it lost.

Two passes over the file; memory grows with the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cathpc.train import metrics


@dataclass(frozen=True)
class TrainingLog:
    """What of a metrics file is not in its steps."""

    superseded: list[dict[str, Any]]
    """Rows of a step or an evaluation that a later attempt took again, in the order of the file."""
    attempts: list[dict[str, Any]]
    """One an attempt: `attempt`, `held` seconds, and of them `progress` (steps that count),
    `again` (steps that were lost), `eval`, `save` and `rest` (start, load, what came after the last line)."""


def read(path: Path) -> TrainingLog:
    """Read a metrics file; half lines of killed attempts are passed over."""
    counted = {(row["attempt"], row["global_step"]) for row in metrics.read(path)}
    superseded: list[dict[str, Any]] = []
    attempts: dict[int, dict[str, Any]] = {}
    for row in metrics.lines(path):
        number, step, now = row["attempt"], row["global_step"], row.get("time")
        fresh: dict[str, Any] = {"attempt": number, "began": now, "ended": now}
        mine = attempts.setdefault(number, fresh | dict.fromkeys(("progress", "again", "eval", "save"), 0.0))
        if row.get("time"):
            mine["ended"] = row["time"]
        if row.get("start"):
            continue
        counts = (number, step) in counted
        mine["progress" if counts and "fault" not in row else "again"] += row.get("step_s", 0.0)
        for phase in ("eval", "save"):
            mine[phase] += row.get("seconds", {}).get(phase, 0.0)
        if not counts:
            superseded.append(row)
    for mine in attempts.values():
        began, ended = mine.pop("began"), mine.pop("ended")
        spent = sum(mine[part] for part in ("progress", "again", "eval", "save"))
        mine["held"] = max(ended - began if began and ended else 0.0, spent)
        mine["rest"] = mine["held"] - spent
    return TrainingLog(superseded, list(attempts.values()))
