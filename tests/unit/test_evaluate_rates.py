"""Rates by constraint, instruction and session, and their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cathpc.evaluate import rates


def row(*turns: list[bool], conflicts: tuple[int, ...] = (), kind: str = "lowercase") -> dict[str, Any]:
    """A session whose turns have these verdicts."""
    checks = [{"type": kind, "turn": n, "passed": p} for n, turn in enumerate(turns, 1) for p in turn]
    return {"checks": checks, "passed": all(c["passed"] for c in checks), "conflicts": list(conflicts)}


def test_rates_of_one_session_are_those_of_sysbench() -> None:
    session = row([True, True], [True], [False, True], [True], [False, False], conflicts=(3, 5))
    found = rates.tally(session)
    assert found["csr"] == (5, 8)
    assert found["isr"] == (3, 5)
    assert found["ssr"] == (pytest.approx(2 / 5), 1)  # the first two turns hold, the third does not
    assert found["sessions"] == (0, 1)
    assert found["aligned"] == (3, 3) and found["conflict"] == (0, 2)
    assert found["facts"] == (0, 0)


def test_a_later_success_does_not_mend_the_stability_of_a_session() -> None:
    assert rates.tally(row([False], [True], [True]))["ssr"] == (0, 1)
    assert rates.tally(row([True], [True], [True]))["ssr"] == (1, 1)


def test_turns_without_a_constraint_are_no_instructions() -> None:
    assert rates.tally(row([True], [], [False]))["isr"] == (1, 2)


def test_facts_of_the_character_are_counted_apart() -> None:
    assert rates.tally(row([True], [False], kind="fact"))["facts"] == (1, 2)


def test_constraints_are_pooled_over_sessions_and_sessions_are_averaged() -> None:
    rows = {"base": [row([True]), row([False], [False], [False])]}
    found = rates.compared(rows, 100, 0)["base"]
    assert found["csr"]["share"] == 1 / 4 and found["ssr"]["share"] == 1 / 2 and found["ssr"]["probes"] == 2
    assert found["facts"] is None and found["conflict"] is None


def test_interval_shrinks_with_data_and_knows_certainty() -> None:
    def share(values: np.ndarray[Any, Any]) -> dict[str, float]:
        counts = np.stack([values, np.ones_like(values)], axis=1)
        found = rates.share(counts, rates.draw(len(values), 2000, 0))
        assert found is not None
        return found

    sure = share(np.ones(30))
    assert (sure["share"], sure["low"], sure["high"]) == (1.0, 1.0, 1.0)
    coin = np.tile([0.0, 1.0], 20)
    many, few = share(coin), share(coin[:10])
    assert 0.25 < many["low"] < 0.45 < 0.55 < many["high"] < 0.75
    assert few["high"] - few["low"] > many["high"] - many["low"]


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    generator, hits = np.random.default_rng(1), 0
    for _ in range(200):
        counts = np.stack([generator.random(60) < 0.4, np.ones(60)], axis=1).astype(float)
        found = rates.share(counts, rates.draw(60, 400, 0))
        assert found is not None
        hits += found["low"] <= 0.4 <= found["high"]
    assert 0.88 <= hits / 200 <= 0.99


def test_difference_is_paired() -> None:
    base = [row([n % 2 == 0]) for n in range(20)]
    same = rates.compared({"base": base, "tuned": base}, 500, 0)["difference"]["isr"]
    assert same == {"share": 0.0, "low": 0.0, "high": 0.0}
    better = rates.compared({"base": [row([False])] * 20, "tuned": base}, 500, 0)["difference"]
    assert better["isr"]["share"] == 0.5 and better["isr"]["low"] > 0.2 and better["facts"] is None


def test_families_are_chosen_by_row() -> None:
    rows = {"base": [row([True]) | {"family": "a"}, row([False]) | {"family": "b"}]}
    assert rates.compared(rows, 50, 0, lambda r: r["family"] == "b")["base"]["csr"]["share"] == 0.0
