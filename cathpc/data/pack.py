"""Stage `pack`: conversations become token, label and segment arrays of one fixed sequence length.

In: `carded.parquet` (RECORD_SCHEMA) and the base model's template. Out: `train/` and `eval/`, each with
`input_ids.npy` int32, `labels.npy` int32 (-100: no label) and `segment_ids.npy` int16 (1.. within a row, 0: padding) of
shape [bins, seq_len], and `segments.parquet` (which record lies where); `pack.json` (counts, efficiency, digests);
`aside.jsonl` (records that cannot be trained on, with the reason). Disk grows with tokens; memory grows with records
(16 bytes each and their ids), not with tokens: encoded text waits in a flat file until its place is known.

Records are placed by best-fit decreasing (Johnson 1973): the longest first, each into the fullest row that has room.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cathpc import progress
from cathpc.errors import UserError
from cathpc.models.weights import write_json
from cathpc.record import Message, heldout, unit_hash

if TYPE_CHECKING:
    from cathpc.config import Config

NO_LABEL = -100
SPLITS = ("train", "eval")
ARRAYS = {"input_ids": np.int32, "labels": np.int32, "segment_ids": np.int16}
EVAL_SEED = 1
BUDGET_SEED = 2  # another split than the scoring models' own held-out prompts, so that the two are independent

SEGMENT_SCHEMA = pa.schema(
    [
        ("bin", pa.int32()),
        ("segment", pa.int16()),
        ("id", pa.string()),
        ("tokens", pa.int32()),
        ("supervised", pa.int32()),
    ]
)


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Bins of indices into `lengths`, each bin's lengths summing to `capacity` at most.

    Deterministic: ties go by index. O(n log capacity): bins are kept by the room that is left in them.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    bins: list[list[int]] = []
    by_room: dict[int, list[int]] = {}
    rooms: list[int] = []  # sorted; the rooms that some bin has
    for i in order:
        length = lengths[i]
        assert 0 < length <= capacity, f"length {length} of item {i} is not in 1..{capacity}"
        at = bisect.bisect_left(rooms, length)
        if at == len(rooms):
            chosen, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[at]
            chosen = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        bins[chosen].append(i)
        left = room - length
        if left:
            if left not in by_room:
                by_room[left] = []
                bisect.insort(rooms, left)
            by_room[left].append(chosen)
    return bins


def run(config: Config, inputs: dict[str, Path], out: Path) -> dict[str, Any]:
    """Pack the records of `cards` for the model of `base`; raises UserError when nothing is left to train on."""
    from cathpc.models.template import Template

    template = Template.load(inputs["base"] / "model")
    seq_len = config.pack.seq_len
    source = inputs["cards"] / "carded.parquet"
    flats = {split: _Flat(out / f".{split}") for split in SPLITS}
    reasons: dict[str, int] = {}
    records = pq.ParquetFile(source).metadata.num_rows
    with (out / ".aside.jsonl").open("w", encoding="utf-8") as aside:
        for done, (record_id, messages) in enumerate(_records(source), 1):
            ids, supervised = template.encode(messages)
            reason = _unusable(ids, supervised, seq_len)
            if reason:
                row = {"id": record_id, "reason": reason, "tokens": len(ids), "seq_len": seq_len}
                aside.write(json.dumps(row) + "\n")
                reasons[reason] = reasons.get(reason, 0) + 1
            else:
                split = "eval" if heldout(messages, config.pack.eval_share, seed=EVAL_SEED) else "train"
                flats[split].add(record_id, ids, supervised)
            progress.report(out, done, records, "records")
        aside.flush()
        os.fsync(aside.fileno())
    os.replace(out / ".aside.jsonl", out / "aside.jsonl")
    if not flats["train"].ids:
        for flat in flats.values():
            flat.remove()
        raise UserError(
            f"{source}: none of its {records} records can be trained on with pack.seq_len={seq_len} and "
            f"pack.eval_share={config.pack.eval_share} (set aside: {reasons or 'none'}, held out: "
            f"{len(flats['eval'].ids)}). Raise pack.seq_len, lower pack.eval_share or keep more records in select."
        )
    chosen = {"train": _within(flats["train"], config.pack.max_tokens), "eval": list(range(len(flats["eval"].ids)))}
    over = len(flats["train"].ids) - len(chosen["train"])
    counts = {s: _write(out / s, flats[s], chosen[s], seq_len, template.pad_id) for s in SPLITS}
    files = {f"{split}/{path.name}": _sha256(path) for split in SPLITS for path in sorted((out / split).iterdir())}
    summary: dict[str, Any] = {
        "seq_len": seq_len,
        "pad_id": template.pad_id,
        "template_hash": template.hash,
        "records": records,
        "aside": reasons,
        "over_budget": over,
        **counts,
        "files": files,
        "digest": hashlib.sha256(json.dumps([files, seq_len, template.hash], sort_keys=True).encode()).hexdigest(),
    }
    write_json(out / "pack.json", summary)
    train = counts["train"]
    line = (
        f"{train['records']:,} records in {train['bins']:,} rows of {seq_len:,} tokens, {train['efficiency']:.1%} full"
        f"; {counts['eval']['records']:,} held out, {sum(reasons.values()):,} set aside"
        + (f", {over:,} over pack.max_tokens" if over else "")
    )
    return {key: value for key, value in summary.items() if key != "files"} | {"line": line}


def _unusable(ids: list[int], supervised: list[bool], seq_len: int) -> str:
    """Why a conversation cannot be trained on; '' where it can. A row's first token is never predicted."""
    if len(ids) > seq_len:
        return "too_long"
    if not any(supervised[1:]):
        return "nothing_supervised"
    return ""


