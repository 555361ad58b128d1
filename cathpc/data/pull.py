"""Stage `pull`: sources -> records.

In: the sources of `config.dataset`. Out: `records/records-*.parquet`, `labels.parquet` (component refusal),
`rejects.jsonl` (every row that is not a record, with its reason) and `sources.json` (the counts): rows in = records out
+ rows set aside, for every source.

Three passes. The first streams every source into one file on disk; the second finds what is over a source's limit or
repeats another record; the third copies what is left into shards. Which of two duplicates stays, and which records a
limit takes, does not depend on the order of the rows; in the shards they stand by source key, then as they were read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cathpc import progress
from cathpc.data import lock
from cathpc.data.config import DatasetConfig
from cathpc.data.formats import (
    OVER_LIMIT,
    TOO_LARGE,
    UNREADABLE,
    Reject,
    columns_of,
    excerpt,
    missing_column,
    to_record,
)
from cathpc.data.read import Rows, hub_rows, local_rows
from cathpc.data.sources import check, local_file
from cathpc.data.staging import Staging
from cathpc.errors import ChangedError, UserError
from cathpc.record import RECORD_SCHEMA
from cathpc.store import write_json

if TYPE_CHECKING:
    from cathpc.config import Config

REJECTS = "rejects.jsonl"


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Read, check, deduplicate and shard the sources of `config.dataset`; see the module's text.

    Raises `UserError` for a source that cannot be used as it is described, `TryAgainError` when the Hub is out of reach
    and `ChangedError` when a file changes while it is read.
    """
    dataset = config.dataset
    _clear(out)
    for key, source in dataset.sources.items():
        check(key, source)
    keys = sorted(dataset.sources)
    temporary = out / "staging"
    temporary.mkdir()
    rejects = out / f".{REJECTS}.tmp"
    with open(rejects, "w", encoding="utf-8") as file:
        counts = _Counts(file, keys)
        staging = Staging(temporary / "records.arrow")
        for index in range(len(keys)):
            _read(dataset, keys, index, staging, counts, out)
        staging.close()
        keep, gone = staging.choose([dataset.sources[k].limit for k in keys], dataset.near_duplicates)
        for number, (reason, other) in sorted(gone.items()):
            _set_aside(dataset, staging, number, reason, other, counts)
        file.flush()
        os.fsync(file.fileno())
    if not (keep & ~staging.labelled).any():
        raise UserError(
            f"{counts.rows.total():,} rows of {', '.join(keys)} give no record ({_reasons(counts.reasons())}). "
            f"Every row with its reason: {rejects}"
        )
    shards = _write(staging, keep, out, dataset.shard_records)
    os.replace(rejects, out / REJECTS)
    summary = _summary(dataset, keys, staging, keep, counts)
    write_json(out / "sources.json", summary["sources"])
    staging.remove()
    shutil.rmtree(temporary)
    progress.report(out, len(keys), len(keys), "sources")
    return {**summary, "shards": shards}


class _Counts:
    """Rows in, and rows set aside by source and reason; each of the latter is written to the rejects file."""

    def __init__(self, file: TextIO, keys: list[str]) -> None:
        self._file = file
        self.rows: Counter[str] = Counter()
        self.rejected: dict[str, Counter[str]] = {key: Counter() for key in keys}

    def reject(self, key: str, origin: str, reason: str, detail: str, text: str) -> None:
        self.rejected[key][reason] += 1
        line = {"source": key, "origin": origin, "reason": reason, "detail": detail, "excerpt": text}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def reasons(self) -> Counter[str]:
        return sum(self.rejected.values(), Counter())


def _clear(out: Path) -> None:
    """Remove what a killed attempt left behind."""
    for name in ("staging", "records"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("labels.parquet", REJECTS, "sources.json", f".{REJECTS}.tmp"):
        (out / name).unlink(missing_ok=True)


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())


def _read(dataset: DatasetConfig, keys: list[str], index: int, staging: Staging, counts: _Counts, out: Path) -> None:
    """Stage the records of one source and reject its other rows."""
    key = keys[index]
    source = dataset.sources[key]
    max_bytes = int(dataset.max_row_mb * 1e6)
    columns, name = columns_of(key, source), _name(dataset, key)
    seen: set[str] = set()  # columns
    file = None if source.hub else local_file(dataset, key)
    before = file.stat() if file else None
    for number, row in _rows(dataset, key, file, max_bytes, out / "staging" / "datasets"):
        counts.rows[key] += 1
        if counts.rows[key] % 100 == 1:
            progress.report(out, index, len(keys), "sources", note=f"{key}: {counts.rows[key] - 1:,} rows")
        origin = f"{name}:{number}"
        try:
            if isinstance(row, Reject):
                raise row
            if isinstance(row, dict) and len(seen) < 1000:
                seen.update(map(str, row))
            record = to_record(row, key, source, columns, origin)
            size = sum(len(m["content"].encode()) for m in record.messages)
            if size > max_bytes:
                raise Reject(TOO_LARGE, f"{size / 1e6:.1f} MB of text, the limit is {dataset.max_row_mb:g} MB")
        except Reject as error:
            text = error.excerpt or ("" if isinstance(row, Reject) else excerpt(row))
            counts.reject(key, origin, error.reason, error.detail, text)
        else:
            staging.add(record, index)
    if file and before:
        after = file.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ChangedError(f"source {key!r}: {file} changed while it was read. Run the same command again")
    _usable(dataset, key, counts, seen)


