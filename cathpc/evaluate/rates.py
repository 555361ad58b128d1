"""Rates of obedience, as SysBench (Qin et al. 2024, arXiv:2408.10943, section 4.2) defines them, with their intervals.

In: rows of answers, one a session (a probe and one model's answers). Out: shares with 95% intervals. `csr`: constraints
satisfied of all; `isr`: instructions (user turns) whose constraints are all satisfied; `ssr`: how far a session holds,
the share of its turns before the first instruction that is not satisfied, on average over sessions. `sessions`: those
that hold throughout.

Each rate is a ratio of sums over sessions. Its interval is a percentile bootstrap over probes (Efron 1979), since the
turns of one session depend on each other; models are compared on the same resamples, paired. Time and memory grow with
probes x resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]
Row = dict[str, Any]
Share = dict[str, float]
"""`share`, `low`, `high` and the number of `probes` that count; of a difference without the last."""
MARKS = ("reasoning", "thought")
"""Checks that ask for a chain of thought."""


def instructions(row: Row) -> list[tuple[int, bool]]:
    """(turn, all of its constraints satisfied), in order, of the turns that are checked."""
    turns: dict[int, bool] = {}
    for check in row["checks"]:
        turns[check["turn"]] = turns.get(check["turn"], True) and check["passed"]
    return sorted(turns.items())


def tally(row: Row) -> dict[str, tuple[float, float]]:
    """(satisfied, of how many) of one session for each rate; a rate that says nothing of it has 0 of 0."""
    turns = instructions(row)
    held = 0
    while held < len(turns) and turns[held][1]:
        held += 1
    conflicts = set(row.get("conflicts", ()))
    facts = [check["passed"] for check in row["checks"] if check["type"] == "fact"]

    def of(values: Sequence[bool]) -> tuple[float, float]:
        return float(sum(values)), float(len(values))

    return {
        "csr": of([check["passed"] for check in row["checks"]]),
        "isr": of([good for _, good in turns]),
        "ssr": (held / len(turns), 1.0),
        "sessions": (float(row["passed"]), 1.0),
        "aligned": of([good for turn, good in turns if turn not in conflicts]),
        "conflict": of([good for turn, good in turns if turn in conflicts]),
        "facts": of(facts),
    }


RATES = ("csr", "isr", "ssr", "sessions", "aligned", "conflict", "facts")
"""Keys of `tally`: `aligned` and `conflict` are `isr` over the user turns that go along with the card and against it,
`facts` the share of the questions for a fact of the card that were answered with it."""


def draw(probes: int, resamples: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Resamples of probes: int64 [resamples, probes]."""
    return np.random.default_rng(seed).integers(0, max(probes, 1), size=(resamples, probes))


def _ratios(counts: Floats, draws: np.ndarray[Any, Any]) -> Floats:
    """The ratio of sums of `counts` [probes, 2] in each resample; NaN where nothing is counted."""
    sums = counts[draws].sum(axis=1)
    ratios: Floats = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
    return ratios


def _interval(values: Floats) -> tuple[float, float]:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def share(counts: Floats, draws: np.ndarray[Any, Any]) -> Share | None:
    """The ratio of sums of `counts` [probes, 2] with its interval; None where nothing is counted."""
    hits, of = counts.sum(axis=0)
    if not of:
        return None
    low, high = _interval(_ratios(counts, draws))
    return {"share": float(hits / of), "low": low, "high": high, "probes": int((counts[:, 1] > 0).sum())}


def difference(tuned: Floats, base: Floats, draws: np.ndarray[Any, Any]) -> Share | None:
    """tuned - base with its paired interval, the same probes in both and in each resample."""
    (hits, of), (before, of_before) = tuned.sum(axis=0), base.sum(axis=0)
    if not of or not of_before:
        return None
    low, high = _interval(_ratios(tuned, draws) - _ratios(base, draws))
    return {"share": float(hits / of - before / of_before), "low": low, "high": high}


def compared(
    rows: dict[str, list[Row]], resamples: int, seed: int, chosen: Callable[[Row], bool] = lambda row: True
) -> dict[str, Any]:
    """The rates of each model over its `chosen` rows, and, of 'tuned' and 'base', their `difference`.

    `rows` by model, each list of the same probes in the same order.
    """
    counts: dict[str, dict[str, Floats]] = {}
    for model, answered in rows.items():
        tallies = [tally(row) for row in answered if chosen(row)]
        counts[model] = {rate: np.array([t[rate] for t in tallies], dtype=np.float64).reshape(-1, 2) for rate in RATES}
    probes = len(next(iter(counts.values()))["csr"])
    draws = draw(probes, resamples, seed)
    found: dict[str, Any] = {
        model: {rate: share(values, draws) for rate, values in by_rate.items()} for model, by_rate in counts.items()
    }
    if {"base", "tuned"} <= set(counts):
        found["difference"] = {rate: difference(counts["tuned"][rate], counts["base"][rate], draws) for rate in RATES}
    return {"probes": probes, **found}