def _records(source: Path) -> Iterator[tuple[str, list[Message]]]:
    for batch in pq.ParquetFile(source).iter_batches(batch_size=256, columns=["id", "messages"]):
        for row in batch.to_pylist():
            yield row["id"], row["messages"]


class _Flat:
    """Encoded records of one split in two flat files, of ids and of labels, until they are placed."""

    def __init__(self, path: Path) -> None:
        self.paths = [path.with_name(f"{path.name}.{kind}.bin") for kind in ("ids", "labels")]
        self.files = [p.open("wb") for p in self.paths]
        self.ids: list[str] = []
        self.lengths: list[int] = []
        self.supervised: list[int] = []

    def add(self, record_id: str, ids: list[int], supervised: list[bool]) -> None:
        tokens = np.array(ids, dtype=np.int32)
        labels = np.where(np.array(supervised, dtype=bool), tokens, NO_LABEL).astype(np.int32)
        labels[0] = NO_LABEL  # nothing in its own segment precedes it
        self.files[0].write(tokens.tobytes())
        self.files[1].write(labels.tobytes())
        self.ids.append(record_id)
        self.lengths.append(len(ids))
        self.supervised.append(int((labels != NO_LABEL).sum()))

    def close(self) -> None:
        """No more records."""
        for file in self.files:
            file.close()

    def arrays(self) -> list[np.ndarray]:
        """Ids and labels of all records, flat, mapped from disk."""
        self.close()
        if not self.ids:
            return [np.zeros(0, np.int32), np.zeros(0, np.int32)]
        return [np.memmap(p, dtype=np.int32, mode="r") for p in self.paths]

    def remove(self) -> None:
        """Delete the flat files."""
        self.close()
        for path in self.paths:
            path.unlink(missing_ok=True)


def _within(flat: _Flat, max_tokens: int | None) -> list[int]:
    """Indices of the records to train on: all, or those that fit `max_tokens` in the order of a hash of their ids."""
    if max_tokens is None:
        return list(range(len(flat.ids)))
    taken: list[int] = []
    total = 0
    for i in sorted(range(len(flat.ids)), key=lambda i: unit_hash(flat.ids[i], BUDGET_SEED)):
        if taken and total + flat.lengths[i] > max_tokens:
            break
        taken.append(i)
        total += flat.lengths[i]
    return sorted(taken)


def _write(folder: Path, flat: _Flat, chosen: list[int], seq_len: int, pad_id: int) -> dict[str, Any]:
    """Place one split's chosen records, write its arrays and `segments.parquet`; its counts."""
    folder.mkdir(exist_ok=True)
    ids, labels = flat.arrays()
    lengths = [flat.lengths[i] for i in chosen]
    bins = [[chosen[k] for k in members] for members in best_fit_decreasing(lengths, seq_len)]
    shape = (len(bins), seq_len)
    temporary = {name: folder / f".{name}.npy" for name in ARRAYS}
    arrays: dict[str, np.ndarray]
    if bins:
        arrays = {
            name: np.lib.format.open_memmap(temporary[name], mode="w+", dtype=dtype, shape=shape)
            for name, dtype in ARRAYS.items()
        }
    else:  # an empty file cannot be mapped
        arrays = {name: np.zeros(shape, dtype) for name, dtype in ARRAYS.items()}
        for name, array in arrays.items():
            np.save(temporary[name], array)
    starts = np.concatenate([[0], np.cumsum(flat.lengths, dtype=np.int64)])
    rows: dict[str, list[Any]] = {name: [] for name in SEGMENT_SCHEMA.names}
    for row, members in enumerate(bins):
        at = 0
        arrays["input_ids"][row] = pad_id
        arrays["labels"][row] = NO_LABEL
        arrays["segment_ids"][row] = 0
        for segment, i in enumerate(members, 1):
            length = flat.lengths[i]
            here, there = slice(at, at + length), slice(int(starts[i]), int(starts[i + 1]))
            arrays["input_ids"][row, here] = ids[there]
            arrays["labels"][row, here] = labels[there]
            arrays["segment_ids"][row, here] = segment
            at += length
            values = (row, segment, flat.ids[i], length, flat.supervised[i])
            for name, value in zip(SEGMENT_SCHEMA.names, values, strict=True):
                rows[name].append(value)
    for name, array in arrays.items():
        if isinstance(array, np.memmap):
            array.flush()
        _commit(temporary[name], folder / f"{name}.npy")
    pq.write_table(pa.table(rows, schema=SEGMENT_SCHEMA), folder / ".segments.parquet")
    _commit(folder / ".segments.parquet", folder / "segments.parquet")
    flat.remove()
    tokens = sum(lengths)
    return {
        "records": len(chosen),
        "bins": len(bins),
        "tokens": tokens,
        "supervised": sum(flat.supervised[i] for i in chosen),
        "efficiency": tokens / (len(bins) * seq_len) if bins else 0.0,
    }


def _commit(temporary: Path, final: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, final)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
