"""Parquet and Arrow files as blocks of rows, a batch at a time, damaged ones too."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cathpc.data.block import BLOCK_BYTES, BLOCK_ROWS, DAMAGE, PIECE, Block, bomb, unreadable
from cathpc.errors import UserError

_LEAST_ROW_BYTES = 8
"""A row of Parquet counts for at least so much, whatever it takes in its file: a bomb may claim a thousand million."""


def parquet_blocks(file: Path, max_expanded: int, columns: Collection[str] | None) -> Iterator[Block]:
    """Row groups one after the other, in batches of about `BLOCK_BYTES`; a damaged one does not end the file."""
    try:
        parquet = pq.ParquetFile(file, buffer_size=PIECE)  # else the pages of a whole row group are read at once
        groups = [parquet.metadata.row_group(n) for n in range(parquet.metadata.num_row_groups)]
    except DAMAGE as error:
        yield Block(1, [unreadable(error)])
        return
    claimed = sum(max(group.total_byte_size, _LEAST_ROW_BYTES * group.num_rows) for group in groups)
    if claimed > max_expanded:
        raise bomb(file, max_expanded)
    if parquet.metadata.num_rows != sum(group.num_rows for group in groups):
        raise UserError(f"{file}: row count mismatch: {parquet.metadata.num_rows:,} in all, its row groups disagree")
    names = _wanted(parquet.schema_arrow, columns)
    first = 1
    for number, group in enumerate(groups):
        end = first + group.num_rows
        size = max(1, group.total_byte_size // max(1, group.num_rows))
        try:
            rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // size))
            for batch in parquet.iter_batches(rows, row_groups=[number], columns=names):
                yield Block(first, batch)
                first += len(batch)
        except DAMAGE as error:
            yield Block(first, [unreadable(error, end - first)])
        first = end


def _wanted(schema: pa.Schema, columns: Collection[str] | None) -> list[str]:
    """Those of `columns` that there are; all, where none of them is, for the sake of an error that names them."""
    return [name for name in schema.names if columns is None or name in columns] or list(schema.names)


def arrow_blocks(file: Path, columns: Collection[str] | None) -> Iterator[Block]:
    """Batches of an Arrow IPC file or stream; a file that was cut short is read as the stream that it begins with."""
    first = 1
    try:
        with pa.OSFile(str(file), "rb") as source:
            if source.read(6) == b"ARROW1":
                source.seek(8)
            else:
                source.seek(0)
            for batch in pa.ipc.open_stream(source):
                batch = batch.select(_wanted(batch.schema, columns))
                step = max(1, min(BLOCK_ROWS, BLOCK_BYTES * max(1, len(batch)) // max(1, batch.nbytes)))
                for start in range(0, len(batch), step):
                    yield Block(first, batch.slice(start, step))
                    first += len(batch.slice(start, step))
    except DAMAGE as error:
        yield Block(first, [unreadable(error)])
