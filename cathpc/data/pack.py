"""Stage `pack`: conversations become token, label and segment arrays of one fixed sequence length.

In: `carded.parquet` (RECORD_SCHEMA) and the base model's template. Out: `train/` and `eval/`, each with
`input_ids.npy` int32, `labels.npy` int32 (-100: no label) and `segment_ids.npy` int16 (1.. within a row, 0: padding) of
shape [bins, seq_len], `counts.npy` int32 [bins, 3] (COUNTS of each row) and `segments.parquet` (which record lies
where); `pack.json` (counts, efficiency, digests); `aside.jsonl` (records that cannot be trained on, with the reason).

Records are placed by best-fit decreasing, see `cathpc.data.bins`. Memory grows with records, some 100 bytes each, not
with tokens: these wait in flat files until their place is known and are put there a block of rows at a time. Disk: 10
bytes a token, while it runs 4 more.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cathpc import progress
from cathpc.data import ragged
from cathpc.data.bins import best_fit_decreasing
from cathpc.data.encode import RECORD, SPLITS, encoded
from cathpc.errors import UserError
from cathpc.store import file_hash, write_json

if TYPE_CHECKING:
    from cathpc.config import Config

NO_LABEL = -100
ARRAYS = {"input_ids": np.int32, "labels": np.int32, "segment_ids": np.int16}
COUNTS = ("records", "tokens", "supervised")
"""Columns of `counts.npy`; supervised tokens are those with a label."""
GROUP_TOKENS = 2**28
"""Tokens that lie together in the file from which rows are filled; it is mapped, 4 bytes each."""
BLOCK_TOKENS = 2**21
"""Tokens that are put in place at once; about 30 bytes each."""

SEGMENT_SCHEMA = pa.schema(
    [
        ("bin", pa.int32()),
        ("segment", pa.int16()),
        ("id", pa.string()),
        ("tokens", pa.int32()),
        ("supervised", pa.int32()),
    ]
)


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Pack the records of `cards` for the model of `base`; raises UserError when nothing is left to train on."""
    from cathpc.models.template import Template

    settings = config.pack
    source = inputs["cards"] / "carded.parquet"
    template = Template.load(inputs["base"] / "model")
    total = pq.ParquetFile(source).metadata.num_rows
    with _scratch(out) as scratch:
        records, aside = _encode(config, source, template.folder, scratch, out)
        if not len(records["train"]):
            raise UserError(
                f"{source}: none of its {total} records can be trained on with pack.seq_len={settings.seq_len} and "
                f"pack.eval_share={settings.eval_share} (set aside: {aside or 'none'}, held out: "
                f"{len(records['eval'])}). Raise pack.seq_len, lower pack.eval_share or keep more records in select."
            )
        chosen = {"train": within(records["train"], settings.max_tokens), "eval": np.arange(len(records["eval"]))}
        ids = pq.read_table(source, columns=["id"])["id"].combine_chunks()
        counts: dict[str, Any] = {}
        files: dict[str, str] = {}
        for split in SPLITS:
            counts[split], digests = write(
                scratch / f"{split}.flat",
                records[split],
                chosen[split],
                ids,
                settings.seq_len,
                template.pad_id,
                out / split,
            )
            files |= {f"{split}/{name}": digest for name, digest in sorted(digests.items())}
    over = len(records["train"]) - len(chosen["train"])
    identity = json.dumps([files, settings.seq_len, template.hash], sort_keys=True)
    summary: dict[str, Any] = {
        "seq_len": settings.seq_len,
        "pad_id": template.pad_id,
        "template_hash": template.hash,
        "records": total,
        "aside": aside,
        "over_budget": over,
        **counts,
        "files": files,
        "digest": hashlib.sha256(identity.encode()).hexdigest(),
    }
    write_json(out / "pack.json", summary)
    train = counts["train"]
    line = (
        f"{train['records']:,} records in {train['bins']:,} rows of {settings.seq_len:,} tokens, "
        f"{train['efficiency']:.1%} full; {counts['eval']['records']:,} held out, {sum(aside.values()):,} set aside"
        + (f", {over:,} over pack.max_tokens" if over else "")
    )
    return {key: value for key, value in summary.items() if key != "files"} | {"line": line}


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """An empty folder for what is not finished, gone at the end; one that a killed attempt left goes first."""
    folder = out / ".pack"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _encode(
    config: Config, source: Path, model: Path, scratch: Path, out: Path
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Write `<split>.flat` and `aside.jsonl`; the records by split and how many were set aside, by reason."""
    settings = config.pack
    workers = settings.workers or int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
    total = pq.ParquetFile(source).metadata.num_rows
    parts: dict[str, list[np.ndarray]] = {split: [np.zeros(0, RECORD)] for split in SPLITS}
    reasons: Counter[str] = Counter()
    done = 0
    with ExitStack() as files:
        flat = {split: files.enter_context((scratch / f"{split}.flat").open("wb")) for split in SPLITS}
        aside = files.enter_context((scratch / "aside.jsonl").open("w", encoding="utf-8"))
        for batch in encoded(source, model, settings.seq_len, settings.eval_share, workers):
            for split in SPLITS:
                flat[split].write(batch.tokens[split].data)
                parts[split].append(batch.records[split])
                done += len(batch.records[split])
            for row in batch.aside:
                aside.write(json.dumps({**row, "seq_len": settings.seq_len}) + "\n")
                reasons[row["reason"]] += 1
            progress.report(out, done + reasons.total(), total, "records")
    _commit(scratch / "aside.jsonl", out / "aside.jsonl")
    return {split: np.concatenate(arrays) for split, arrays in parts.items()}, dict(reasons)


def within(records: np.ndarray, max_tokens: int | None) -> np.ndarray:
    """Indices of the records to train on, ascending: all, or those that fit `max_tokens` in the order of their hash.

    The first one stays in any case.
    """
    if max_tokens is None:
        return np.arange(len(records))
    order = np.argsort(records["hash"], kind="stable")
    fit = np.searchsorted(np.cumsum(records["tokens"][order], dtype=np.int64), max_tokens, "right")
    return np.sort(order[: max(1, int(fit))])


def write(
    flat: Path, records: np.ndarray, chosen: np.ndarray, ids: pa.Array, seq_len: int, pad_id: int, folder: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    """Write the split `folder`; its counts and the digests of its files.

    `records`: RECORD [records], of all whose tokens lie in `flat`, in order; `chosen`: indices of those to place,
    ascending; `ids`: of all rows of the source. What is not finished lies beside `flat`, which may be rewritten.
    """
    order, starts = best_fit_decreasing(records["tokens"][chosen], seq_len)
    members, bins = chosen[order], len(starts) - 1
    folder.mkdir(exist_ok=True)
    totals = np.zeros(len(COUNTS), np.int64)
    digests: dict[str, str] = {}
    table = flat.with_name("segments.parquet")
    with ExitStack() as files:
        append = {
            name: files.enter_context(_npy(folder / f"{name}.npy", dtype, (bins, width), flat.parent, digests))
            for name, dtype, width in (*((n, d, seq_len) for n, d in ARRAYS.items()), ("counts", np.int32, len(COUNTS)))
        }
        segments = files.enter_context(pq.ParquetWriter(table, SEGMENT_SCHEMA))
        threads = files.enter_context(ThreadPoolExecutor(len(append)))  # one block is written while the next is filled
        writes: list[Future[None]] = []
        for low, bounds, tokens in _by_row(flat, records["tokens"], members, starts, seq_len):
            high, sizes = low + len(bounds) - 1, np.diff(bounds)
            here = records[members[bounds[0] : bounds[-1]]]
            segment = np.arange(bounds[0], bounds[-1]) - np.repeat(bounds[:-1], sizes) + 1
            sums = [np.add.reduceat(here[name], bounds[:-1] - bounds[0]) for name in COUNTS[1:]]
            counts = np.stack([sizes, *sums], axis=1).astype(np.int32)
            totals += counts.sum(axis=0)
            filled = arrays(tokens, here["tokens"], segment, seq_len, pad_id)
            for written in writes:
                written.result()
            writes = [threads.submit(append[name], rows) for name, rows in {**filled, "counts": counts}.items()]
            columns = {
                "bin": np.repeat(np.arange(low, high, dtype=np.int32), sizes),
                "segment": segment.astype(np.int16),
                "id": ids.take(pa.array(here["row"])),
                "tokens": here["tokens"],
                "supervised": here["supervised"],
            }
            segments.write_table(pa.table(columns, schema=SEGMENT_SCHEMA))
            progress.report(folder.parent, high, bins, "rows", note=folder.name)
        for written in writes:
            written.result()
    _commit(table, folder / table.name)
    digests[table.name] = file_hash(folder / table.name)
    found = dict(zip(COUNTS, totals.tolist(), strict=True))
    return {**found, "bins": bins, "efficiency": found["tokens"] / (bins * seq_len) if bins else 0.0}, digests


def _by_row(
    flat: Path, lengths: np.ndarray, members: np.ndarray, starts: np.ndarray, seq_len: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """A block of rows at a time: its first row, its part of `starts`, and its tokens in the order of the rows.

    `lengths` [records]: of all in `flat`; `members` and `starts`: the records by row. Where `flat` holds more than
    memory may, its records are brought together by groups of rows first: else each would be a read of its own.
    """
    bins = len(starts) - 1
    group_rows, block_rows = (max(1, tokens // seq_len) for tokens in (GROUP_TOKENS, BLOCK_TOKENS))
    if bins > group_rows or len(members) < len(lengths):
        groups = np.full(len(lengths), -1, np.int32)
        groups[members] = np.repeat(np.arange(bins, dtype=np.int32), np.diff(starts)) // group_rows
        ragged.group(flat, flat.with_name("grouped"), lengths, groups)
        flat.with_name("grouped").rename(flat)
    at = 0
    for first in range(0, bins, group_rows):
        bounds = starts[first : first + group_rows + 1]
        present, order = np.unique(members[bounds[0] : bounds[-1]], return_inverse=True)  # as they lie in the file
        size = int(lengths[present].sum())
        tokens = np.memmap(flat, np.int32, "r", offset=at * 4, shape=(size,))
        at += size
        column = ragged.column(tokens, lengths[present])
        for low in range(0, len(bounds) - 1, block_rows):
            block = bounds[low : low + block_rows + 1]
            yield first + low, block, ragged.take(column, order[block[0] - bounds[0] : block[-1] - bounds[0]])


def arrays(
    tokens: np.ndarray, lengths: np.ndarray, segment: np.ndarray, seq_len: int, pad_id: int
) -> dict[str, np.ndarray]:
    """ARRAYS [rows, seq_len] of records in the order in which they lie.

    `tokens`: int32, those of all records, one without a label as ~id; `lengths` and `segment` [records]: how many
    they are and the place in the row, from 1 on.
    """
    row = np.cumsum(segment == 1) - 1
    full = np.bincount(row, weights=lengths).astype(np.int64)
    used = np.arange(seq_len) < full[:, None]
    filled = {
        "input_ids": (pad_id, np.where(tokens < 0, ~tokens, tokens)),
        "labels": (NO_LABEL, np.where(tokens < 0, NO_LABEL, tokens)),
        "segment_ids": (0, np.repeat(segment.astype(np.int16), lengths)),
    }
    found = {}
    for name, (filler, values) in filled.items():
        found[name] = np.full(used.shape, filler, ARRAYS[name])
        found[name][used] = values
    return found


@contextmanager
def _npy(
    path: Path, dtype: Any, shape: tuple[int, int], scratch: Path, digests: dict[str, str]
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends rows to a new array file of `shape`; at the end it is in place and its SHA-256 noted."""
    digest = hashlib.sha256()
    temporary = scratch / path.name
    with temporary.open("wb") as file:

        def append(data: Any) -> None:
            file.write(data)
            digest.update(data)

        header = io.BytesIO()
        about = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, about)
        append(header.getvalue())
        yield lambda rows: append(rows.reshape(-1).data)
    _commit(temporary, path)
    digests[path.name] = digest.hexdigest()


def _commit(temporary: Path, final: Path) -> None:
    """Put a written file in its place when it is on the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)
