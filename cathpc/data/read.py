"""Sources -> rows, one after the other, by the `datasets` library in streaming mode.

In: one source. Out: `(row number, row)` pairs, the number counted from 1 (the line number in JSON Lines), where a row
is a decoded object or a `Reject` that says why it could not be one. Memory grows with the largest row, not the source.

Text files come through the `text` builder, which hands out raw lines, and are parsed here row by row: the `json` and
`csv` builders fail a whole file for one broken row and guess types (a text column of dates becomes timestamps, 'NA'
becomes null). Lines are read as Latin-1, which maps every byte to one character, and turned back into bytes: so a row
with bad UTF-8 is one bad row.
"""

from __future__ import annotations

import csv
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from cathpc.data.config import SourceConfig
from cathpc.data.formats import BAD_TEXT, NOT_CSV, NOT_JSON, TOO_LARGE, Reject, excerpt
from cathpc.data.sources import file_kind
from cathpc.errors import TryAgainError, UserError

Rows = Iterator[tuple[int, Any]]

_BATCH = 256
"""Rows that are taken from the library at once; speed only."""
_ARRAY_CHUNK = 1 << 20
"""Characters of a JSON array that are parsed at once."""
_SPACE = re.compile(r"[ \t\n\r]*")


def local_rows(key: str, source: SourceConfig, file: Path, max_bytes: int, cache: Path) -> Rows:
    """Rows of a local file; `cache` is a private folder for the library's locks. Rows over `max_bytes` are rejected.

    Raises `UserError` for a file that cannot be read as what its extension says.
    """
    kind = file_kind(source.path)
    try:
        with _named_plainly(file) as plain:
            if kind == "parquet":
                yield from _arrow_rows(_stream("parquet", plain, cache), max_bytes)
            elif kind == "csv":
                yield from _csv_rows(_lines(plain, cache), max_bytes)
            else:
                yield from _json_rows(_lines(plain, cache), max_bytes, array=kind == "json")
    except _Broken as error:
        raise UserError(f"source {key!r}: {file} {error}") from None
    except (pa.ArrowException, datasets.exceptions.DatasetsError, EOFError) as error:
        raise UserError(f"source {key!r}: {file} cannot be read as {kind}: {_first_line(error)}") from None


def hub_rows(key: str, source: SourceConfig, commit: str, max_bytes: int, cache: Path) -> Rows:
    """Rows of a Hub dataset at `commit`, streamed. A dataset that needs code of its own to load is refused.

    Raises `UserError` for a dataset, subset or split that is not there, `TryAgainError` when the Hub cannot be reached.
    """
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
        yield from _arrow_rows(stream, max_bytes)
    except (ConnectionError, TimeoutError, httpx.TransportError) as error:
        raise TryAgainError(f"{name}: the Hub cannot be reached: {_first_line(error)}") from None
    except (ValueError, RuntimeError, FileNotFoundError, httpx.HTTPError, datasets.exceptions.DatasetsError) as error:
        part = f"subset {source.subset!r}, split {source.split!r}"
        raise UserError(f"{name} cannot be loaded ({part}): {_first_line(error)}") from None


class _Broken(Exception):
    """A file that cannot be read on; the text goes behind the file's name."""


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


@contextmanager
def _named_plainly(file: Path) -> Iterator[Path]:
    """A link to `file` whose name the library cannot take for a pattern ('a[1].jsonl') or a chain of URLs ('a::b')."""
    with tempfile.TemporaryDirectory(prefix="cathpc-") as folder:
        link = Path(folder) / "rows"
        link.symlink_to(file)
        yield link


def _stream(builder: str, file: Path, cache: Path, **options: Any) -> Any:
    return datasets.load_dataset(
        builder, data_files=[str(file)], split="train", streaming=True, cache_dir=str(cache), **options
    )


def _lines(file: Path, cache: Path) -> Iterator[str]:
    """Lines with their ends, one character a byte; CRLF and CR become LF, U+2028 and the like do not end a line."""
    stream = _stream("text", file, cache, encoding="latin-1", keep_linebreaks=True).with_format("arrow")
    for number, line in enumerate(line for table in stream.iter(_BATCH) for line in table["text"].to_pylist()):
        yield line.removeprefix("\xef\xbb\xbf") if number == 0 else line  # the byte-order mark of UTF-8


def _decode(line: str) -> str:
    """A raw line as text; bytes that are not UTF-8 become lone surrogates, which `formats` rejects where they count."""
    return line.encode("latin-1").decode("utf-8", "surrogateescape")


def _size(size: int, max_bytes: int, start: str) -> Reject:
    return Reject(TOO_LARGE, f"{size / 1e6:.1f} MB, the limit is {max_bytes / 1e6:g} MB", excerpt(start))


