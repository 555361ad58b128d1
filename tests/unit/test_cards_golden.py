"""The checks of cards against cards that people judged: the open half of `tests/golden`.

The sealed half is judged by `python -m tests.bench.cards_sealed` alone.
"""

from __future__ import annotations

from tests.bench.cards_sealed import judged, shares


def test_nine_of_ten_bad_cards_are_caught_and_of_good_ones_at_most_one_in_ten_is_refused() -> None:
    rows = judged(sealed=False)
    assert len(rows) == 60
    caught, refused = shares(rows)
    seen = {row.id: row.seen for row in rows if row.bad != bool(row.seen)}
    assert caught >= 0.9 and refused <= 0.1, seen


def test_every_kind_of_bad_card_is_caught_by_a_check_that_is_about_it() -> None:
    expected = {
        "leak": {"leak"},
        "invented": {"names", "identity"},
        "contradiction": {"contradiction"},
        "language": {"language"},
        "injection": {"injection"},
        "broken": {"schema"},
    }
    found = {kind: {row.check for row in judged(sealed=False) if row.kind == kind} for kind in expected}
    assert all(found[kind] & checks for kind, checks in expected.items()), found
