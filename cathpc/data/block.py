"""Rows that are not decoded yet, by the block, and what is said of those that are none."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cathpc.data.formats import TOO_LARGE, UNREADABLE, Reject, excerpt
from cathpc.errors import UserError

BLOCK_ROWS = 1024
BLOCK_BYTES = 2 << 20
PIECE = 1 << 20
"""Bytes that are read at once."""

DAMAGE = (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError)
"""What reading a damaged file raises."""


@dataclass(frozen=True)
class Block:
    """Some rows that follow each other; the first one's number counts from 1."""

    first: int
    rows: pa.RecordBatch | list[Any]
    """Arrow; or raw lines of JSON (bytes), decoded rows, and `Reject`s of what is no row."""
    columns: tuple[str, ...] = ()
    """All that the file has, where `rows` may hold a choice of them."""

    @property
    def count(self) -> int:
        """How many rows it stands for."""
        if isinstance(self.rows, pa.RecordBatch):
            return len(self.rows)
        return sum(row.rows if isinstance(row, Reject) else 1 for row in self.rows)


def unreadable(error: BaseException, rows: int = 1) -> Reject:
    """The reject for `rows` rows, or for all that follows, of a damaged file; raises what is no damage but a disk's
    fault, since the file may be read another time."""
    if isinstance(error, OSError) and error.errno:
        raise error
    return Reject(UNREADABLE, f"damaged from here on: {first_line(error)}", rows=rows)


def first_line(error: BaseException) -> str:
    """The first line of an error's text."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def too_large(size: int, max_bytes: int, start: str = "") -> Reject:
    """The reject for a row of `size` bytes."""
    return Reject(TOO_LARGE, f"{size / 1e6:.1f} MB, the limit is {max_bytes / 1e6:g} MB", excerpt(start))


def bomb(file: object, most: int) -> UserError:
    """The refusal of a file, by its name, that is larger than one may expect."""
    return UserError(
        f"{file}: expanded size over the limit of {most / 1e9:g} GB. If the file is what you think it is, raise "
        "dataset.max_expanded_gb"
    )
