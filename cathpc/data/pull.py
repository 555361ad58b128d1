"""Stage `pull`: sources -> records.

In: the sources of `config.dataset`. Out: `records/records-*.parquet`, `labels.parquet` (component refusal),
`rejects.jsonl` (every row that is not a record, with its reason) and `sources.json` (the counts): rows in = records out
+ rows set aside, for every source.

Three passes. The first streams every source into one file on disk, by as many processes as there are cores
(`cathpc.data.prepare`); the second finds what is over a source's limit or repeats another record; the third copies what
is left into shards. Which of two duplicates stays, and which records a limit takes, does not depend on the order of the
rows; in the shards they stand by source key, then as they were read. Disk: the text of all records once more, and 8
bytes a record and band of the near-duplicates, until the stage ends.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cathpc import progress
from cathpc.data import decontaminate, lock, staging
from cathpc.data.block import Block
from cathpc.data.config import DatasetConfig
from cathpc.data.files import blocks
from cathpc.data.formats import (
    DUPLICATE,
    NEAR_DUPLICATE,
    NOT_AS_DESCRIBED,
    OVER_LIMIT,
    UNREADABLE,
    Reject,
    columns_of,
    excerpt,
    missing_column,
    note_columns,
)
from cathpc.data.prepare import Prepared, Task, prepare
from cathpc.data.read import hub_blocks
from cathpc.data.sources import check, evaluation_sets, local_file
from cathpc.data.staging import Staging
from cathpc.data.workers import in_order
from cathpc.errors import ChangedError, UserError
from cathpc.record import RECORD_SCHEMA
from cathpc.store import write_json

if TYPE_CHECKING:
    from cathpc.config import Config

REJECTS = "rejects.jsonl"
_A_WORKERS_BYTES = 16_000_000
"""Local data for which another process is worth its start."""
_TEXT = ("source", "component", "generator", "license")
"""Columns whose values repeat: the others gain nothing by a dictionary."""


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
    with open(rejects, "w", encoding="utf-8") as file, Staging(temporary, dataset.near_duplicates) as staged:
        counts = _Counts(file, keys)
        tasks = _tasks(dataset, keys, temporary)
        clock = _Clock()
        for prepared in in_order(prepare, _jobs(dataset, tasks, temporary, counts), _workers(dataset)):
            _take(prepared, staged, counts, out, len(keys))
        staged.close()
        for key in keys:
            _usable(dataset, key, counts)
        clock.lap("read")
        progress.report(out, len(keys) - 0.5, len(keys), "sources", note="looking for duplicates", every_s=0)
        fate, other = staged.choose([dataset.sources[k].limit for k in keys])
        clock.lap("compare")
        _set_aside(dataset, keys, staged, fate, other, counts)
        file.flush()
        os.fsync(file.fileno())
    keep = fate == staging.KEPT
    if not (keep & ~staged.labelled).any():
        raise UserError(
            f"{counts.rows.total():,} rows of {', '.join(keys)} give no record ({_reasons(counts.reasons())})."
            f"{counts.first_damage()} Every row with its reason: {rejects}"
        )
    shards = _write(staged, keep, out, dataset.shard_records)
    os.replace(rejects, out / REJECTS)
    summary = _summary(dataset, keys, staged, keep, counts)
    write_json(out / "sources.json", summary["sources"])
    staged.remove()
    shutil.rmtree(temporary)
    progress.report(out, len(keys), len(keys), "sources")
    clock.lap("write")
    return {**summary, "shards": shards, "seconds": clock.laps}


class _Clock:
    """Seconds that each part of the work took."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now