def _json_rows(lines: Iterator[str], max_bytes: int, *, array: bool) -> Rows:
    """Rows of JSON Lines or, where `array` allows it and the first character is a bracket, of a JSON array."""
    start: list[str] = []  # blank lines, and the first one that is not
    for line in lines:
        start.append(line)
        if not line.isspace():
            break
    array = array and bool(start) and start[-1].lstrip().startswith("[")
    lines = chain(start, lines)
    return _array_rows(map(_decode, lines), max_bytes) if array else _json_lines(lines, max_bytes)


def _json_lines(lines: Iterable[str], max_bytes: int) -> Rows:
    for number, line in enumerate(lines, 1):
        if len(line) > max_bytes:
            yield number, _size(len(line), max_bytes, line[:200])
        elif not line.isspace():
            text = _decode(line)
            try:
                yield number, json.loads(text)
            except json.JSONDecodeError as error:
                yield number, Reject(NOT_JSON, f"{error.msg} at column {error.colno}", excerpt(text.strip()))
            except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
                yield number, Reject(NOT_JSON, _first_line(error), excerpt(text.strip()))


def _csv_rows(lines: Iterable[str], max_bytes: int) -> Rows:
    csv.field_size_limit(sys.maxsize)  # the module's own limit, 128 KiB, is one for the whole process
    reader = csv.reader((_decode(line) for line in lines), strict=True)
    header: list[str] = []
    number = 0
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if not header:
                raise _Broken(f"has no readable header: {error}") from None
            number += 1
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
            yield number, _size(size, max_bytes, cells[0])
        elif len(cells) != len(header):
            seen = f"line {reader.line_num}: {len(cells)} fields, the header has {len(header)}"
            yield number, Reject(NOT_CSV, seen, excerpt(cells))
        else:
            yield number, dict(zip(header, cells, strict=True))


def _array_rows(lines: Iterator[str], max_bytes: int) -> Rows:
    """Elements of one JSON array, parsed as they arrive. Broken JSON raises `_Broken` with line and column."""
    decoder = json.JSONDecoder()
    text, at = "", 0  # what has arrived and is not dropped yet; where to go on in it
    line, column = 1, 1  # where `text` starts in the file
    ended = False

    def arrive(least: int) -> None:
        """Drop what is parsed, take `least` characters more."""
        nonlocal text, at, line, column, ended
        breaks = text.count("\n", 0, at)
        column = at - text.rfind("\n", 0, at) if breaks else column + at
        line += breaks
        parts, size = [text[at:]], 0
        at = 0
        while size < least:
            part = next(lines, None)
            if part is None:
                ended = True
                break
            parts.append(part)
            size += len(part)
        text = "".join(parts)

    def peek() -> str:
        """The next character that is not white space, '' at the end."""
        nonlocal at
        while True:
            space = _SPACE.match(text, at)
            assert space is not None  # it matches the empty string too
            at = space.end()
            if at < len(text) or ended:
                return text[at : at + 1]
            arrive(_ARRAY_CHUNK)

    def broken(what: str, position: int) -> _Broken:
        breaks = text.count("\n", 0, position)
        place = position - text.rfind("\n", 0, position) if breaks else column + position
        return _Broken(f"is not valid JSON: {what} at line {line + breaks}, column {place}")

    peek()
    at += 1  # the opening bracket
    number = 0
    if peek() == "]":
        at += 1
    else:
        while True:
            peek()
            number += 1
            while True:
                try:
                    row, end = decoder.raw_decode(text, at)
                    if end < len(text) or ended:  # else a number may go on
                        break
                except RecursionError:
                    raise broken("nested too deeply", at) from None
                except ValueError as error:
                    if ended:
                        where = error.pos if isinstance(error, json.JSONDecodeError) else at
                        raise broken(getattr(error, "msg", str(error)), where) from None
                arrive(max(_ARRAY_CHUNK, len(text) - at))  # doubles, so that a huge row is not parsed over and over
            if end - at > max_bytes:
                yield number, _size(end - at, max_bytes, text[at : at + 200])
            else:
                yield number, row
            at = end
            mark = peek()
            at += 1
            if mark == "]":
                break
            if mark != ",":
                raise broken("expected ',' or ']' after an element" if mark else "the array does not end", at - 1)
    if peek():
        raise broken("text after the end of the array", at)


def _arrow_rows(stream: Any, max_bytes: int) -> Rows:
    """Rows of a stream of Arrow tables."""
    number = 0
    for table in stream.with_format("arrow").iter(_BATCH):
        for index in range(len(table)):
            number += 1
            one = table.slice(index, 1)
            if one.nbytes > max_bytes:
                yield number, _size(one.nbytes, max_bytes, "")
                continue
            try:
                yield number, one.to_pylist()[0]
            except UnicodeDecodeError as error:
                yield number, Reject(BAD_TEXT, f"not valid UTF-8: {_first_line(error)}")
