"""Records as tokens, by as many processes as there are cores; what comes out is the same however many they are.

In: a Parquet file of RECORD_SCHEMA and a model folder with its template. Out: one `Encoded` a batch of records, in the
order of the file. Memory: a few batches a process and, in each, its tokenizer (about 200 MB); neither grows with the
records. Time: about 1 MB of text a second and core.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cathpc.data.workers import in_order
from cathpc.errors import UserError
from cathpc.models.template import Template
from cathpc.record import heldout, unit_hash

SPLITS = ("train", "eval")
EVAL_SEED = 1
BUDGET_SEED = 2  # another split than the scoring models' own held-out prompts, so that the two are independent
BATCH = 512
RECORD = np.dtype([("row", np.int32), ("tokens", np.int32), ("supervised", np.int32), ("hash", np.float64)])
"""What is remembered of a record: its row in the file, its numbers of tokens and of those with a label, and the hash of
its id by which a budget of tokens is spent."""


@dataclass(frozen=True)
class Encoded:
    """A batch of records, by split, and those that cannot be trained on."""

    tokens: dict[str, np.ndarray]
    """int32 [tokens]: those of all records, one after the other; one without a label is ~id, which is below 0."""
    records: dict[str, np.ndarray]
    """RECORD [records]."""
    aside: list[dict[str, Any]]
    """id, reason and number of tokens; where the template refuses the conversation, also what it says."""


def encoded(source: Path, model: Path, seq_len: int, eval_share: float, workers: int) -> Iterator[Encoded]:
    """All records of `source`, a batch at a time, in order. `workers` processes share the work; 1 is this one alone."""
    file = pq.ParquetFile(source, buffer_size=2**20)  # else the pages of a whole row group are read at once
    batches = file.iter_batches(batch_size=BATCH, columns=["id", "messages"])
    numbered = ((number * BATCH, batch) for number, batch in enumerate(batches))
    needed = min(workers, -(-file.metadata.num_rows // BATCH))
    return in_order(partial(_encode, model, seq_len, eval_share), numbered, needed)


_template = cache(Template.load)


def _encode(model: Path, seq_len: int, eval_share: float, batch: tuple[int, pa.RecordBatch]) -> Encoded:
    template = _template(model)
    tokens: dict[str, list[np.ndarray]] = {split: [np.zeros(0, np.int32)] for split in SPLITS}
    records: dict[str, list[tuple[int, int, int, float]]] = {split: [] for split in SPLITS}
    aside = []
    for row, record in enumerate(batch[1].to_pylist(), batch[0]):
        try:
            ids, mask = template.encode(record["messages"])
        except UserError as refusal:  # the model's own template may want other roles
            aside.append({"id": record["id"], "reason": "refused_by_template", "tokens": 0, "detail": str(refusal)})
            continue
        learned = np.array(mask)
        learned[0] = False  # nothing in its own segment precedes it
        if reason := _unusable(learned, seq_len):
            aside.append({"id": record["id"], "reason": reason, "tokens": len(ids)})
            continue
        split = "eval" if heldout(record["messages"], eval_share, seed=EVAL_SEED) else "train"
        array = np.array(ids, np.int32)
        tokens[split].append(np.where(learned, array, ~array))
        records[split].append((row, len(ids), int(learned.sum()), unit_hash(record["id"], BUDGET_SEED)))
    return Encoded(
        {split: np.concatenate(arrays) for split, arrays in tokens.items()},
        {split: np.array(rows, RECORD) for split, rows in records.items()},
        aside,
    )


def _unusable(learned: np.ndarray, seq_len: int) -> str:
    """Why a conversation cannot be trained on; '' where it can."""
    if len(learned) > seq_len:
        return "too_long"
    if not learned.any():
        return "nothing_supervised"
    return ""
