"""Sources -> rows: where a block of rows comes from, and how it is decoded.

In: one source, local (`cathpc.data.files`) or of the Hub (`cathpc.data.remote`). Out: `Block`s, and `rows`, which
decodes one in whatever process: `(row number, row)` pairs, the number counted from 1 (the line number in JSON Lines),
where a row is a decoded object or a `Reject` that says why it could not be one.

Text is parsed here row by row: the `json` and `csv` builders of `datasets` fail a whole file for one broken row and
guess types (a text column of dates becomes timestamps, 'NA' becomes null).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from cathpc.data import remote
from cathpc.data.block import Block, first_line, too_large
from cathpc.data.columnar import arrow_blocks, wanted
from cathpc.data.config import SourceConfig
from cathpc.data.files import blocks
from cathpc.data.formats import BAD_TEXT, NOT_JSON, UNREADABLE, Reject, excerpt
from cathpc.errors import UserError

_BATCH = 256
"""Rows that are taken from the library at once; speed only."""


def hub_blocks(
    key: str,
    source: SourceConfig,
    commit: str,
    cache: Path,
    max_bytes: int,
    max_expanded: int,
    columns: Collection[str] | None = None,
) -> Iterator[Block]:
    """Rows of a Hub dataset at `commit`, its files one after the other, as if they were local: see `files.blocks`; the
    numbers of the rows go on from file to file. A dataset that needs code of its own to load is refused.

    What can only be read by the `datasets` library (a zipped file, a separator of its own) is streamed by it, and ends
    with the first damage. Raises `UserError` for a dataset, subset or split that is not there, `TryAgainError` when the
    Hub cannot be reached.
    """
    import datasets

    name = f"source {key!r}: {source.hub} at {commit[:12]}"
    if Path(source.hub).exists():  # the library would take it for a folder of data, and no commit would say what it is
        raise UserError(f"{name}: there is a file or folder {source.hub} in {Path.cwd()}; start from another folder")
    what: Any = {"path": source.hub, "name": source.subset or None, "revision": commit, "cache_dir": str(cache)}
    missing = (ValueError, RuntimeError, FileNotFoundError, datasets.exceptions.DatasetsError)
    try:
        files = remote.files(datasets.load_dataset_builder(**what), source.split)
        if files is None:
            stream = datasets.load_dataset(**what, split=source.split, streaming=True).with_format("arrow")
            yield from _streamed(stream.iter(_BATCH), columns)
    except (*remote.errors(), *missing) as error:
        raise remote.failure(name, error, f" (subset {source.subset!r}, split {source.split!r})") from None
    first = 1
    for address in files or ():
        path, last = address.partition(f"@{commit}/")[2] or address, 0
        with remote.Remote(address, f"{name}, {path}") as file:
            for block in blocks(file, path, max_bytes, max_expanded, columns):
                yield _of_a_part(block, first - 1, path)
                last = block.first - 1 + block.count
        first += last


def _of_a_part(block: Block, before: int, path: str) -> Block:
    """A block of one file of several, with `before` rows in those before it; damage says in which file it is."""
    rows = block.rows
    if not isinstance(rows, pa.RecordBatch):
        rows = [
            Reject(r.reason, f"{path}: {r.detail}", r.excerpt, r.rows)
            if isinstance(r, Reject) and r.reason == UNREADABLE
            else r
            for r in rows
        ]
    return replace(block, first=before + block.first, rows=rows)


def _streamed(tables: Iterable[pa.Table], columns: Collection[str] | None) -> Iterator[Block]:
    """Tables of one schema as blocks, of their columns those that are wanted."""
    tables = iter(tables)
    for first in tables:
        names = wanted(first.schema, columns)
        batches = (b for table in chain([first], tables) for b in table.select(names).to_batches())
        yield from arrow_blocks(batches, columns=tuple(first.schema.names))


def rows(block: Block, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """The rows of a block, decoded; blank lines are none."""
    if isinstance(block.rows, pa.RecordBatch):
        yield from _arrow_rows(block.rows, block.first, max_bytes)
        return
    for number, row in enumerate(block.rows, block.first):
        if not isinstance(row, bytes):
            yield number, row
        elif not row.isspace():
            yield number, _json(row)


def _json(line: bytes) -> Any:
    """The value of a line; bytes that are not UTF-8 become lone surrogates, which `formats` rejects where they
    count."""
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = line.decode("utf-8", "surrogateescape")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return Reject(NOT_JSON, f"{error.msg} at column {error.colno}", excerpt(text.strip()))
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        return Reject(NOT_JSON, first_line(error), excerpt(text.strip()))


def _arrow_rows(batch: pa.RecordBatch, first: int, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Rows of Arrow; where not all can be decoded, or some may be too large, one by one."""
    if batch.nbytes <= max_bytes:
        try:
            yield from enumerate(batch.to_pylist(), first)
            return
        except UnicodeDecodeError:
            pass
    for index in range(len(batch)):
        one = batch.slice(index, 1)
        if one.nbytes > max_bytes:
            yield first + index, too_large(one.nbytes, max_bytes)
            continue
        try:
            yield first + index, one.to_pylist()[0]
        except UnicodeDecodeError as error:
            yield first + index, Reject(BAD_TEXT, f"not valid UTF-8: {first_line(error)}")
