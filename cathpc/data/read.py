"""Sources -> rows: where a block of rows comes from, and how it is decoded.

In: one source, local (`cathpc.data.files`) or of the Hub (by the `datasets` library in streaming mode). Out: `Block`s,
and `rows`, which decodes one in whatever process: `(row number, row)` pairs, the number counted from 1 (the line number
in JSON Lines), where a row is a decoded object or a `Reject` that says why it could not be one.

Text is parsed here row by row: the `json` and `csv` builders of `datasets` fail a whole file for one broken row and
guess types (a text column of dates becomes timestamps, 'NA' becomes null).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from cathpc.data.block import Block, first_line, too_large
from cathpc.data.columnar import arrow_blocks
from cathpc.data.config import SourceConfig
from cathpc.data.formats import BAD_TEXT, NOT_JSON, Reject, excerpt
from cathpc.errors import TryAgainError, UserError

_BATCH = 256
"""Rows that are taken from the library at once; speed only."""


def hub_blocks(key: str, source: SourceConfig, commit: str, cache: Path) -> Iterator[Block]:
    """Rows of a Hub dataset at `commit`, streamed. A dataset that needs code of its own to load is refused.

    Raises `UserError` for a dataset, subset or split that is not there, `TryAgainError` when the Hub cannot be reached.
    """
    import datasets
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, whichever it uses

    name = f"source {key!r}: {source.hub} at {commit[:12]}"
    if Path(source.hub).exists():  # the library would take it for a folder of data, and no commit would say what it is
        raise UserError(f"{name}: there is a file or folder {source.hub} in {Path.cwd()}; start from another folder")
    try:
        stream = datasets.load_dataset(
            source.hub,
            source.subset or None,
            split=source.split,
            revision=commit,
            streaming=True,
            cache_dir=str(cache),
        )
        tables = stream.with_format("arrow").iter(_BATCH)
        yield from arrow_blocks(batch for table in tables for batch in table.to_batches())
    except (ConnectionError, TimeoutError, httpx.TransportError) as error:
        raise TryAgainError(f"{name}: the Hub cannot be reached: {first_line(error)}") from None
    except (ValueError, RuntimeError, FileNotFoundError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        part = f"subset {source.subset!r}, split {source.split!r}"
        raise UserError(f"{name} cannot be loaded ({part}): {first_line(error)}") from None


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
