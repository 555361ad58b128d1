"""DeepSpeed's files: written with their hashes, read as data alone, and looked into without being read.

`CheckpointWriter` is the part of an engine that writes and reads them. `peek` gives what a file says with a `Stored` in
the place of each tensor, which knows where its bytes lie: whoever reads them block by block needs memory for a block,
whatever the size of the file.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import copy as shallow
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import IO, Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

BLOCK = 16 * 2**20  # bytes that are hashed, copied or converted at a time


class CheckpointWriter(CheckpointEngine):  # type: ignore[misc]  # DeepSpeed has no types
    """How DeepSpeed writes and reads its files.

    A failed write is kept in `error` rather than raised, because the other ranks would wait for this one in DeepSpeed's
    next barrier; `cathpc.train.saver` looks at it when all are through.
    """

    mapped = False
    """Whether tensors are read as they are copied to where they belong (a GPU), instead of all of a file first."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self, *, durable: bool = True) -> None:
        """Forget the last checkpoint. The next one's files wait for the disk where they are `durable`."""
        self.written: dict[Path, dict[str, Any]] = {}
        """Hash and size of each file by its path."""
        self.error: OSError | None = None
        self.durable = durable

    def create(self, info: Any) -> None:
        """Nothing: `begin` has."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder of the checkpoint."""
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.error = self.error or error

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file, hash it on the way and wait until it is on the disk."""
        if self.error:
            return
        try:
            with open(path, "wb") as file:
                hashed = HashedWriter(file)
                torch.save(_mapped(state_dict, _plain), hashed)  # type: ignore[arg-type]  # all it needs of a file
                if self.durable:
                    fsync(file)
            self.written[Path(path)] = hashed.record()
        except OSError as error:
            self.error = error
        except RuntimeError as error:
            # torch's zip writer, closing after a failed write, hides the reason behind an error of its own.
            if not isinstance(error.__context__, OSError):
                raise
            self.error = error.__context__

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file, whose hash `cathpc.train.checkpoint` has verified."""
        with _trusted():
            return torch.load(path, map_location=map_location, weights_only=True, mmap=self.mapped)

    def commit(self, info: Any) -> bool:
        """Nothing: `cathpc.train.saver` commits."""
        return True


class HashedWriter:
    """Writes to a file and hashes what it writes, both at the same time: neither waits for the other's block."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256, self.bytes = file, hashlib.sha256(), 0
        self.hasher = ThreadPoolExecutor(1)

    def write(self, data: Any) -> int:
        """Write all of `data`."""
        view = memoryview(data).cast("B")
        for at in range(0, len(view), BLOCK):
            block = view[at : at + BLOCK]
            hashing = self.hasher.submit(self.sha256.update, block)
            try:
                self.file.write(block)
            finally:
                hashing.result()  # it looks into memory that the caller takes back
        self.bytes += len(view)
        return len(view)

    def flush(self) -> None:
        """Hand everything to the file system."""
        self.file.flush()

    def record(self) -> dict[str, Any]:
        """What a manifest records of the file."""
        self.hasher.shutdown()
        return {"sha256": self.sha256.hexdigest(), "bytes": self.bytes}


def fsync(file: IO[bytes]) -> None:
    """Wait until the file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


def copy(source: Path, target: Path) -> dict[str, Any]:
    """Copy a file, wait until it is on the disk; hash and size of what was copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("wb") as file:
        writer = HashedWriter(file)
        while block := reader.read(BLOCK):
            writer.write(block)
        fsync(file)
    return writer.record()


@dataclass(frozen=True)
class Stored:
    """A contiguous tensor in a file: where it lies, and nothing of it in memory."""

    path: Path
    offset: int
    """Bytes before it in the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    def read(self, start: int = 0, count: int | None = None) -> torch.Tensor:
        """`count` elements from `start` on, flat; all by default."""
        count = self.numel() - start if count is None else count
        data = bytearray(count * self.dtype.itemsize)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset + start * self.dtype.itemsize)
            rest = memoryview(data)
            while rest:
                got = file.readinto(rest)
                if not got:
                    raise EOFError(f"{self.path} ends before the tensor at {self.offset}")
                rest = rest[got:]
        return torch.frombuffer(data, dtype=self.dtype) if data else torch.empty(0, dtype=self.dtype)

    def blocks(self, start: int, count: int) -> Iterator[torch.Tensor]:
        """The same elements in pieces of `BLOCK` bytes at most."""
        most = BLOCK // self.dtype.itemsize
        for at in range(start, start + count, most):
            yield self.read(at, min(most, start + count - at))


def peek(path: Path) -> dict[str, Any]:
    """What is in one of DeepSpeed's files, with a `Stored` for each tensor. Only for files that were verified.

    torch notes where a tensor lies when it loads one without its data (`_checkpoint_offset`).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    def located(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        assert value.is_contiguous(), path
        start = int(value.untyped_storage()._checkpoint_offset or 0) + int(value.storage_offset()) * value.itemsize
        return Stored(path, start, value.dtype, tuple(value.shape))

    with _trusted(), FakeTensorMode():
        found: dict[str, Any] = _mapped(torch.load(path, map_location="cpu", weights_only=True), located)
        return found


def nbytes(value: Any) -> int:
    """Bytes of all tensors in a nested structure."""
    total = 0

    def add(item: Any) -> Any:
        nonlocal total
        if isinstance(item, torch.Tensor):
            total += item.numel() * item.element_size()
        return item

    _mapped(value, add)
    return total


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A nested structure with `change` applied to what is neither dictionary, list nor tuple."""
    if isinstance(value, dict):
        mapped = shallow(value)  # with the attributes of a state dict
        mapped.update((key, _mapped(item, change)) for key, item in value.items())
        return mapped
    if type(value) in (list, tuple):
        return type(value)(_mapped(item, change) for item in value)
    return change(value)


def _plain(value: Any) -> Any:
    """Enum members as their values: how Python pickles them differs between its patch releases."""
    return value.value if isinstance(value, Enum) else value


def _trusted() -> torch.serialization.safe_globals:
    """The only classes beside tensors that DeepSpeed puts into its files."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.utils.tensor_fragment import fragment_address

    return torch.serialization.safe_globals([LossScaler, fragment_address])