class _Counts:
    """Rows in, and rows set aside by source and reason; each of the latter is written to the rejects file."""

    def __init__(self, file: TextIO, keys: list[str]) -> None:
        self._file = file
        self.rows: Counter[str] = Counter()
        self.rejected: dict[str, Counter[str]] = {key: Counter() for key in keys}
        self.seen: dict[str, dict[str, None]] = {key: {} for key in keys}
        self.damaged: dict[str, str] = {}
        """Source -> what is damaged in it."""

    def reject(self, key: str, origin: str, reject: Reject) -> None:
        self.rejected[key][reject.reason] += reject.rows
        line = {"source": key, "origin": origin, "reason": reject.reason, "detail": reject.detail}
        line["excerpt"] = reject.excerpt
        if reject.reason == UNREADABLE:
            self.damaged.setdefault(key, f"{origin}: {reject.detail}")
        more = {"rows": reject.rows} if reject.rows > 1 else {}
        self._file.write(json.dumps(line | more, ensure_ascii=False) + "\n")

    def reasons(self) -> Counter[str]:
        return sum(self.rejected.values(), Counter())

    def first_damage(self) -> str:
        return "".join(f" {what}." for what in list(self.damaged.values())[:1])


def _clear(out: Path) -> None:
    """Remove what a killed attempt left behind."""
    for name in ("staging", "records"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("labels.parquet", REJECTS, "sources.json", f".{REJECTS}.tmp"):
        (out / name).unlink(missing_ok=True)


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.most_common())


