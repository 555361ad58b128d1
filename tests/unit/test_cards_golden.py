"""The checks of cards against cards that people judged: the open rows of `tests/golden`.

Sealed rows are judged by `python -m tests.bench.cards_sealed` alone.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.bench.cards_sealed import Judged, judged, shares

ABOUT = {
    "leak": {"leak"},
    "invented": {"names", "identity", "contradiction"},  # made up but unmarked, or against the record
    "contradiction": {"contradiction"},
    "language": {"language"},
    "injection": {"injection"},
    "broken": {"schema"},
}
"""The checks that may catch a kind of bad card: one that falls to another is refused by luck."""


@pytest.fixture(scope="module")
def rows() -> list[Judged]:
    return judged(sealed=False)


def test_nine_of_ten_bad_cards_are_caught_and_of_good_ones_at_most_one_in_twenty_is_refused(rows: list[Judged]) -> None:
    caught, refused = shares(rows)
    seen = {row.id: row.seen for row in rows if row.bad != bool(row.seen)}
    assert len(rows) >= 120
    assert caught >= 0.9 and refused <= 0.05, seen


@pytest.mark.parametrize("kind", ABOUT)
def test_of_every_kind_four_of_five_bad_cards_fall_to_a_check_that_is_about_them(rows: list[Judged], kind: str) -> None:
    found = Counter(row.check for row in rows if row.kind == kind)
    assert sum(found[check] for check in ABOUT[kind]) >= 0.8 * found.total(), found


def test_nine_of_ten_bad_cards_fall_to_a_check_that_is_about_them(rows: list[Judged]) -> None:
    bad = [row for row in rows if row.bad]
    assert {row.kind for row in bad} == set(ABOUT)
    by_luck = {row.id: (row.check, row.seen) for row in bad if row.check not in ABOUT[row.kind]}
    assert len(by_luck) <= 0.1 * len(bad), by_luck
