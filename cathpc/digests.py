"""SHA-256 of files, remembered while nothing about them has changed: 140 GB of weights are not read at every command.

In: a JSON file that holds what is known, made when absent, ignored when it cannot be read or written. Out: digests. A
file counts as unchanged while its path, size, times of change and inode are the same. Reading takes about a second a
GB.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cathpc.errors import UserError
from cathpc.store import file_hash, read_json, write_json

_SETTLED_S = 2.0
"""A file that changed less than this before it was hashed may change again within one tick of its clock: not kept."""


class Digests:
    """What is known of files; `save` keeps what is new."""

    def __init__(self, file: Path | None) -> None:
        """`file` None remembers nothing beyond this object."""
        self._file = file
        stored = read_json(file) if file else None
        self._known: dict[str, Any] = stored if isinstance(stored, dict) else {}
        self._new = False

    def of(self, path: Path) -> str:
        """Digest of a file; raises `UserError` where it cannot be read."""
        try:
            status = path.stat()
            state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
            held = self._known.get(str(path))
            if isinstance(held, dict) and held.get("state") == state and isinstance(held.get("sha256"), str):
                return str(held["sha256"])
            settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED_S
            digest = file_hash(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        if settled:
            self._known[str(path)] = {"state": state, "sha256": digest}
            self._new = True
        return digest

    def save(self) -> None:
        """Write what is new; a failure only costs the next command some time."""
        if self._file and self._new:
            try:
                self._file.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._file, self._known)
            except OSError:
                pass
