"""What `doctor` finds: one `Check` a question, with what to do where it is not well."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class State(Enum):
    """How a check ended: a fault that stops a run is `failed`, one that costs time or comfort is `warned`."""

    passed = "pass"
    warned = "warn"
    failed = "fail"


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    state: State
    seen: str
    """What was found, with its figures."""
    advice: str = ""
    """What to do; empty where nothing is to be done."""
    group: str = ""
    """Heading under which it stands."""


def well(name: str, seen: str) -> Check:
    """A check that found nothing to do."""
    return Check(name, State.passed, seen)


def warn(name: str, seen: str, advice: str) -> Check:
    """A check that found something that costs time, or may."""
    return Check(name, State.warned, seen, advice)


def fail(name: str, seen: str, advice: str) -> Check:
    """A check that found what would stop a run."""
    return Check(name, State.failed, seen, advice)


def under(group: str, checks: list[Check]) -> list[Check]:
    """The checks under one heading."""
    return [replace(check, group=group) for check in checks]


def merged(found: dict[str, list[Check]]) -> list[Check]:
    """The checks of several nodes as one list: what all of them say alike stands once, else the nodes are named."""
    nodes: dict[Check, list[str]] = {}
    order: dict[str, int] = {}
    for node, checks in found.items():
        for check in checks:
            nodes.setdefault(check, []).append(node)
            order.setdefault(check.name, len(order))
    return [
        check if len(where) == len(found) else replace(check, seen=f"{', '.join(where)}: {check.seen}")
        for check, where in sorted(nodes.items(), key=lambda item: order[item[0].name])
    ]
