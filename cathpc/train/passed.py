"""Steps that a rollback passes over: `passed.json` in the stage's folder, [first, last] of each range."""

from __future__ import annotations

import json
from pathlib import Path

from cathpc.models.weights import write_json

FILE = "passed.json"


def read(out: Path) -> list[list[int]]:
    """The ranges, in the order in which they were added."""
    try:
        ranges: list[list[int]] = json.loads((out / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return ranges


def add(out: Path, first: int, last: int) -> None:
    """Pass over the steps `first`..`last` from now on."""
    write_json(out / FILE, [*read(out), [first, last]])


def over(ranges: list[list[int]], step: int) -> bool:
    """Whether a step consumes its rows without training on them."""
    return any(first <= step <= last for first, last in ranges)