def _rows(dataset: DatasetConfig, key: str, file: Path | None, max_bytes: int, cache: Path) -> Rows:
    source = dataset.sources[key]
    if file is None:
        return hub_rows(key, source, lock.commit(source.hub, "dataset"), max_bytes, cache)
    return local_rows(key, source, file, max_bytes, cache)


def _name(dataset: DatasetConfig, key: str) -> str:
    """What the origin of a record starts with: the file as the config names it, or Hub id, commit, subset and split."""
    source = dataset.sources[key]
    if not source.hub:
        return source.path
    return f"{source.hub}@{lock.commit(source.hub, 'dataset')[:12]}/{source.subset or 'default'}/{source.split}"


def _usable(dataset: DatasetConfig, key: str, counts: _Counts, seen: set[str]) -> None:
    """Raise `UserError` for a source whose description does not fit what was read."""
    source = dataset.sources[key]
    at = source.path or source.hub
    if not counts.rows[key]:
        raise UserError(f"source {key!r}: {at} holds no rows")
    error = missing_column(key, source, seen) if seen else None
    if error:
        raise error
    rejected = counts.rejected[key]
    if rejected.total() == counts.rows[key] and set(rejected) <= UNREADABLE:
        raise UserError(
            f"source {key!r}: none of the {counts.rows[key]:,} rows of {at} can be read as {source.format.name} "
            f"({_reasons(rejected)}). Columns seen: {', '.join(sorted(seen)) or 'none'}. "
            f"Set dataset.sources.{key}.format or .columns"
        )


def _set_aside(dataset: DatasetConfig, staging: Staging, number: int, reason: str, other: int, counts: _Counts) -> None:
    """Write a staged record to the rejects."""
    row = staging.row(number)
    key = row["source"]
    if reason == OVER_LIMIT:
        counts.reject(key, row["origin"], reason, f"limit {dataset.sources[key].limit:,}", "")
        return
    first = staging.row(other)
    text = excerpt(row["messages"][-1]["content"])
    counts.reject(key, row["origin"], reason, f"repeats {first['id']} ({first['source']}, {first['origin']})", text)


def _write(staging: Staging, keep: np.ndarray, out: Path, shard_records: int) -> int:
    """Write the labelled refusals and the shards of all other kept records; returns the number of shards."""
    folder = out / "records"
    folder.mkdir()
    label, record = keep & staging.labelled, keep & ~staging.labelled
    labels: list[pa.RecordBatch] = []
    waiting: list[pa.RecordBatch] = []
    count, shard, at = 0, 0, 0
    for batch in staging.batches():
        here = slice(at, at + len(batch))
        at += len(batch)
        labels.append(batch.filter(pa.array(label[here])))
        rest = batch.filter(pa.array(record[here]))
        while count + len(rest) >= shard_records:
            waiting.append(rest.slice(0, shard_records - count))
            rest = rest.slice(shard_records - count)
            _parquet(waiting, folder / f"records-{shard:05d}.parquet")
            waiting, count, shard = [], 0, shard + 1
        if len(rest):
            waiting.append(rest)
            count += len(rest)
    if waiting:
        _parquet(waiting, folder / f"records-{shard:05d}.parquet")
        shard += 1
    _parquet(labels, out / "labels.parquet")
    return shard


def _parquet(batches: list[pa.RecordBatch], path: Path) -> None:
    """Write a Parquet file under a temporary name, fsync, rename."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        pq.write_table(pa.Table.from_batches(batches, schema=RECORD_SCHEMA), file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _summary(
    dataset: DatasetConfig, keys: list[str], staging: Staging, keep: np.ndarray, counts: _Counts
) -> dict[str, Any]:
    """The figures of the stage; `sources` is what `sources.json` holds."""
    sources = {}
    for key, kept in zip(keys, np.bincount(staging.sources[keep], minlength=len(keys)).tolist(), strict=True):
        source, rejected = dataset.sources[key], counts.rejected[key]
        assert counts.rows[key] == kept + rejected.total(), f"rows of {key} went astray"
        sources[key] = {
            "rows": counts.rows[key],
            "kept": kept,
            "rejected": dict(sorted(rejected.items())),
            "component": source.component.name,
            "format": source.format.name,
            "license": source.license,
            "origin": _name(dataset, key),
        }
    records, labels = int((keep & ~staging.labelled).sum()), int((keep & staging.labelled).sum())
    reasons = counts.reasons()
    aside, over = reasons.total(), reasons[OVER_LIMIT]
    parts = [f"{records:,} records from {len(keys)} source{'s' * (len(keys) > 1)}"]
    if labels:
        parts.append(f"{labels:,} labelled refusals")
    if over:
        parts.append(f"{over:,} over a limit")
    parts.append(f"{aside - over:,} set aside")
    return {
        "line": ", ".join(parts),
        "rows": counts.rows.total(),
        "records": records,
        "labels": labels,
        "set_aside": aside,
        "reasons": dict(sorted(reasons.items())),
        "sources": sources,
    }
