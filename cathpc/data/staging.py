"""Records between reading and writing: on disk in the order of reading, with what chooses among them in memory.

In: batches of records, one after the other. Out: which of them stay, and why the others go. Memory grows by some 80
bytes a record; text and signatures stay on disk. The file of records is read in batches, or mapped for a while only, so
that its pages do not count as this process's.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cathpc.data.dedup import Bands
from cathpc.record import RECORD_SCHEMA, Message

KEPT, OVER, EXACT, NEAR = range(4)
"""What becomes of a record."""
_REMAP = 2000
"""Looks at single records after which the file is mapped anew, which gives its pages back."""


@dataclass(frozen=True)
class Facts:
    """What is remembered of a batch of records, one value each."""

    ids: np.ndarray
    """uint64: the record's id."""
    samples: np.ndarray
    """float64: the hash of its prompt by which a limit takes records."""
    exact: np.ndarray
    """uint64: equal for exact duplicates."""
    untagged: np.ndarray
    """bool: its generator is not known."""
    labelled: np.ndarray
    """bool: a labelled refusal."""
    bands: np.ndarray | None
    """uint64 [records, bands], see `dedup.signatures`; None where near-duplicates stay."""


class Staging:
    """A file of records that is written once, then read by number; as a context it ends the writing in any case."""

    def __init__(self, folder: Path, threshold: float) -> None:
        self._path = folder / "records.arrow"
        self._threshold = threshold
        self._columns: dict[str, array[Any]] = {
            "ids": array("Q"),
            "samples": array("d"),
            "exact": array("Q"),
            "sources": array("H"),
        }
        self._columns |= {"untagged": array("b"), "labelled": array("b")}
        self._starts = [0]
        self._bands = Bands(folder, threshold) if threshold else None
        self._sink = pa.OSFile(str(self._path), "wb")
        self._writer = pa.ipc.new_file(self._sink, RECORD_SCHEMA)
        self._looks = 0

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __len__(self) -> int:
        return self._starts[-1]

    def add(self, batch: pa.RecordBatch, facts: Facts, source: int) -> None:
        """Append records (RECORD_SCHEMA) of the source with the number `source`."""
        if not len(batch):
            return
        self._writer.write_batch(batch)
        self._starts.append(self._starts[-1] + len(batch))
        for name, column in self._columns.items():
            values = np.full(len(batch), source) if name == "sources" else getattr(facts, name)
            column.frombytes(np.ascontiguousarray(values, column.typecode).tobytes())
        if self._bands and facts.bands is not None:
            self._bands.add(facts.bands)

    def close(self) -> None:
        """End the writing."""
        self._end()
        self._map()

    def _end(self) -> None:
        if not self._sink.closed:
            self._writer.close()
            self._sink.close()
        if self._bands:
            self._bands.close()

    def _map(self) -> None:
        self._file = pa.ipc.open_file(pa.memory_map(str(self._path)))

    def remove(self) -> None:
        """Delete the file."""
        del self._file
        self._path.unlink()

    def _at(self, number: int) -> tuple[pa.RecordBatch, int]:
        self._looks += 1
        if self._looks % _REMAP == 0:
            self._map()
        batch = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self._file.get_batch(batch), number - self._starts[batch]

    def messages(self, number: int) -> list[Message]:
        """The conversation of one record."""
        batch, row = self._at(number)
        messages: list[Message] = batch.column("messages")[row].as_py()
        return messages

    def origin(self, number: int) -> str:
        """Where one record comes from."""
        batch, row = self._at(number)
        return str(batch.column("origin")[row].as_py())

    def batches(self) -> Iterator[tuple[int, pa.RecordBatch]]:
        """All records in order, and the number of each batch's first."""
        with pa.OSFile(str(self._path), "rb") as source:
            file = pa.ipc.open_file(source)
            for index, start in enumerate(self._starts[:-1]):
                yield start, file.get_batch(index)

    def _column(self, name: str) -> np.ndarray:
        column = self._columns[name]
        return np.frombuffer(column, column.typecode) if len(column) else np.zeros(0, column.typecode)

    @property
    def ids(self) -> np.ndarray:
        """Id of each record, uint64."""
        return self._column("ids")

    @property
    def sources(self) -> np.ndarray:
        """Number of each record's source."""
        return self._column("sources")

    @property
    def labelled(self) -> np.ndarray:
        """Whether each record is a labelled refusal."""
        return self._column("labelled").astype(bool)

    def choose(self, limits: list[int | None]) -> tuple[np.ndarray, np.ndarray]:
        """What becomes of each record (`KEPT`, `OVER`, `EXACT`, `NEAR`; int8) and the number of what it repeats
        (int64).

        `limits` holds one number or None a source; a limit takes the records whose prompts come first by a hash: all
        answers to one prompt go or stay together, unless the first prompt alone has more of them. Of duplicates the
        one stays whose generator is known, then that of the first source, then of the lowest id: nothing here depends
        on the order of the rows, but for rows that are equal in all this."""
        numbers, sources, ids = np.arange(len(self)), self.sources, self.ids
        fate, other = np.zeros(len(self), np.int8), np.full(len(self), -1)
        for source, limit in enumerate(limits):
            mine = numbers[sources == source] if limit is not None else numbers[:0]
            if limit is not None and len(mine) > limit:
                mine = mine[np.lexsort((mine, ids[mine], self._column("samples")[mine]))]
                samples = self._column("samples")[mine]
                whole = int(np.searchsorted(samples, samples[limit]))  # where the prompt on the border starts
                fate[mine[whole or limit :]] = OVER
        order = np.lexsort((ids, sources, self._column("untagged")))
        order = order[fate[order] == KEPT]
        keys = self._column("exact")[order]
        places = np.argsort(keys, kind="stable")
        new = np.flatnonzero(np.concatenate([[True], keys[places][1:] != keys[places][:-1]])) if len(keys) else places
        winner = np.repeat(places[new], np.diff(np.append(new, len(places))))
        lost = winner != places
        fate[order[places[lost]]], other[order[places[lost]]] = EXACT, order[winner[lost]]
        if self._bands:
            order = order[fate[order] == KEPT]
            for number, first in self._bands.near_duplicates(order, self.messages, self._threshold):
                fate[number], other[number] = NEAR, first
        return fate, other
