"""How every rule of selection saw one record: its row, its scores and its verdict in, a line a rule out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from cathpc.data import filters
from cathpc.data.config import SelectConfig
from cathpc.data.select import to_columns
from cathpc.record import RECORD_SCHEMA


def rules(
    settings: SelectConfig,
    cuts: Mapping[str, float],
    record: Mapping[str, Any],
    score: pa.Table,
    verdict: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Every rule in its order: the record's figure, the threshold, whether it passes, how far it is from the border.

    `cuts` are those of the record's component in `flow.json`; `score` is one row of `SCORE_SCHEMA`. Rules that come
    after the one that dropped the record are shown too: it would have to pass them as well. A rule that compares
    records and comes before it was passed, though the figure may not be kept; of one that comes after it that is known
    (True or False) where the figure does not depend on which records were left, else None.
    """
    columns = to_columns(pa.Table.from_pylist([record], schema=RECORD_SCHEMA), score)
    found: list[dict[str, Any]] = []

    def add(rule: str, passes: bool | None, value: Any, threshold: Any) -> None:
        numbers = [float(v) if v is not None and np.isfinite(v) else None for v in (value, threshold)]
        off = numbers[0] - numbers[1] if numbers[0] is not None and numbers[1] is not None else None
        found.append({"rule": rule, "passes": passes, "value": numbers[0], "threshold": numbers[1], "off": off})

    for rule in filters.RULES:
        drop = rule.apply(settings, columns)
        if drop is not None:
            add(rule.name, not bool(drop.dropped[0]), drop.value[0], drop.threshold)
    order = {name: place for place, name in enumerate(filters.NAMES)}
    last = len(order) if verdict["kept"] else order.get(verdict["rule"], -1)
    values = {filters.QUALITY: score[settings.quality][0].as_py(), filters.QUOTA: filters.sample_hash(record["id"])}
    for name, cut in cuts.items():
        dropped = verdict["rule"] == name
        value = verdict["value"] if dropped else values.get(name)
        passes: bool | None = None
        if dropped or order[name] < last:
            passes = not dropped
        elif value is not None and name == filters.QUALITY:
            passes = not bool(filters.worse(settings, np.array([value]), cut)[0])
        elif value is not None:
            passes = value <= cut
        add(name, passes, value, cut)
    return found
