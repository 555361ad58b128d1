"""Records between reading and writing: on disk in the order of reading, with what chooses among them in memory.

In: records, one after the other. Out: which of them stay, and why the others go. Memory grows by some 40 bytes a
record, and by the index of near-duplicates (`dedup`); the text stays in one Arrow file that is mapped, not loaded.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cathpc.data.dedup import exact_key, near_duplicates
from cathpc.data.formats import DUPLICATE, NEAR_DUPLICATE, OVER_LIMIT
from cathpc.record import RECORD_SCHEMA, Message, Record, prompt_key, unit_hash

_SAMPLE_SEED = 20_260_101
"""Of the hash that `limit` samples by; another one than any split's, or a sample would be all held out."""
_BATCH = 512
"""Records a batch of the file: what a later look at one record maps."""


class Staging:
    """A file of records that is written once, then read by number."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ids, self._samples, self._sources = array("Q"), array("d"), array("H")
        self._untagged, self._labelled = array("b"), array("b")
        self._exact = bytearray()
        self._rows: list[dict[str, Any]] = []
        self._sink = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._sink, RECORD_SCHEMA)

    def __len__(self) -> int:
        return len(self._ids)

    def add(self, record: Record, source: int) -> None:
        """Append a record of the source with the number `source`."""
        self._ids.append(int(record.id, 16))
        self._samples.append(unit_hash(prompt_key(record.messages), _SAMPLE_SEED))
        self._sources.append(source)
        self._untagged.append(not record.generator)
        self._labelled.append(record.component == "refusal")
        self._exact += exact_key(record.messages)
        self._rows.append(record.row())
        if len(self._rows) == _BATCH:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, schema=RECORD_SCHEMA))
            self._rows = []

    def close(self) -> None:
        """End the writing and map the file for reading."""
        self._flush()
        self._writer.close()
        self._sink.close()
        self._map = pa.memory_map(str(self._path))
        self._file = pa.ipc.open_file(self._map)

    def remove(self) -> None:
        """Delete the file."""
        del self._file
        self._map.close()
        self._path.unlink()

    def row(self, number: int) -> dict[str, Any]:
        """One record as a row of `RECORD_SCHEMA`."""
        row: dict[str, Any] = self._file.get_batch(number // _BATCH).slice(number % _BATCH, 1).to_pylist()[0]
        return row

    def messages(self, number: int) -> list[Message]:
        """The conversation of one record."""
        messages: list[Message] = self._file.get_batch(number // _BATCH).column("messages")[number % _BATCH].as_py()
        return messages

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All records, in order."""
        for index in range(self._file.num_record_batches):
            yield self._file.get_batch(index)

    @property
    def sources(self) -> np.ndarray:
        """Number of each record's source."""
        return np.frombuffer(self._sources, np.uint16)

    @property
    def labelled(self) -> np.ndarray:
        """Whether each record is a labelled refusal."""
        return np.frombuffer(self._labelled, np.int8).astype(bool)

    def choose(self, limits: list[int | None], threshold: float) -> tuple[np.ndarray, dict[int, tuple[str, int]]]:
        """Which records stay (bool, one each), and why each other goes: {number: (reason, number of what it repeats)}.

        `limits` holds one number or None a source; a limit takes the records whose prompts come first by a hash: all
        answers to one prompt go or stay together. `threshold` is for near-duplicates; 0 switches them off. Of
        duplicates the one stays whose generator is known, then that of the first source, then of the lowest id: nothing
        here depends on the order of the rows, but for rows that are equal in all this.
        """
        numbers, sources, labels = np.arange(len(self)), self.sources, self.labelled
        ids, samples = np.frombuffer(self._ids, np.uint64), np.frombuffer(self._samples, np.float64)
        keep = np.ones(len(self), bool)
        gone: dict[int, tuple[str, int]] = {}
        for source, limit in enumerate(limits):
            mine = numbers[sources == source]
            if limit is not None and len(mine) > limit:
                over = mine[np.lexsort((mine, ids[mine], samples[mine]))[limit:]]
                keep[over] = False
                gone.update((number, (OVER_LIMIT, number)) for number in over.tolist())

        order = np.lexsort((numbers, ids, sources, np.frombuffer(self._untagged, np.int8)))
        exact = np.frombuffer(bytes(self._exact), np.uint64).reshape(-1, 2)
        for labelled in (False, True):  # labelled refusals are compared among themselves
            mine = order[keep[order] & (labels[order] == labelled)]
            if not len(mine):
                continue
            _, first, group = np.unique(exact[mine], axis=0, return_index=True, return_inverse=True)
            winner = mine[first[group.reshape(-1)]]
            lost = winner != mine
            keep[mine[lost]] = False
            pairs = zip(mine[lost].tolist(), winner[lost].tolist(), strict=True)
            gone.update((number, (DUPLICATE, other)) for number, other in pairs)
            if threshold:
                for number, other in near_duplicates(mine[~lost].tolist(), self.messages, threshold):
                    keep[number] = False
                    gone[number] = (NEAR_DUPLICATE, other)
        return keep, gone
