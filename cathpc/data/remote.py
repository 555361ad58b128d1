"""The files of a Hub dataset, read where they are, as `cathpc.data.files` reads local ones.

In: a builder of the `datasets` library, which knows what files a split has; then one file. Out: a binary file in whose
stead one may seek, in pieces of `BLOCK` bytes, `BLOCKS` of which are kept. What goes wrong on the way to the Hub is an
error to retry, or the Hub's refusal, and never an `OSError`: so it is not taken for damage of the file.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

from cathpc.data.block import first_line
from cathpc.data.sources import file_kind
from cathpc.errors import CathpcError, TryAgainError, UserError

BLOCK = 4 << 20
BLOCKS = 8
"""Of Parquet, a piece of each column is read in turn."""
_SCHEME = "hf://"
_OURS = {"name", "version", "data_dir", "data_files", "description", "features", "batch_size"}
"""Settings of a builder that change nothing in how a file is read."""
_AGAIN = (408, 429)
_SERVER = 500
T = TypeVar("T")


def files(builder: Any, split: str) -> list[str] | None:
    """Addresses of the files of a split; None where only the library can read them: of another kind, somewhere else, or
    by settings of the dataset's own (a separator, a field)."""
    config = builder.config
    found = [str(file) for file in (config.data_files or {}).get(split, [])]
    default = type(config)()
    changed = {f.name for f in fields(config) if getattr(config, f.name) != getattr(default, f.name)}
    usual = changed <= _OURS and all(f.startswith(_SCHEME) and file_kind(f) for f in found)
    return found if found and usual else None


class Remote(io.RawIOBase):
    """One file of the Hub; `name` is what errors call it."""

    def __init__(self, address: str, name: str) -> None:
        import datasets
        from huggingface_hub import HfFileSystem

        self._name = name
        self._file: Any = None
        hub = HfFileSystem(endpoint=datasets.config.HF_ENDPOINT)
        kept = {"block_size": BLOCK, "cache_type": "blockcache", "cache_options": {"maxblocks": BLOCKS}}
        self._file = self._asked(lambda: hub.open(address.removeprefix(_SCHEME), "rb", **kept))

    def __str__(self) -> str:
        return self._name

    def _asked(self, question: Callable[[], T]) -> T:
        try:
            return question()
        except Exception as error:  # whatever a library of another one raises: nothing here looks at the bytes
            raise failure(self._name, error) from None

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """The next bytes; none at the end."""
        piece: bytes = self._asked(lambda: self._file.read(len(buffer)))
        buffer[: len(piece)] = piece
        return len(piece)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to another place."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """The place."""
        return int(self._file.tell())

    def close(self) -> None:
        """Close the file."""
        if not self.closed and self._file is not None:
            self._file.close()
        super().close()


def errors() -> tuple[type[Exception], ...]:
    """What asking the Hub raises."""
    return ConnectionError, TimeoutError, _httpx().HTTPError


def failure(name: str, error: Exception, hint: str = "") -> CathpcError:
    """What is wrong with the dataset called `name`: the Hub cannot be reached now, or it has no such thing."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", 0)
    network = (ConnectionError, TimeoutError, _httpx().TransportError, LocalEntryNotFoundError)
    if isinstance(error, network) or status in _AGAIN or status >= _SERVER:
        return TryAgainError(f"{name}: the Hub cannot be reached: {first_line(error)}")
    return UserError(f"{name} cannot be loaded{hint}: {first_line(error)}")


def _httpx() -> Any:
    """The module of the Hub's client."""
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, whichever it uses

    return httpx