def _workers(dataset: DatasetConfig) -> int:
    """Processes that prepare records; one for little data, which is done before another one has started."""
    most = dataset.workers or int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
    if any(source.hub for source in dataset.sources.values()):
        return most
    size = sum(local_file(dataset, key).stat().st_size for key in dataset.sources)
    return min(most, 1 + size // _A_WORKERS_BYTES)


def _tasks(dataset: DatasetConfig, keys: list[str], temporary: Path) -> list[Task]:
    contaminants = None
    if dataset.decontaminate:
        contaminants = temporary / "contaminants.npz"
        decontaminate.build(evaluation_sets(dataset), contaminants)
    return [
        Task(
            index=index,
            key=key,
            source=dataset.sources[key],
            columns=columns_of(key, dataset.sources[key]),
            name=_name(dataset, key),
            max_bytes=int(dataset.max_row_mb * 1e6),
            near_duplicates=dataset.near_duplicates,
            contaminants=contaminants,
        )
        for index, key in enumerate(keys)
    ]


def _jobs(dataset: DatasetConfig, tasks: list[Task], temporary: Path, counts: _Counts) -> Iterator[tuple[Task, Block]]:
    """The blocks of all sources, each with what is to be done with it."""
    expanded = int(dataset.max_expanded_gb * 1e9)
    for task in tasks:
        source, wanted = task.source, set(task.columns.values())
        if source.hub:
            commit, cache = lock.commit(source.hub, "dataset"), temporary / "datasets"
            stream = hub_blocks(task.key, source, commit, cache, task.max_bytes, expanded, wanted)
            yield from ((task, block) for block in stream)
            continue
        file = local_file(dataset, task.key)
        before = file.stat()
        for block in blocks(file, source.path, task.max_bytes, expanded, wanted):
            yield task, block
        after = file.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ChangedError(f"source {task.key!r}: {file} changed while it was read. Run the same command again")


def _take(prepared: Prepared, staged: Staging, counts: _Counts, out: Path, sources: int) -> None:
    """Stage the records of a block and reject its other rows."""
    task = prepared.task
    counts.rows[task.key] += prepared.rows
    note_columns(counts.seen[task.key], prepared.seen, frozenset(task.columns.values()))
    for number, reject in prepared.rejects:
        counts.reject(task.key, f"{task.name}:{number}", reject)
    staged.add(prepared.batch, prepared.facts, task.index)
    progress.report(out, task.index, sources, "sources", note=f"{task.key}: {counts.rows[task.key]:,} rows")


def _name(dataset: DatasetConfig, key: str) -> str:
    """What the origin of a record starts with: the file as the config names it, or Hub id, commit, subset and split."""
    source = dataset.sources[key]
    if not source.hub:
        return source.path
    return f"{source.hub}@{lock.commit(source.hub, 'dataset')[:12]}/{source.subset or 'default'}/{source.split}"


def _usable(dataset: DatasetConfig, key: str, counts: _Counts) -> None:
    """Raise `UserError` for a source whose description does not fit what was read."""
    source, seen = dataset.sources[key], counts.seen[key]
    at = source.path or source.hub
    if not counts.rows[key]:
        raise UserError(f"source {key!r}: {at} holds no rows")
    error = missing_column(key, source, seen) if seen else None
    if error:
        raise error
    rejected = counts.rejected[key]
    if rejected.total() == counts.rows[key] and set(rejected) <= NOT_AS_DESCRIBED:
        raise UserError(
            f"source {key!r}: none of the {counts.rows[key]:,} rows of {at} can be read as {source.format.name} "
            f"({_reasons(rejected)}). Columns seen: {', '.join(sorted(seen)) or 'none'}. "
            f"Set dataset.sources.{key}.format or .columns"
        )


def _set_aside(
    dataset: DatasetConfig, keys: list[str], staged: Staging, fate: np.ndarray, other: np.ndarray, counts: _Counts
) -> None:
    """Write the staged records that do not stay to the rejects."""
    for start, batch in staged.batches():
        gone = np.flatnonzero(fate[start : start + len(batch)] != staging.KEPT)
        if not len(gone):
            continue
        origins, messages = (batch.column(name).take(pa.array(gone)) for name in ("origin", "messages"))
        for row, origin, turns in zip(gone.tolist(), origins.to_pylist(), messages, strict=True):
            number = start + row
            key = keys[staged.sources[number]]
            if fate[number] == staging.OVER:
                reject = Reject(OVER_LIMIT, f"limit {dataset.sources[key].limit:,}")
            else:
                first = int(other[number])
                where = f"{keys[staged.sources[first]]}, {staged.origin(first)}"
                reason = DUPLICATE if fate[number] == staging.EXACT else NEAR_DUPLICATE
                text = excerpt(turns[-1]["content"].as_py())
                reject = Reject(reason, f"repeats {int(staged.ids[first]):016x} ({where})", text)
            counts.reject(key, origin, reject)


def _write(staged: Staging, keep: np.ndarray, out: Path, shard_records: int) -> int:
    """Write the labelled refusals and the shards of all other kept records; returns the number of shards."""
    folder = out / "records"
    folder.mkdir()
    label, record = keep & staged.labelled, keep & ~staged.labelled
    labels: list[pa.RecordBatch] = []
    waiting: list[pa.RecordBatch] = []
    count, shard = 0, 0
    for start, batch in staged.batches():
        here = slice(start, start + len(batch))
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
        table = pa.Table.from_batches(batches, schema=RECORD_SCHEMA)
        pq.write_table(table, file, compression="zstd", use_dictionary=list(_TEXT))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _summary(
    dataset: DatasetConfig, keys: list[str], staged: Staging, keep: np.ndarray, counts: _Counts
) -> dict[str, Any]:
    """The figures of the stage; `sources` is what `sources.json` holds."""
    sources = {}
    for key, kept in zip(keys, np.bincount(staged.sources[keep], minlength=len(keys)).tolist(), strict=True):
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
    records, labels = int((keep & ~staged.labelled).sum()), int((keep & staged.labelled).sum())
    reasons = counts.reasons()
    aside, over = reasons.total(), reasons[OVER_LIMIT]
    parts = [f"{records:,} records from {len(keys)} source{'s' * (len(keys) > 1)}"]
    if labels:
        parts.append(f"{labels:,} labelled refusals")
    if over:
        parts.append(f"{over:,} over a limit")
    parts.append(f"{aside - over:,} set aside")
    if counts.damaged:
        parts.append(f"DAMAGED: {'; '.join(counts.damaged.values())}")
    return {
        "line": ", ".join(parts),
        "rows": counts.rows.total(),
        "records": records,
        "labels": labels,
        "set_aside": aside,
        "reasons": dict(sorted(reasons.items())),
        "sources": sources,
    }
