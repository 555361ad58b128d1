"""Steps that a rollback passes over: `passed.json` in the stage's folder, [first, last] of each range."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from cathpc.errors import TryAgainError
from cathpc.models.weights import write_json
from cathpc.train import ranks

FILE = "passed.json"


def read(out: Path) -> list[list[int]]:
    """The ranges, in the order in which they were added."""
    try:
        ranges: list[list[int]] = json.loads((out / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    return ranges


def same(out: Path) -> list[list[int]]:
    """The ranges, on all ranks; raises TryAgainError where a node sees an older file than another."""
    ranges = read(out)
    mine = zlib.crc32(json.dumps(ranges).encode())
    if not ranks.agree(mine == ranks.from_first(mine)):
        raise TryAgainError(f"{out / FILE} is not the same yet on all nodes; run the same command again")
    return ranges


def add(out: Path, first: int, last: int) -> None:
    """Pass over the steps `first`..`last` from now on."""
    write_json(out / FILE, [*read(out), [first, last]])


def over(ranges: list[list[int]], step: int) -> bool:
    """Whether a step consumes its rows without training on them."""
    return any(first <= step <= last for first, last in ranges)
