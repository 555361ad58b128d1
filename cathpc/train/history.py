"""The checkpoints that a training has committed: their names, their manifests, which are sound and which may go.

    step-000012/manifest.json   step, world size, identity of data, template and config, size and hash of all files
                rng-00000.json  a rank's Python, NumPy and torch generators
                deepspeed/*.pt  fp32 weights and optimizer states, partitioned over the ranks

The manifest is written last and removed first: a folder without one was never committed, or is about to go. A broken
checkpoint is set aside as `bad-step-000012-1`. Size: 12 bytes a parameter over all ranks (with 8-bit optimizer states
6; ZeRO-2 adds the weights once). No torch here: what looks at checkpoints from outside starts at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
BLOCK = 2**20  # bytes that are hashed at a time
NAME = re.compile(r"step-(\d{6,})")


def folder_name(step: int) -> str:
    """Name of the checkpoint after `step` steps; names sort like steps."""
    return f"step-{step:06d}"


def step_of(checkpoint: Path) -> int:
    """Steps that were done when `checkpoint` was saved."""
    return int(checkpoint.name.removeprefix("step-"))


def committed(folder: Path) -> list[Path]:
    """The committed checkpoints in `folder`, newest first."""
    found = (path.parent for path in folder.glob(f"step-*/{MANIFEST}"))
    return sorted((c for c in found if NAME.fullmatch(c.name)), key=step_of, reverse=True)


def has_history(folder: Path) -> bool:
    """Whether anything was ever committed to `folder`, though it may have been set aside since."""
    return bool(committed(folder)) or any(folder.glob(f"bad-*/{MANIFEST}"))


def manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; {} where it cannot be read."""
    try:
        data = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        return data if isinstance(data.get("files"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def verify(
    checkpoint: Path,
    *,
    share: int = 0,
    shares: int = 1,
    cold: bool = False,
    dropped: threading.Event | None = None,
) -> str:
    """What is wrong with a checkpoint, '' where every file is as its manifest says; every `shares`-th file is read.

    Of as many shares as ranks saved, share r is what rank r wrote. `cold` reads from the disk what this node may still
    have in memory. Costs one read (SHA-256: about 1 GB/s a core); ends early where it is `dropped`.
    """
    files = manifest(checkpoint).get("files")
    if not files:
        return f"{checkpoint / MANIFEST} cannot be read"

    def order(name: str) -> tuple[Any, ...]:
        """Large files first, then by the numbers in their names."""
        words = re.split(r"(\d+)", name)
        return -int(files[name]["bytes"]).bit_length(), *(int(w) if w.isdigit() else w for w in words)

    for name in sorted(files, key=order)[share::shares]:
        try:
            digest, size = sha256(checkpoint / name, cold=cold, dropped=dropped)
        except OSError as error:
            return f"{checkpoint / name} cannot be read ({error.strerror})"
        if [digest, size] != [files[name]["sha256"], files[name]["bytes"]]:
            return f"{checkpoint / name} is not the file that was saved ({size} bytes, {files[name]['bytes']} recorded)"
    return ""


def set_aside(checkpoint: Path) -> Path:
    """Rename a broken checkpoint, so that it is not chosen again; its new name."""
    number = 1
    while (target := checkpoint.with_name(f"bad-{checkpoint.name}-{number}")).exists():
        number += 1
    os.rename(checkpoint, target)
    return target


def surplus(folder: Path, keep: int) -> list[Path]:
    """The committed checkpoints that are neither among the `keep` newest nor milestones."""
    return [old for old in committed(folder)[max(1, keep) :] if not manifest(old).get("milestone")]


def prune(folder: Path, keep: int) -> None:
    """Remove what is `surplus`. Only to be called once the newest checkpoint was read back and found sound: older ones
    were, each in its time."""
    for left in folder.glob("step-*"):
        if not (left / MANIFEST).exists():  # of a removal that was killed
            _remove(left)
    for old in surplus(folder, keep):
        # The manifest goes first: what a killed removal leaves behind is not committed.
        (old / MANIFEST).unlink()
        sync(old)
        _remove(old)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder)


def sha256(path: Path, *, cold: bool = False, dropped: threading.Event | None = None) -> tuple[str, int]:
    """Hash and size of a file; `cold` drops its pages from this node's memory before it is read.

    Raises InterruptedError where it is `dropped`.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        if cold:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := file.read(BLOCK):
            if dropped is not None and dropped.is_set():
                raise InterruptedError(f"{path}: dropped")
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def sync(folder: Path) -> None:
    """Wait until the entries of a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
