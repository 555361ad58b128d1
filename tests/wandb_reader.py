"""Reads W&B's offline file: a 7-byte header, then W&B's protobuf records in the framing of LevelDB's log.

The file is cut in blocks of 32 KiB. A chunk is CRC (4 bytes), length (2), kind (1: whole, 2: first, 3: middle, 4: last)
and payload; a block's last bytes, too few for a chunk's head, are padding. wandb has no reader of its own any more.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD, HEADER = 32768, 7, 7


def payloads(path: Path) -> Iterator[bytes]:
    """The records of the log, still serialised, in order."""
    data = path.read_bytes()
    assert data[:4] == b":W&B", f"{path} is no W&B file: it starts with {data[:4]!r}"
    place, parts = HEADER, []
    while place < len(data):
        if BLOCK - place % BLOCK < HEAD:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0:  # padding up to the end of the block
            place += BLOCK - place % BLOCK
            continue
        parts.append(data[place + HEAD : place + HEAD + length])
        place += HEAD + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []


def records(path: Path) -> list[Any]:
    """W&B's `Record` messages of the file."""
    from wandb.proto import wandb_internal_pb2

    found = []
    for payload in payloads(path):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(payload)
        found.append(record)
    return found


def history(path: Path) -> list[dict[str, Any]]:
    """What each `log` call wrote: key -> value."""
    rows = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.history.item})
    return rows


def summary(path: Path) -> dict[str, Any]:
    """The run's summary: key -> last value."""
    found = {}
    for record in records(path):
        if record.WhichOneof("record_type") == "summary":
            found |= {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in record.summary.update}
    return found
