"""Probes: system prompts with instructions whose fulfilment a program can see.

In: a JSONL file, one probe a line: {"id", "family", "messages": [system, user, user, ...], "checks": [{"type", ...}]},
and "conflicts": [N, ...], the user turns (from 1) that ask for the contrary of the card, where there are some. The
answers between the user turns are the model's. A check is held against every answer, or with "turn": N against the
N-th.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from cathpc.errors import UserError
from cathpc.evaluate.checkers import Check, fault
from cathpc.record import Message, unit_hash

KEYS = ("id", "family", "messages", "checks")
SHIPPED = Path(__file__).parents[1] / "assets" / "probes.jsonl"


@dataclass(frozen=True)
class Probe:
    """One conversation to hold with a model, and what its answers have to fulfil."""

    id: str
    family: str
    messages: list[Message]
    checks: list[Check]
    conflicts: list[int] = field(default_factory=list)
    """User turns, from 1, that ask for the contrary of the card."""

    @property
    def turns(self) -> int:
        """The number of user turns."""
        return sum(m["role"] == "user" for m in self.messages)


def read(path: Path) -> list[Probe]:
    """The probes of `path`; raises a `UserError` that names file and line for whatever is wrong with them."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # no other line end: a text may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the probes cannot be read ({error}); set evaluate.probes to a JSONL file") from None
    probes: dict[str, Probe] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            probe = _probe(line)
            if probe.id in probes:
                raise ValueError(f"the id {probe.id!r} has been used before")
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        probes[probe.id] = probe
    if not probes:
        raise UserError(f"{path} holds no probe; a line is an object with id, family, messages and checks")
    return list(probes.values())


def _probe(line: str) -> Probe:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict) or set(row) - {"conflicts"} != set(KEYS):
        seen = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"an object with id, family, messages and checks (and conflicts) is expected, seen: {seen}")
    for key in ("id", "family"):
        if not isinstance(row[key], str) or not row[key]:
            raise ValueError(f"{key}={row[key]!r}, a text is expected")
    messages = row["messages"]
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and set(m) == {"role", "content"} and isinstance(m["content"], str) and m["content"].strip()
        for m in messages
    ):
        raise ValueError("messages: a list of objects with role and content (not empty) is expected")
    roles = [m["role"] for m in messages]
    if roles[:1] != ["system"] or len(roles) < 2 or any(role != "user" for role in roles[1:]):
        raise ValueError(f"messages: one system turn, then user turns are expected, seen: {', '.join(map(str, roles))}")
    if not isinstance(row["checks"], list) or not row["checks"]:
        raise ValueError("checks: a list with at least one check is expected")
    probe = Probe(**row)
    for number, check in enumerate(probe.checks, 1):
        if wrong := fault(check, probe.turns):
            raise ValueError(f"checks, number {number}: {wrong}")
    turns = range(1, probe.turns + 1)
    if not isinstance(probe.conflicts, list) or not all(type(t) is int and t in turns for t in probe.conflicts):
        raise ValueError(f"conflicts={probe.conflicts!r}, a list of user turns from 1 to {probe.turns} is expected")
    return probe


def choose(probes: list[Probe], most: int | None, seed: int) -> list[Probe]:
    """At most `most` probes, taken from the families in turn, each family in the order of a hash of its ids."""
    families: dict[str, list[Probe]] = {}
    for probe in sorted(probes, key=lambda p: unit_hash(p.id, seed)):
        families.setdefault(probe.family, []).append(probe)
    order = sorted(families, key=lambda f: unit_hash(f, seed))
    longest = max(map(len, families.values()), default=0)
    spread = [families[f][at] for at in range(longest) for f in order if at < len(families[f])]
    return spread if most is None else spread[:most]
