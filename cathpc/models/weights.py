"""Files of weights: safetensors only, read by their headers.

In goes a model folder; out come the names, shapes and places of its tensors, never the tensors themselves. Nothing here
unpickles: a file that is not safetensors is refused whatever its name. Cost: the headers, some kilobytes a file;
copying costs one read and one write of the bytes, linking nothing.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cathpc.errors import UserError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
OTHERS = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".npz")
"""Weight formats that are never read: most of them are pickles, which run code when they are opened."""
ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_MAX_HEADER = 100_000_000  # bytes; the limit of the safetensors library itself


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: `offset` bytes into `file`, row-major, `dtype` as safetensors names it ('F32', 'BF16')."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. A `UserError` where the file is no safetensors file or is cut short."""

    def refuse(why: str) -> UserError:
        return UserError(
            f"{file} is not a safetensors file ({why}). Only safetensors weights are read, never pickles: "
            "save the model with save_pretrained(folder, safe_serialization=True), or download it again"
        )

    size = file.stat().st_size
    with open(file, "rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise refuse(f"bad header: it states a length of {length:,} bytes, the file has {size:,}")
        try:
            entries = json.loads(stream.read(length))
            assert isinstance(entries, dict)
            entries.pop("__metadata__", None)
            spans = [(int(e["data_offsets"][0]), int(e["data_offsets"][1])) for e in entries.values()]
            tensors = {
                name: Tensor(file, str(e["dtype"]), tuple(int(n) for n in e["shape"]), 8 + length + begin)
                for (name, e), (begin, _) in zip(entries.items(), spans, strict=True)
            }
        except (ValueError, KeyError, TypeError, IndexError, AssertionError, UnicodeDecodeError):
            raise refuse("bad header: it is not the JSON that safetensors writes") from None
    for name, (begin, end) in zip(tensors, spans, strict=True):
        tensor = tensors[name]
        if tensor.dtype in ITEM_BYTES and end - begin != tensor.numel * ITEM_BYTES[tensor.dtype]:
            raise refuse(f"bad header: {name} does not fill its place")
    if (end := max((end for _, end in spans), default=0)) != size - 8 - length:
        raise refuse(f"it has {size - 8 - length:,} bytes of weights, its header expects {end:,}")
    return tensors


def files(folder: Path) -> list[Path]:
    """The weight files of a model folder: `model.safetensors`, or the shards that its index names.

    Raises a `UserError` that says what is there instead where the folder has no safetensors weights or a shard is
    missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        try:
            named = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"{folder / INDEX} is not an index of weights; download the model again") from None
        for name in named:
            if Path(name).name != name or not (folder / name).is_file():
                raise UserError(f"{folder / INDEX} names the file {name!r}, which is missing; download the model again")
        return [folder / name for name in named]
    there = sorted(p.name for p in folder.iterdir() if p.suffix in OTHERS)
    seen = f"it has {', '.join(there[:4])}, which is never opened" if there else "it has no weights at all"
    raise UserError(
        f"{folder} has no safetensors weights: {seen}. Expected {SINGLE} or {INDEX} with its shards: "
        "convert the model where you trust it, with save_pretrained(folder, safe_serialization=True)"
    )


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a model folder, by name; all headers are checked."""
    found: dict[str, Tensor] = {}
    for file in files(folder):
        found |= header(file)
    return found


def parameters(folder: Path) -> int:
    """Number of parameters stored; tied weights count once, for they are stored once."""
    return sum(t.numel for t in tensors(folder).values() if t.dtype.startswith(("F", "BF")))


def place(source: Path, target: Path, *, link: bool) -> None:
    """Put the file `source` at `target`, replacing it: by a hard link where `link` allows and the disk can, else a
    copy.

    Link only what nobody writes to in place: a link shares its bytes with the source for good.
    """
    target.unlink(missing_ok=True)
    if link:
        try:
            os.link(source.resolve(), target)  # resolved: the Hub's snapshots are symbolic links
            return
        except OSError:
            pass  # another file system, or links are not allowed: copy
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        shutil.copyfile(source, temporary)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write `text` under a temporary name, fsync, rename."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, value: Any) -> None:
    """Write JSON data under a temporary name, fsync, rename."""
    write_text(file, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a model folder, {} where the file is absent; a `UserError` names a broken one."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); download the model again") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} holds {type(value).__name__}, an object was expected; download the model again")
    return value
