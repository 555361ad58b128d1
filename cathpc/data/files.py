"""Data files as rows that are not decoded yet, a block at a time; what is damaged is set aside, not fatal.

In: a file (JSON, JSON Lines, CSV, each also as .gz or .zst; Parquet; Arrow as `datasets` writes it) and the columns
that are wanted of it. Out: `Block`s. Memory: one block (`BLOCK_ROWS` rows or `BLOCK_BYTES`), and one row where it is
larger: a row over the limit is passed over in pieces, but for Parquet and Arrow, which hold columns, not rows. Time
grows with the file, which is read once from its start to its end.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from cathpc.data import json_array
from cathpc.data.block import BLOCK_BYTES, BLOCK_ROWS, DAMAGE, PIECE, Block, unreadable
from cathpc.data.columnar import ipc_blocks, parquet_blocks
from cathpc.data.formats import Reject
from cathpc.data.sources import COMPRESSIONS, file_kind
from cathpc.data.text import Limited, csv_rows, lines


def blocks(
    file: Path | io.RawIOBase,
    name: str,
    max_bytes: int,
    max_expanded: int,
    columns: Collection[str] | None = None,
) -> Iterator[Block]:
    """The rows of `file`, on this machine or open elsewhere (`cathpc.data.remote`), whose `name` says what it is; one
    over `max_bytes` is rejected. `columns` limits what is read of Parquet and Arrow.

    Where the file is damaged, what can be read before, and of Parquet after it, comes out, with one `Reject` for the
    rest. Raises `UserError` for a file that expands to more than `max_expanded` bytes.
    """
    kind = file_kind(name)
    if kind == "parquet":
        yield from parquet_blocks(file, max_expanded, columns)
        return
    if kind == "arrow":
        yield from ipc_blocks(file, max_expanded, columns)
        return
    numbered: Iterator[tuple[int, int, Any]]
    with Limited(file, COMPRESSIONS.get(Path(name).suffix.lower()), max_expanded) as raw:
        found = lines(io.BufferedReader(raw, PIECE), max_bytes)
        if kind == "csv":
            numbered = csv_rows(found, max_bytes)
        elif kind == "json" and raw.starts_with(b"["):
            numbered = json_array.elements(
                io.TextIOWrapper(io.BufferedReader(raw, PIECE), "utf-8-sig", "surrogateescape"), max_bytes
            )
        else:
            numbered = ((n, len(line) if isinstance(line, bytes) else 0, line) for n, line in enumerate(found, 1))
        yield from _gathered(numbered)


def _gathered(numbered: Iterator[tuple[int, int, Any]]) -> Iterator[Block]:
    """(number, size, row) in blocks; damage ends them with a reject."""
    first, rows, size = 1, list[Any](), 0
    try:
        for number, taken, row in numbered:
            rows.append(row)
            size += taken
            if len(rows) >= BLOCK_ROWS or size >= BLOCK_BYTES:
                yield Block(first, rows)
                first, rows, size = number + 1, [], 0
    except DAMAGE as error:
        rows.append(unreadable(error))
    except Reject as rest:
        rows.append(rest)
    if rows:
        yield Block(first, rows)
