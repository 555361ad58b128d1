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
    window: int | None = None,
) -> list[dict[str, Any]]:
    """Every rule in its order: the record's figure, the threshold, whether it passes, how far it is from the border.

    `cuts` are those of the record's component in `flow.json`; `score` is one row of `SCORE_SCHEMA`; `window` is what
    the scores allowed a conversation, in tokens. A rule that is about other components is left out. Rules that come
    after the one that dropped the record are shown too: it would have to pass them as well. `passes` is None where what
    the rule looks at was not measured. A rule that compares records and comes before the one that dropped it was
    passed, though the figure may not be kept; of one that comes after it that is known (True or False) where the figure
    does not depend on which records were left, else None.
    """
    columns = to_columns(pa.Table.from_pylist([record], schema=RECORD_SCHEMA), score, settings.quality)
    found: list[dict[str, Any]] = []

    def add(rule: str, passes: bool | None, value: Any, threshold: Any) -> None:
        numbers = [float(v) if v is not None and np.isfinite(v) else None for v in (value, threshold)]
        off = numbers[0] - numbers[1] if numbers[0] is not None and numbers[1] is not None else None
        found.append({"rule": rule, "passes": passes, "value": numbers[0], "threshold": numbers[1], "off": off})

    for rule in filters.RULES:
        drop = rule.apply(settings, columns)
        if drop is not None and (drop.concerns is None or drop.concerns[0]):
            over = rule.name == filters.STATUS and columns.status[0] == "too_long"
            add(rule.name, drop.passed(0), drop.value[0], window if over else drop.threshold)
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


def window_of(manifest: Mapping[str, Any] | None) -> int | None:
    """Tokens of the longest conversation that the finished stage `score` took, by its manifest."""
    manifest = manifest or {}
    section = manifest.get("config", {}).get("score", {})
    found: int | None = manifest.get("summary", {}).get("window") or section.get("window")
    return found
