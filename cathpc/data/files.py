"""Local data files as rows that are not decoded yet, a block at a time; what is damaged is set aside, not fatal.

In: a file (JSON, JSON Lines, CSV, each also as .gz or .zst; Parquet; Arrow as `datasets` writes it) and the columns
that are wanted of it. Out: `Block`s. Memory: one block (`_BLOCK_ROWS` rows or `_BLOCK_BYTES`), and one row where it is
larger: a row over the limit is passed over in pieces, but for Parquet and Arrow, which hold columns, not rows. Time
grows with the file, which is read once from its start to its end."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from cathpc.data.formats import NOT_CSV, TOO_LARGE, UNREADABLE, Reject, excerpt
from cathpc.data.sources import COMPRESSIONS, file_kind
from cathpc.errors import UserError

_BLOCK_ROWS = 1024
_BLOCK_BYTES = 4 << 20
_PIECE = 1 << 20
"""Bytes that are read at once."""
_DAMAGED_PIECE = 1 << 16
"""Bytes before the damage in a compressed file that may be lost with it."""
_LEAST_ROW_BYTES = 8
"""A row of Parquet counts for at least so much, whatever it takes in its file: a bomb may claim a thousand million."""

DAMAGE = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError)
"""What reading a damaged file raises."""

_SPACE = re.compile(r"[ \t\n\r]*")
_STRUCTURE = re.compile(r'["\\\[\]{}]')


@dataclass(frozen=True)
class Block:
    """Some rows that follow each other; the first one's number counts from 1."""

    first: int
    rows: pa.RecordBatch | list[Any]
    """Arrow; or raw lines of JSON (bytes), decoded rows, and `Reject`s of what is no row."""


def blocks(
    file: Path, name: str, max_bytes: int, max_expanded: int, columns: Collection[str] | None = None
) -> Iterator[Block]:
    """The rows of `file`, whose `name` says what it is; one over `max_bytes` is rejected. `columns` limits what is read
    of Parquet and Arrow.

    Where the file is damaged, what can be read before, and of Parquet after it, comes out, with one `Reject` for the
    rest. Raises `UserError` for a file that expands to more than `max_expanded` bytes.
    """
    kind = file_kind(name)
    if kind == "parquet":
        yield from _parquet(file, max_expanded, columns)
        return
    if kind == "arrow":
        yield from _arrow(file, columns)
        return
    numbered: Iterator[tuple[int, Any]]
    with _Limited(file, COMPRESSIONS.get(Path(name).suffix.lower()), max_expanded) as raw:
        lines = _lines(io.BufferedReader(raw, _PIECE), max_bytes)
        if kind == "csv":
            numbered = _csv(lines, max_bytes)
        elif kind == "json" and raw.starts_with(b"["):
            numbered = _array(
                io.TextIOWrapper(io.BufferedReader(raw, _PIECE), "utf-8-sig", "surrogateescape"), max_bytes
            )
        else:
            numbered = enumerate(lines, 1)
        yield from _gathered(numbered)


def _gathered(numbered: Iterator[tuple[int, Any]]) -> Iterator[Block]:
    """Rows in blocks; damage ends them with a reject."""
    first, rows, size, number = 1, [], 0, 0
    try:
        for number, row in numbered:
            rows.append(row)
            size += len(row) if isinstance(row, bytes) else 2000
            if len(rows) >= _BLOCK_ROWS or size >= _BLOCK_BYTES:
                yield Block(first, rows)
                first, rows, size = number + 1, [], 0
    except DAMAGE as error:
        rows.append(unreadable(error))
    except Reject as rest:
        rows.append(rest)
    if rows:
        yield Block(first, rows)


def unreadable(error: BaseException, rows: int = 1) -> Reject:
    """The reject for `rows` rows, or for all that follows, of a damaged file."""
    return Reject(UNREADABLE, f"damaged from here on: {first_line(error)}", rows=rows)


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def too_large(size: int, max_bytes: int, start: str = "") -> Reject:
    """The reject for a row of `size` bytes."""
    return Reject(TOO_LARGE, f"{size / 1e6:.1f} MB, the limit is {max_bytes / 1e6:g} MB", excerpt(start))


# --- text -------------------------------------------------------------------------------------------------------------


