"""How a running stage tells the foreground (and `status`) how far it is: one small JSON file in the stage's folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FILE = "progress.json"
_last: dict[Path, float] = {}


def report(out: Path, done: float, total: float, unit: str, *, note: str = "", every_s: float = 0.5) -> None:
    """Write `done` of `total` `unit`s to `out/progress.json`, at most once in `every_s` seconds (always when done).

    A failure to write is ignored: progress is a convenience and must never end a stage.
    """
    now = time.monotonic()
    if done < total and now - _last.get(out, -1e9) < every_s:
        return
    _last[out] = now
    temporary = out / f".{FILE}.{os.getpid()}"
    try:
        temporary.write_text(
            json.dumps({"done": done, "total": total, "unit": unit, "note": note, "time": time.time()})
        )
        os.replace(temporary, out / FILE)
    except OSError:
        pass


def counter(out: Path, before: int, total: int, unit: str) -> Callable[[int], None]:
    """A function that reports `before` plus the number it is given: for a part of a longer job."""
    return lambda done: report(out, before + done, total, unit)


def read(out: Path) -> dict[str, Any] | None:
    """The last report of the stage in `out`, or None."""
    try:
        found = json.loads((out / FILE).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def duration(seconds: float) -> str:
    """'8.4 s', '3 min 20 s', '2 h 05 min', '13 d 4 h'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def time_unit(longest_s: float) -> tuple[int, str]:
    """(seconds of the unit, its name) for an axis that reaches to `longest_s`: seconds, minutes or hours."""
    return (3600, "hours") if longest_s > 3 * 3600 else (60, "minutes") if longest_s > 180 else (1, "seconds")
