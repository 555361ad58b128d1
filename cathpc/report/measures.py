"""Numbers of a run, taken from its `Facts`: counts by rule and source, cuts, columns as arrays.

What figures and tables share, so that both say the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cathpc.data import filters
from cathpc.data.density import Density, plane
from cathpc.report import auroc
from cathpc.report.gather import Facts


def rule_counts(facts: Facts) -> list[tuple[str, int]]:
    """Records dropped by each rule that dropped any, in the order in which the rules are applied."""
    counted = {
        row["values"]: row["counts"] for row in pc.value_counts(facts.scored["rule"]).to_pylist() if row["values"]
    }
    order = [*filters.NAMES, *sorted(counted.keys() - set(filters.NAMES))]
    return [(rule, counted[rule]) for rule in order if rule in counted]


def source_counts(facts: Facts) -> Counter[tuple[str, str]]:
    """Scored records by source and by the rule that dropped them ('' for the kept ones)."""
    table = facts.scored.group_by(["source", "rule"]).aggregate([([], "count_all")])
    return Counter({(row["source"], row["rule"]): row["count_all"] for row in table.to_pylist()})


def quality_cuts(facts: Facts) -> dict[str, float]:
    """Threshold of the quality rule by component."""
    return _cuts(facts, filters.QUALITY)


def populations(facts: Facts) -> dict[str, tuple[Density, float]]:
    """Component -> the density of what the rules before `select.population` left of it, and its value at the border of
    the main population; empty where the rule is off."""
    found = {}
    for component, cut in _cuts(facts, filters.POPULATION).items():
        rows = ok(of_component(facts.scored, component), facts)
        left = rows.filter(pc.is_in(rows["rule"], pa.array(["", *filters.COMPARING])))
        if left.num_rows:
            quality = facts.config("select", "select")["quality"]
            density = plane(*filters.plane_axes(quality, floats(left["refusal"]), floats(left[quality])))
            found[component] = density, cut * float(density.mass.max())
    return found


def with_length(facts: Facts, score: str) -> pa.Table:
    """The scored records that have this score and a length."""
    rows = facts.scored
    return rows.filter(pc.and_kleene(pc.is_finite(rows[score]), pc.greater(rows["answer_tokens"], 0)))


def heldout_contrast(facts: Facts) -> pa.Table:
    """The held-out answers that have a contrast."""
    return facts.answers_heldout.filter(pc.is_finite(facts.answers_heldout["contrast"]))


def _cuts(facts: Facts, rule: str) -> dict[str, float]:
    there = set(facts.scored["component"].unique().to_pylist())
    return {name: cuts[rule] for name, cuts in facts.cuts.items() if name in there and rule in cuts}


def ok(table: pa.Table, facts: Facts) -> pa.Table:
    """The rows that have a refusal score and a finite quality."""
    quality = facts.config("select", "select")["quality"]
    return table.filter(pc.and_kleene(pc.is_valid(table["refusal"]), pc.is_finite(table[quality])))


def generator_rows(facts: Facts) -> list[auroc.Row]:
    """How well the scores tell the reference's answers from each generator's, on prompts that no GPT was trained on."""
    held = facts.answers_heldout
    return auroc.table(
        auroc.Answers(
            generator=np.asarray(held["generator"].to_pylist(), object),
            component=np.asarray(held["component"].to_pylist(), object),
            reference=np.asarray(held["reference"].to_pylist(), bool),
            contrast=floats(held["contrast"]),
            perplexity=floats(held["perplexity"]),
            tokens=floats(held["answer_tokens"]),
        )
    )


def of_component(table: pa.Table, component: str) -> pa.Table:
    """The rows of one component."""
    return table.filter(pc.equal(table["component"], component))


def fidelity_rows(fidelity: dict[str, Any]) -> list[tuple[str, dict[str, tuple[float, float, float]]]]:
    """[(family, {model: (share, low, high)})], all families together first."""
    models: dict[str, Any] = fidelity["models"]
    families = sorted({family for model in models.values() for family in model["families"]})
    rows = [("all", {name: _interval(model["all"]) for name, model in models.items()})]
    for family in families:
        found = {name: m["families"][family] for name, m in models.items() if family in m["families"]}
        rows.append((family, {name: _interval(value) for name, value in found.items()}))
    return rows


def _interval(value: dict[str, float]) -> tuple[float, float, float]:
    return value["share"], value["low"], value["high"]


def column(steps: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of the rows that hold `key`."""
    rows = [row for row in steps if row.get(key) is not None]
    return [row["global_step"] for row in rows], [float(row[key]) for row in rows]


def floats(values: pa.ChunkedArray) -> np.ndarray:
    """An Arrow column as float64; null becomes NaN."""
    return np.asarray(values.cast(pa.float64()).to_numpy(), dtype=float)


def count(mask: pa.ChunkedArray) -> int:
    """How many are true."""
    return int(pc.sum(mask).as_py() or 0)


def flags(values: pa.ChunkedArray) -> np.ndarray:
    """An Arrow column of truth values as bool; null is False."""
    return np.asarray(pc.fill_null(values, False).to_numpy(), dtype=bool)