class _Limited(io.RawIOBase):
    """The expanded bytes of a file, at most so many."""

    def __init__(self, file: Path, compression: str | None, most: int) -> None:
        self._file, self._most, self._left, self._held = file, most, most, b""
        if compression == "gzip":
            self._source = cast(io.BufferedReader, gzip.GzipFile(file))
        else:
            self._source = cast(io.BufferedReader, pa.input_stream(str(file), compression=compression))

    def starts_with(self, mark: bytes) -> bool:
        """Whether the first character that is neither white space nor a byte-order mark is `mark`."""
        while not (start := self._held.removeprefix(b"\xef\xbb\xbf").lstrip()):
            try:
                piece = self._source.read(4096)
            except DAMAGE:
                return False  # whoever reads on meets it again
            if not piece:
                break
            self._held += piece
        return start.startswith(mark)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # `read` of a damaged file loses what it had before the damage
        piece = self._held[: len(buffer)] or self._source.read1(min(len(buffer), _DAMAGED_PIECE))
        self._held = self._held[len(piece) :] if self._held else b""
        self._left -= len(piece)
        if self._left < 0:
            raise bomb(self._file, self._most)
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


def bomb(file: Path, most: int) -> UserError:
    """The refusal of a file that is larger than one may expect."""
    return UserError(
        f"{file}: expanded size over the limit of {most / 1e9:g} GB. If the file is what you think it is, raise "
        "dataset.max_expanded_gb"
    )


def _lines(file: io.BufferedReader, max_bytes: int) -> Iterator[bytes | Reject]:
    """Lines with their ends; of one over `max_bytes` no more than that is ever held."""
    first = True
    while line := file.readline(max_bytes + 2):
        if first:
            line, first = line.removeprefix(b"\xef\xbb\xbf"), False
        if len(line) <= max_bytes or line.endswith(b"\n"):
            yield line
            continue
        size, start, rest = len(line), line[:200], line
        while not rest.endswith(b"\n") and (rest := file.readline(_PIECE)):
            size += len(rest)
        yield too_large(size, max_bytes, start.decode("utf-8", "replace"))


class _Decoded:
    """Lines as text for the `csv` module; a line that is too large ends the row that it is part of."""

    def __init__(self, lines: Iterator[bytes | Reject]) -> None:
        self._lines = lines

    def __iter__(self) -> _Decoded:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if isinstance(line, Reject):
            raise line
        return line.decode("utf-8", "surrogateescape")


