"""Parquet and Arrow as blocks of rows, a batch at a time, damaged files too."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cathpc.data.block import BLOCK_BYTES, BLOCK_ROWS, DAMAGE, PIECE, Block, bomb, unreadable
from cathpc.errors import UserError

_LEAST_ROW_BYTES = 8
"""A row of Parquet counts for at least so much, whatever it takes in its file: a bomb may claim a thousand million."""
_ROWS = 64
"""Rows that are expanded at once: no file says how often a long value of a dictionary stands in them."""


def arrow_blocks(batches: Iterable[pa.RecordBatch], first: int = 1, columns: tuple[str, ...] = ()) -> Iterator[Block]:
    """Batches joined or cut to blocks of at most `BLOCK_ROWS` rows and about `BLOCK_BYTES`, dictionaries expanded.

    A block holds its own rows alone: a slice would be pickled with all that it was cut from. What came before damage is
    given before it is raised.
    """
    held: list[pa.RecordBatch] = []
    try:
        for batch in batches:
            for start in range(0, len(batch), _ROWS):
                part = _expanded(batch.slice(start, _ROWS))
                rows, size = sum(map(len, held)), sum(one.nbytes for one in held)
                if held and (rows + len(part) > BLOCK_ROWS or size + part.nbytes > BLOCK_BYTES):
                    yield from _cut(held, first, columns)
                    first += rows
                held.append(part)
    except DAMAGE:
        yield from _cut(held, first, columns)
        raise
    yield from _cut(held, first, columns)


def _expanded(batch: pa.RecordBatch) -> pa.RecordBatch:
    parts = [part.dictionary_decode() if pa.types.is_dictionary(part.type) else part for part in batch.columns]
    return pa.RecordBatch.from_arrays(parts, names=batch.schema.names)


def _cut(held: list[pa.RecordBatch], first: int, columns: tuple[str, ...]) -> Iterator[Block]:
    """The rows of `held` in as many blocks as their bytes take; empties it."""
    if not held:
        return
    joined = _own(held)
    held.clear()
    step = max(1, len(joined) * BLOCK_BYTES // max(1, joined.nbytes))
    if step >= len(joined):
        yield Block(first, joined, columns)
        return
    for start in range(0, len(joined), step):
        yield Block(first + start, _own([joined.slice(start, step)]), columns)


def _own(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Batches as one, without what they were cut from; copied only where they must be."""
    only = parts[0]
    return only if len(parts) == 1 and only.get_total_buffer_size() < 1.1 * only.nbytes else pa.concat_batches(parts)


def _within(read: int, block: Block, most: int, file: Path | io.RawIOBase) -> int:
    """The bytes read so far and those of `block`; raises `UserError` for more than `most`."""
    read += block.rows.nbytes if isinstance(block.rows, pa.RecordBatch) else 0
    if read > most:
        raise bomb(file, most)
    return read


def parquet_blocks(file: Path | io.RawIOBase, max_expanded: int, columns: Collection[str] | None) -> Iterator[Block]:
    """Row groups one after the other; a damaged one does not end the file.

    Raises `UserError` where they claim, or turn out to hold, more than `max_expanded` bytes.
    """
    try:
        parquet = pq.ParquetFile(file, buffer_size=PIECE)  # else the pages of a whole row group are read at once
        groups = [parquet.metadata.row_group(n) for n in range(parquet.metadata.num_row_groups)]
        schema = parquet.schema_arrow
    except DAMAGE as error:
        yield Block(1, [unreadable(error)])
        return
    claimed = sum(max(group.total_byte_size, _LEAST_ROW_BYTES * group.num_rows) for group in groups)
    if claimed > max_expanded:
        raise bomb(file, max_expanded)
    if parquet.metadata.num_rows != sum(group.num_rows for group in groups):
        raise UserError(f"{file}: row count mismatch: {parquet.metadata.num_rows:,} in all, its row groups disagree")
    names = wanted(schema, columns)
    first, read = 1, 0
    for number, group in enumerate(groups):
        end = first + group.num_rows
        size = max(1, group.total_byte_size // max(1, group.num_rows))
        rows = max(1, min(_ROWS, BLOCK_BYTES // size))
        try:
            batches = parquet.iter_batches(rows, row_groups=[number], columns=names, use_threads=False)
            for block in arrow_blocks(batches, first, tuple(schema.names)):
                read = _within(read, block, max_expanded, file)
                yield block
                first += len(block.rows)
        except DAMAGE as error:
            yield Block(first, [unreadable(error, end - first)])
        first = end


def wanted(schema: pa.Schema, columns: Collection[str] | None) -> list[str]:
    """Those of `columns` that there are; all, where none of them is."""
    return [name for name in schema.names if columns is None or name in columns] or list(schema.names)


def ipc_blocks(file: Path | io.RawIOBase, max_expanded: int, columns: Collection[str] | None) -> Iterator[Block]:
    """Batches of an Arrow IPC file or stream; a file that was cut short is read as the stream that it begins with.

    Raises `UserError` where they hold more than `max_expanded` bytes.
    """
    first, read = 1, 0
    try:
        with pa.OSFile(str(file), "rb") if isinstance(file, Path) else pa.PythonFile(file, "r") as source:
            if source.read(6) == b"ARROW1":
                source.seek(8)
            else:
                source.seek(0)
            stream = pa.ipc.open_stream(source)
            names = wanted(stream.schema, columns)
            for block in arrow_blocks((b.select(names) for b in stream), first, tuple(stream.schema.names)):
                read = _within(read, block, max_expanded, file)
                yield block
                first += len(block.rows)
    except DAMAGE as error:
        yield Block(first, [unreadable(error)])
