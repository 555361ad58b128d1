"""Rows -> records with all that is needed to choose among them: the work of `pull` that any process can do.

In: a block of rows and the description of its source. Out: one `Prepared`. Nothing here depends on other blocks. Time:
some 5,000 records a second and core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cathpc.data import dedup
from cathpc.data.block import Block, too_large
from cathpc.data.config import SourceConfig
from cathpc.data.decontaminate import contaminated
from cathpc.data.formats import CONTAMINATED, Reject, excerpt, note_columns, to_record
from cathpc.data.read import rows
from cathpc.data.staging import Facts
from cathpc.record import MESSAGE_TYPE, RECORD_SCHEMA, Record, prompt_key, unit_hash

_SAMPLE_SEED = 20_260_101
"""Of the hash that `limit` samples by; another one than any split's, or a sample would be all held out."""
_LABELLED = 0x5DEECE66D
"""Makes labelled refusals other than all other records: they are compared among themselves."""


@dataclass(frozen=True)
class Task:
    """What is to be done with the blocks of one source."""

    index: int
    key: str
    source: SourceConfig
    columns: dict[str, str]
    name: str
    """What the origin of a record starts with."""
    max_bytes: int
    near_duplicates: float
    contaminants: Path | None
    """What `decontaminate.build` wrote."""


@dataclass(frozen=True)
class Prepared:
    """A block of records."""

    task: Task
    rows: int
    """Rows that the block had."""
    batch: pa.RecordBatch
    """RECORD_SCHEMA."""
    facts: Facts
    rejects: list[tuple[int, Reject]]
    """Row number, and why it is no record."""
    seen: dict[str, None]
    """Columns of its rows, see `note_columns`."""


def prepare(job: tuple[Task, Block]) -> Prepared:
    """Decode, check, clean and hash the rows of a block."""
    task, block = job
    count = 0
    records: list[tuple[int, Record]] = []
    rejects: list[tuple[int, Reject]] = []
    seen: dict[str, None] = {}
    wanted = frozenset(task.columns.values())
    note_columns(seen, block.columns, wanted)
    for number, row in rows(block, task.max_bytes):
        try:
            if isinstance(row, Reject):
                raise row
            if isinstance(row, dict):
                note_columns(seen, row, wanted)
            record = to_record(row, task.key, task.source, task.columns, f"{task.name}:{number}")
            size = sum(len(m["content"].encode()) for m in record.messages)
            if size > task.max_bytes:
                raise too_large(size, task.max_bytes)
            records.append((number, record))
        except Reject as error:
            if not error.excerpt and not isinstance(row, Reject):
                error.excerpt = excerpt(row)
            rejects.append((number, error))
            count += error.rows - 1
        count += 1
    if task.contaminants:
        found = contaminated([record.messages for _, record in records], task.contaminants)
        for place, detail in found.items():
            number, record = records[place]
            rejects.append((number, Reject(CONTAMINATED, detail, excerpt(record.messages[-1]["content"]))))
        records = [pair for place, pair in enumerate(records) if place not in found]
    rejects.sort(key=lambda pair: pair[0])
    kept = [record for _, record in records]
    return Prepared(task, count, to_batch(kept), _facts(kept, task), rejects, seen)


def to_batch(records: Sequence[Record]) -> pa.RecordBatch:
    """Records as Arrow, RECORD_SCHEMA."""
    ends = np.cumsum([0, *(len(r.messages) for r in records)], dtype=np.int32)
    parts = [pa.array([m[name] for r in records for m in r.messages], pa.string()) for name in ("role", "content")]
    messages = pa.ListArray.from_arrays(ends, pa.StructArray.from_arrays(parts, fields=list(MESSAGE_TYPE)))
    columns: list[Any] = [
        messages if f.name == "messages" else pa.array([getattr(r, f.name) for r in records], f.type)
        for f in RECORD_SCHEMA
    ]
    return pa.RecordBatch.from_arrays(columns, schema=RECORD_SCHEMA)


def _facts(records: Sequence[Record], task: Task) -> Facts:
    conversations = [r.messages for r in records]
    labelled = np.array([r.component == "refusal" for r in records], bool)
    exact = np.array([dedup.exact_key(c) for c in conversations], np.uint64)
    bands = dedup.signatures(conversations, task.near_duplicates) if task.near_duplicates else None
    if bands is not None:
        bands[labelled] ^= np.uint64(_LABELLED)
    exact[labelled] ^= np.uint64(_LABELLED)
    return Facts(
        ids=np.array([int(r.id, 16) for r in records], np.uint64),
        samples=np.array([unit_hash(prompt_key(c), _SAMPLE_SEED) for c in conversations], np.float64),
        exact=exact,
        untagged=np.array([not r.generator for r in records], bool),
        labelled=labelled,
        bands=bands,
    )