def _csv(lines: Iterator[bytes | Reject], max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Rows of CSV under their header; raises `Reject` where there is none."""
    csv.field_size_limit(max_bytes)  # one for the whole process
    reader = csv.reader(_Decoded(lines), strict=True)
    header: list[str] = []
    number = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except (csv.Error, Reject) as error:
            if not header:
                raise Reject(UNREADABLE, f"no readable header: {error}") from None
            number += 1
            if isinstance(error, Reject):
                yield number, error
            elif "field limit" in str(error):
                yield number, Reject(TOO_LARGE, f"line {reader.line_num}: a field over {max_bytes / 1e6:g} MB")
            else:
                yield number, Reject(NOT_CSV, f"line {reader.line_num}: {error}")
            continue
        if not cells:
            continue
        if not header:
            header = [name.strip() for name in cells]
            continue
        number += 1
        size = sum(map(len, cells))
        if size > max_bytes:
            yield number, too_large(size, max_bytes, cells[0])
        elif len(cells) != len(header):
            seen = f"line {reader.line_num}: {len(cells)} fields, the header has {len(header)}"
            yield number, Reject(NOT_CSV, seen, excerpt(cells))
        else:
            yield number, dict(zip(header, cells, strict=True))


def _array(file: io.TextIOWrapper, max_bytes: int) -> Iterator[tuple[int, Any]]:
    """Elements of one JSON array, parsed as they arrive; one over `max_bytes` characters is passed over in pieces.

    Raises `Reject` for all that follows a place where the JSON is broken.
    """
    decoder = json.JSONDecoder()
    text, at = "", 0  # what has arrived and is not dropped yet; where to go on in it
    line, column = 1, 1  # where `text` starts in the file
    ended = False

    def arrive(least: int) -> None:
        """Drop what is parsed, take about `least` characters more."""
        nonlocal text, at, line, column, ended
        breaks = text.count("\n", 0, at)
        column = at - text.rfind("\n", 0, at) if breaks else column + at
        line += breaks
        more = file.read(least)
        ended = not more
        text, at = text[at:] + more, 0

    def peek() -> str:
        """The next character that is not white space, '' at the end."""
        nonlocal at
        while True:
            space = _SPACE.match(text, at)
            assert space is not None  # it matches the empty string too
            at = space.end()
            if at < len(text) or ended:
                return text[at : at + 1]
            arrive(_PIECE)

    def broken(what: str, position: int) -> Reject:
        breaks = text.count("\n", 0, position)
        place = position - text.rfind("\n", 0, position) if breaks else column + position
        return Reject(
            UNREADABLE, f"not valid JSON: {what} at line {line + breaks}, column {place}; nothing after it is read"
        )

    def pass_over() -> Reject:
        """Go behind an element that is too large, whatever it holds."""
        nonlocal at
        start, size, depth, quoted = text[at : at + 200], 0, 0, False
        while True:
            for mark in _STRUCTURE.finditer(text, at):
                if mark.start() < at:  # the character behind a backslash
                    continue
                character = mark[0]
                if character == "\\" and quoted:
                    size, at = size + mark.end() + 1 - at, mark.end() + 1
                    continue
                if character == '"':
                    quoted = not quoted
                elif not quoted:
                    depth += (character in "[{") - (character in "]}")
                size, at = size + mark.end() - at, mark.end()
                if not quoted and depth == 0:
                    return too_large(size, max_bytes, start)
            over = max(0, at - len(text))  # the escaped character has not arrived
            size, at = size + len(text) - at + over, len(text)
            arrive(_PIECE)
            if ended:
                raise broken("the array does not end", at)
            at += over

    peek()
    at += 1  # the opening bracket
    number = 0
    if peek() == "]":
        at += 1
    else:
        while True:
            peek()
            number += 1
            row: Any
            while True:
                if len(text) - at > 2 * max_bytes + _PIECE:
                    row = pass_over()
                    break
                try:
                    row, end = decoder.raw_decode(text, at)
                    if end < len(text) or ended:  # else a number may go on
                        row = too_large(end - at, max_bytes, text[at : at + 200]) if end - at > max_bytes else row
                        at = end
                        break
                except RecursionError:
                    raise broken("nested too deeply", at) from None
                except ValueError as error:
                    if ended:
                        where = error.pos if isinstance(error, json.JSONDecodeError) else at
                        raise broken(getattr(error, "msg", str(error)), where) from None
                arrive(max(_PIECE, len(text) - at))  # doubles, so that a large row is not parsed over and over
            yield number, row
            mark = peek()
            at += 1
            if mark == "]":
                break
            if mark != ",":
                raise broken("expected ',' or ']' after an element" if mark else "the array does not end", at - 1)
    if peek():
        raise broken("text after the end of the array", at)


# --- columns ----------------------------------------------------------------------------------------------------------


def _parquet(file: Path, max_expanded: int, columns: Collection[str] | None) -> Iterator[Block]:
    """Row groups one after the other, in batches of about `_BLOCK_BYTES`; a damaged one does not end the file."""
    try:
        parquet = pq.ParquetFile(file, buffer_size=_PIECE)  # else the pages of a whole row group are read at once
        groups = [parquet.metadata.row_group(n) for n in range(parquet.metadata.num_row_groups)]
    except DAMAGE as error:
        yield Block(
            1, [Reject(UNREADABLE, f"no readable footer, as of a file that was cut short: {first_line(error)}")]
        )
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
            rows = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES // size))
            for batch in parquet.iter_batches(rows, row_groups=[number], columns=names):
                yield Block(first, batch)
                first += len(batch)
        except DAMAGE as error:
            yield Block(first, [unreadable(error, end - first)])
        first = end


def _wanted(schema: pa.Schema, columns: Collection[str] | None) -> list[str]:
    """Those of `columns` that there are; all, where none of them is, for the sake of an error that names them."""
    return [name for name in schema.names if columns is None or name in columns] or list(schema.names)


def _arrow(file: Path, columns: Collection[str] | None) -> Iterator[Block]:
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
                step = max(1, min(_BLOCK_ROWS, _BLOCK_BYTES * max(1, len(batch)) // max(1, batch.nbytes)))
                for start in range(0, len(batch), step):
                    yield Block(first, batch.slice(start, step))
                    first += len(batch.slice(start, step))
    except DAMAGE as error:
        yield Block(first, [unreadable(error)])
