"""Text files as bytes and lines, never more than a limit of them, and CSV.

In: a file, compressed or not. Out: its lines; rows of CSV. A line over the limit is passed over in pieces.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from cathpc.data.block import DAMAGE, PIECE, bomb, too_large
from cathpc.data.formats import NOT_CSV, TOO_LARGE, UNREADABLE, Reject, excerpt

_DAMAGED_PIECE = 1 << 16
"""Bytes before the damage in a compressed file that may be lost with it."""


class Limited(io.RawIOBase):
    """The expanded bytes of a file, at most so many."""

    def __init__(self, file: Path | io.RawIOBase, compression: str | None, most: int) -> None:
        self._file, self._most, self._left, self._held = file, most, most, b""
        if compression == "gzip":
            packed = {"filename": file} if isinstance(file, Path) else {"fileobj": file}
            self._source = cast(io.BufferedReader, gzip.GzipFile(mode="rb", **packed))
        else:
            opened = str(file) if isinstance(file, Path) else file
            self._source = cast(io.BufferedReader, pa.input_stream(opened, compression=compression))

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
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes; raises `UserError` over the limit."""
        # `read` of a damaged file loses what it had before the damage
        piece = self._held[: len(buffer)] or self._source.read1(min(len(buffer), _DAMAGED_PIECE))
        self._held = self._held[len(piece) :] if self._held else b""
        self._left -= len(piece)
        if self._left < 0:
            raise bomb(self._file, self._most)
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._source.close()
        super().close()


def lines(file: io.BufferedReader, max_bytes: int) -> Iterator[bytes | Reject]:
    """Lines with their ends; of one over `max_bytes` no more than that is ever held."""
    first = True
    while line := file.readline(max_bytes + 2):
        if first:
            line, first = line.removeprefix(b"\xef\xbb\xbf"), False
        if len(line) <= max_bytes or line.endswith(b"\n"):
            yield line
            continue
        size, start, rest = len(line), line[:200], line
        while not rest.endswith(b"\n") and (rest := file.readline(PIECE)):
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


def csv_rows(lines: Iterator[bytes | Reject], max_bytes: int) -> Iterator[tuple[int, int, Any]]:
    """(number, characters, row) of CSV under its header; raises `Reject` where there is none."""
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
                yield number, 0, error
            elif "field limit" in str(error):
                yield number, 0, Reject(TOO_LARGE, f"line {reader.line_num}: a field over {max_bytes / 1e6:g} MB")
            else:
                yield number, 0, Reject(NOT_CSV, f"line {reader.line_num}: {error}")
            continue
        if not cells:
            continue
        if not header:
            header = [name.strip() for name in cells]
            continue
        number += 1
        size = sum(map(len, cells))
        if size > max_bytes:
            yield number, 0, too_large(size, max_bytes, cells[0])
        elif len(cells) != len(header):
            seen = f"line {reader.line_num}: {len(cells)} fields, the header has {len(header)}"
            yield number, 0, Reject(NOT_CSV, seen, excerpt(cells))
        else:
            yield number, size, dict(zip(header, cells, strict=True))
