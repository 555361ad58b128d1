"""Which single records a report shows: those drawn as points, with their first words, and those explained whole.

All are chosen by a hash of their ids, so that they are the same from run to run. Finding their texts takes one pass
over the records that were pulled, batch by batch: memory grows with the chosen ones alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from cathpc.data import judged
from cathpc.data.config import SelectConfig
from cathpc.record import unit_hash
from cathpc.report.tables import first_user
from cathpc.store import MANIFEST, read_json

SAMPLE_SEED = 20240508
WORDS = 70
"""Characters of a record's first question that go along with its point."""


def sample(table: pa.Table, most: int) -> pa.Table:
    """At most `most` rows of `table`, those whose ids have the smallest hashes: the same ones from run to run."""
    if table.num_rows <= most:
        return table
    hashes = np.concatenate(  # batch by batch: a list of ten million ids would take a gigabyte
        [
            np.fromiter((unit_hash(i, SAMPLE_SEED) for i in batch.column(0).to_pylist()), float, batch.num_rows)
            for batch in table.select(["id"]).to_batches(max_chunksize=65_536)
        ]
    )
    return table.take(np.sort(np.argsort(hashes, kind="stable")[:most]))


def sampled(
    scored: pa.Table,
    inputs: dict[str, Path],
    cuts: dict[str, dict[str, float]],
    settings: SelectConfig,
    *,
    points: int,
    explained: int,
    also: list[str],
) -> tuple[pa.Table, dict[str, str], list[dict[str, Any]]]:
    """(rows of `scored` to draw one by one; id -> first words, of these and of `also`; records to show whole).

    Points are as many of each component, as far as it has them. Explained are about `explained` records, half of them
    kept, and of each rule the one that it dropped by least.
    """
    components = scored["component"].unique().to_pylist()
    most = max(points // max(len(components), 1), 1)
    parts = [sample(scored.filter(pc.equal(scored["component"], name)), most) for name in components]
    shown = pa.concat_tables(parts) if parts else scored
    whole = [nearest(scored, rule) for rule in scored["rule"].unique().to_pylist() if rule]
    for kept in (True, False):
        whole.append(sample(shown.filter(pc.equal(shown["kept"], kept)), explained // 2))
    ids = set(pa.concat_tables(whole)["id"].to_pylist()) if whole else set()
    found = rows_of(sorted((inputs["pull"] / "records").glob("*.parquet")), {*ids, *shown["id"].to_pylist(), *also})
    records = {row["id"]: row for row in found.to_pylist()}
    texts = {id: _words(record) for id, record in records.items()}
    scores = rows_of(sorted((inputs["score"] / "scores").glob("*.parquet")), ids)
    place = {id: row for row, id in enumerate(scores["id"].to_pylist())}
    verdicts = {row["id"]: row for table in whole for row in table.to_pylist()}
    window = judged.window_of(read_json(inputs["score"] / MANIFEST))
    told = []
    for id in sorted(ids, key=lambda id: unit_hash(id, SAMPLE_SEED)):
        if id in records and id in place:
            record, score, verdict = records[id], scores.slice(place[id], 1), verdicts[id]
            seen = judged.rules(settings, cuts.get(record["component"], {}), record, score, verdict, window)
            told.append({"record": record, "score": score.to_pylist()[0], "verdict": verdict, "rules": seen})
    return shown, texts, told


def rows_of(files: Sequence[Path], ids: Collection[str]) -> pa.Table:
    """The rows with these ids in Parquet files of one schema; none where there are no files."""
    wanted = pa.array(sorted(ids), pa.string())
    return pads.dataset(list(files)).to_table(filter=pads.field("id").isin(wanted)) if files else pa.table({"id": []})


def nearest(scored: pa.Table, rule: str) -> pa.Table:
    """The record that `rule` dropped by least, as a table of one row; of none where it compares no numbers."""
    rows = scored.filter(pc.equal(scored["rule"], rule))
    off = pc.abs(pc.subtract(rows["value"], rows["threshold"]))
    if off.null_count == len(off):
        return rows.slice(0, 0)
    return rows.slice(pc.index(off, pc.min(off)).as_py(), 1)


def _words(record: dict[str, Any]) -> str:
    text = first_user(record["messages"])
    return text if len(text) <= WORDS else f"{text[: WORDS - 1].rstrip()}…"
