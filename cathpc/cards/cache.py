"""Drafts that were paid for once: an append-only file of JSON lines, one batch an fsync.

In: drafts. Out: the same after any kill, but for the batch that was being written. Memory grows with the drafts (about
400 bytes each). Each shard has a file of its own.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

from cathpc.cards.writer import Draft


class Drafts:
    """The drafts in `file` by key; the first one with a key stands. One process at a time may use it."""

    def __init__(self, file: Path) -> None:
        """Reads what is there and cuts off a torn last line."""
        file.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, Draft] = {}
        self._file = file
        whole = 0
        with open(file, "ab+") as stream:
            stream.seek(0)
            for line in stream:
                try:
                    draft = Draft(**json.loads(line))
                except (ValueError, TypeError):
                    break
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self._known.setdefault(draft.key, draft)
            stream.truncate(whole)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Draft:
        return self._known[key]

    def add(self, drafts: list[Draft]) -> None:
        """Append a batch; when this returns it survives a kill and a power cut."""
        new = [d for d in drafts if d.key not in self._known]
        with open(self._file, "ab") as stream:
            stream.write(b"".join(json.dumps(asdict(d)).encode() + b"\n" for d in new))
            stream.flush()
            os.fsync(stream.fileno())
        self._known |= {d.key: d for d in new}
