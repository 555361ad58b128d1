"""Stage `pull`: sources -> records.

In: the sources of `config.dataset`. Out: `records/records-*.parquet`, `labels.parquet` (component refusal),
`rejects.jsonl` (every row that is not a record, with its reason) and `sources.json` (the counts): rows in = records out +
rows set aside, for every source.

Three passes. The first streams every source into one staging file on disk and keeps some 40 bytes a record in memory;
the second finds, on these, what is over a source's limit or repeats another record; the third copies what is left into
shards. Which of two duplicates stays, and which records a limit takes, depends on the records alone and not on their
order; the rows of the shards stand in the order of the sources' keys and rows.
"""

from __future__ import annotations

import json
import os
import shutil
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cathpc import progress
from cathpc.data import lock
from cathpc.data.config import DatasetConfig, SourceConfig
from cathpc.data.dedup import exact_key, near_duplicates
from cathpc.data.formats import (
    DUPLICATE,
    NEAR_DUPLICATE,
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
from cathpc.errors import ChangedError, UserError
from cathpc.record import RECORD_SCHEMA, Message, prompt_key, unit_hash
from cathpc.store import write_json

if TYPE_CHECKING:
    from cathpc.config import Config

_SAMPLE_SEED = 20_260_101
"""Of the hash that `limit` samples by: another one than any split's, or a sample would be all training or all held out."""
_STAGED = 512
"""Records a batch of the staging file: what a later look at one record reads."""


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Read, check, deduplicate and shard the sources of `config.dataset`; see the module's text.

    Raises `UserError` for a source that cannot be used as it is described, `TryAgainError` when the Hub is out of reach.
    """
    dataset = config.dataset
    _clear(out)
    staging = out / "staging"
    staging.mkdir()
    for key, source in dataset.sources.items():
        check(key, source)
    keys = sorted(dataset.sources)
    with open(out / ".rejects.tmp", "w", encoding="utf-8") as rejects:
        counts = _Counts(rejects, keys)
        staged = _Staged(staging / "records.arrow")
        origins = {}
        for done, key in enumerate(keys):
            progress.report(out, done, len(keys), "sources", note=key, every_s=0)
            origins[key] = _read(dataset, key, staged, counts, out, (done, len(keys)))
        staged.close()
        kept = _choose(dataset, keys, staged, counts)
        rejects.flush()
        os.fsync(rejects.fileno())
    if not kept.any():
        raise UserError(f"no record is left of {len(keys)} sources; {out / '.rejects.tmp'} gives the reason of every row")
    shards = _write(staged, kept, out, dataset.shard_records)
    os.replace(out / ".rejects.tmp", out / "rejects.jsonl")
    summary = _summary(dataset, keys, staged, kept, counts, origins)
    write_json(out / "sources.json", summary["sources"])
    staged.release()
    shutil.rmtree(staging)
    progress.report(out, len(keys), len(keys), "sources")
    return {**summary, "shards": shards}


def _clear(out: Path) -> None:
    """Remove what a killed attempt left behind."""
    for name in ("staging", "records"):
        shutil.rmtree(out / name, ignore_errors=True)
    for name in ("labels.parquet", "rejects.jsonl", "sources.json", ".rejects.tmp"):
        (out / name).unlink(missing_ok=True)


class _Counts:
    """Rows in, and rows set aside by source and reason; writes each of the latter to the rejects file."""

    def __init__(self, file: TextIO, keys: list[str]) -> None:
        self.file = file
        self.rows: Counter[str] = Counter()
        self.rejected: dict[str, Counter[str]] = {key: Counter() for key in keys}

    def reject(self, key: str, origin: str, reason: str, detail: str, text: str) -> None:
        self.rejected[key][reason] += 1
        line = {"source": key, "origin": origin, "reason": reason, "detail": detail, "excerpt": text}
        self.file.write(json.dumps(line, ensure_ascii=False) + "\n")


class _Staged:
    """Records on disk in the order of reading, and in memory what chooses among them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ids, self.samples = array("Q"), array("d")
        self.sources, self.untagged, self.labels = array("H"), array("b"), array("b")
        self.exact = bytearray()
        self._rows: list[dict[str, Any]] = []
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, RECORD_SCHEMA)

    def add(self, record: Any, source: int) -> None:
        is_label = record.component == "refusal"
        self.ids.append(int(record.id, 16))
        self.samples.append(unit_hash(prompt_key(record.messages), _SAMPLE_SEED))
        self.sources.append(source)
        self.untagged.append(not record.generator)
        self.labels.append(is_label)
        self.exact += exact_key(record.messages)
        self._rows.append(record.row())
        if len(self._rows) == _STAGED:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=RECORD_SCHEMA))
            self._rows = []

    def close(self) -> None:
        """End the writing; the file is mapped, not loaded, for the reading."""
        self._flush()
        self._writer.close()
        self._sink.close()
        self._map = pa.memory_map(str(self.path))
        self._file = pa.ipc.open_file(self._map)

    def release(self) -> None:
        del self._file
        self._map.close()

    def __len__(self) -> int:
        return len(self.ids)

    def row(self, number: int) -> dict[str, Any]:
        batch = self._file.get_batch(number // _STAGED)
        row: dict[str, Any] = batch.slice(number % _STAGED, 1).to_pylist()[0]
        return row

    def messages(self, number: int) -> list[Message]:
        batch = self._file.get_batch(number // _STAGED)
        messages: list[Message] = batch.column("messages")[number % _STAGED].as_py()
        return messages

    def batches(self) -> Iterator[pa.RecordBatch]:
        for index in range(self._file.num_record_batches):
            yield self._file.get_batch(index)


def _read(
    dataset: DatasetConfig, key: str, staged: _Staged, counts: _Counts, out: Path, place: tuple[int, int]
) -> dict[str, Any]:
    """Stage the records of one source, reject its other rows; returns where they came from."""
    source = dataset.sources[key]
    max_bytes = int(dataset.max_row_mb * 1e6)
    rows, name, where, file = _open(dataset, key, max_bytes, out / "staging" / "datasets")
    before = file.stat() if file else None
    columns = columns_of(key, source)
    number_of_key = sorted(dataset.sources).index(key)
    seen: set[str] = set()
    for number, row in rows:
        counts.rows[key] += 1
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
            counts.reject(key, origin, error.reason, error.detail, error.excerpt or _excerpt(row))
            continue
        staged.add(record, number_of_key)
        if counts.rows[key] % 1000 == 0:
            progress.report(out, *place, "sources", note=f"{key}: {counts.rows[key]:,} rows")
    if file and before:
        after = file.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ChangedError(f"source {key!r}: {file} changed while it was read. Run the same command again")
    _usable(key, source, counts, seen)
    return where


def _open(dataset: DatasetConfig, key: str, max_bytes: int, cache: Path) -> tuple[Rows, str, dict[str, Any], Path | None]:
    """Rows of a source, the name that origins start with, the origin for people, and the file where there is one."""
    source = dataset.sources[key]
    if source.hub:
        commit = lock.commit(source.hub, "datasets")
        name = f"{source.hub}@{commit[:12]}/{source.subset or 'default'}/{source.split}"
        return hub_rows(key, source, commit, max_bytes, cache), name, {"hub": source.hub, "commit": commit}, None
    file = local_file(dataset, key)
    return local_rows(key, source, file, max_bytes, cache), source.path, {"path": source.path}, file


def _excerpt(row: Any) -> str:
    return "" if isinstance(row, Reject) else excerpt(row)


def _usable(key: str, source: SourceConfig, counts: _Counts, seen: set[str]) -> None:
    """Raise `UserError` for a source whose description does not fit what was read."""
    at = source.path or source.hub
    if not counts.rows[key]:
        raise UserError(f"source {key!r}: {at} holds no rows")
    error = missing_column(key, source, seen) if seen else None
    if error:
        raise error
    rejected = counts.rejected[key]
    if rejected.total() == counts.rows[key] and set(rejected) <= UNREADABLE:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in rejected.most_common())
        raise UserError(
            f"source {key!r}: none of the {counts.rows[key]:,} rows of {at} can be read as {source.format.name} ({reasons}). "
            f"Columns seen: {', '.join(sorted(seen)) or 'none'}. Set dataset.sources.{key}.format or .columns"
        )


def _choose(dataset: DatasetConfig, keys: list[str], staged: _Staged, counts: _Counts) -> np.ndarray:
    """Which staged records stay (bool, one each). What goes is written to the rejects."""
    total = len(staged)
    keep = np.ones(total, bool)
    ids, source = np.frombuffer(staged.ids, np.uint64), np.frombuffer(staged.sources, np.uint16)
    sample = np.frombuffer(staged.samples, np.float64)
    label = np.frombuffer(staged.labels, np.int8)
    rows = np.arange(total)
    repeats: dict[int, int] = {}

    for index, key in enumerate(keys):
        limit = dataset.sources[key].limit
        mine = rows[source == index]
        if limit is not None and len(mine) > limit:
            by_prompt = np.lexsort((mine, ids[mine], sample[mine]))
            keep[mine[by_prompt[limit:]]] = False
    over = ~keep

    # Of duplicates the one stays whose generator is known, then the one of the first source, then of the lowest id.
    order = np.lexsort((rows, ids, source, np.frombuffer(staged.untagged, np.int8), label))
    order = order[keep[order]]
    same = np.frombuffer(bytes(staged.exact), np.dtype("V16"))
    for kind in (0, 1):  # labelled refusals are compared among themselves
        mine = order[label[order] == kind]
        _, first, group = np.unique(same[mine].view("u8").reshape(-1, 2), axis=0, return_index=True, return_inverse=True)
        winner = mine[first[group.reshape(-1)]]
        lost = winner != mine
        keep[mine[lost]] = False
        repeats.update(zip(mine[lost].tolist(), winner[lost].tolist(), strict=True))
        exact_losers = set(mine[lost].tolist())
        if dataset.near_duplicates:
            candidates = (n for n in mine.tolist() if n not in exact_losers)
            for number, other in near_duplicates(candidates, staged.messages, dataset.near_duplicates):
                keep[number] = False
                repeats[number] = -1 - other

    for number in rows[~keep].tolist():
        row = staged.row(number)
        if over[number]:
            reason, detail, text = OVER_LIMIT, f"limit {dataset.sources[row['source']].limit:,}", ""
        else:
            other = repeats[number]
            reason, other = (DUPLICATE, other) if other >= 0 else (NEAR_DUPLICATE, -1 - other)
            first_one = staged.row(other)
            detail = f"repeats {first_one['id']} ({first_one['source']}, {first_one['origin']})"
            text = excerpt(row["messages"][-1]["content"])
        counts.reject(row["source"], row["origin"], reason, detail, text)
    return keep


def _write(staged: _Staged, keep: np.ndarray, out: Path, shard_records: int) -> int:
    """Write labels and shards; returns the number of shards."""
    folder = out / "records"
    folder.mkdir()
    label = np.frombuffer(staged.labels, np.int8).astype(bool)
    waiting: list[pa.RecordBatch] = []
    labels: list[pa.RecordBatch] = []
    count, shard, at = 0, 0, 0
    for batch in staged.batches():
        here = slice(at, at + len(batch))
        at += len(batch)
        labels.append(batch.filter(pa.array(keep[here] & label[here])))
        rest = batch.filter(pa.array(keep[here] & ~label[here]))
        while count + len(rest) >= shard_records:
            head = shard_records - count
            waiting.append(rest.slice(0, head))
            _parquet(waiting, folder / f"records-{shard:05d}.parquet")
            waiting, count, shard, rest = [], 0, shard + 1, rest.slice(head)
        if len(rest):
            waiting.append(rest)
            count += len(rest)
    if waiting or not shard:
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
    dataset: DatasetConfig,
    keys: list[str],
    staged: _Staged,
    keep: np.ndarray,
    counts: _Counts,
    origins: dict[str, dict[str, Any]],
) -> dict[str, Any]:
    source = np.frombuffer(staged.sources, np.uint16)
    label = np.frombuffer(staged.labels, np.int8).astype(bool)
    kept_by_source = np.bincount(source[keep], minlength=len(keys)).tolist()
    sources = {}
    for key, kept in zip(keys, kept_by_source, strict=True):
        rejected = dict(sorted(counts.rejected[key].items()))
        assert counts.rows[key] == kept + sum(rejected.values()), f"rows of {key} went astray"
        sources[key] = {
            "rows": counts.rows[key],
            "kept": kept,
            "rejected": rejected,
            "component": dataset.sources[key].component.name,
            "format": dataset.sources[key].format.name,
            "license": dataset.sources[key].license,
            "origin": origins[key],
        }
    records, labels = int((keep & ~label).sum()), int((keep & label).sum())
    rows = counts.rows.total()
    aside = rows - records - labels
    reasons: Counter[str] = Counter()
    for rejected_of in counts.rejected.values():
        reasons.update(rejected_of)
    over = reasons[OVER_LIMIT]
    parts = [f"{records:,} records from {len(keys)} sources"]
    if labels:
        parts.append(f"{labels:,} labelled refusals")
    if over:
        parts.append(f"{over:,} over a limit")
    parts.append(f"{aside - over:,} set aside")
    return {
        "line": ", ".join(parts),
        "rows": rows,
        "records": records,
        "labels": labels,
        "set_aside": aside,
        "reasons": dict(sorted(reasons.items())),
        "sources": sources,
    }
