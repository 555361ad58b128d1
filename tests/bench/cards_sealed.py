"""The checks of cards against the sealed half of the judged ones: `python -m tests.bench.cards_sealed`.

Prints the share of the bad cards that are caught and of the good ones that are refused, each with its verdict, and ends
with code 1 below 90% or above 10%. Nothing is tuned on what it prints.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from cathpc.cards import card, rounds
from cathpc.cards.config import CardForm

GOLDEN = Path(__file__).parents[1] / "golden"
LEAST_CAUGHT, MOST_REFUSED = 0.9, 0.1


@dataclass(frozen=True)
class Judged:
    """A card of the golden files, and what the checks say of it."""

    id: str
    kind: str
    check: str
    """The check that refuses it; '' where none does."""
    seen: str

    @property
    def bad(self) -> bool:
        """Whether people found it bad."""
        return self.kind != "good"


def judged(*, sealed: bool) -> list[Judged]:
    """The cards of one half, judged by all checks that need no model."""
    layout, found = card.Layout(), []
    for name in ("cards_good.jsonl", "cards_bad.jsonl"):
        for line in (GOLDEN / name).read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["sealed"] is sealed:
                rules = rounds.rules_of(row, 5)
                _, checks = rounds.judged(row["raw"], row, rules, layout, CardForm.json)
                failed = next(((check, seen) for check, seen in checks.items() if seen), ("", ""))
                found.append(Judged(row["id"], row["kind"], *failed))
    return found


def shares(rows: list[Judged]) -> tuple[float, float]:
    """The share of the bad cards that are caught, and of the good ones that are refused."""
    bad, good = ([bool(row.seen) for row in rows if row.bad is kind] for kind in (True, False))
    return sum(bad) / len(bad), sum(good) / len(good)


def main() -> None:
    """Judge the sealed half and print it."""
    rows = judged(sealed=True)
    for row in rows:
        wrong = "" if row.bad == bool(row.seen) else "   <-- wrong"
        print(f"{row.id:<22} {row.check or 'passes':<14} {row.seen[:70]}{wrong}")
    caught, refused = shares(rows)
    print(f"{len(rows)} sealed cards: {caught:.1%} of the bad caught, {refused:.1%} of the good refused")
    raise SystemExit(caught < LEAST_CAUGHT or refused > MOST_REFUSED)


if __name__ == "__main__":
    main()
