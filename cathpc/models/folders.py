"""Folders of prepared models in the cache: each is made once, whoever asks for it and however often it is killed.

In: a key, plain JSON data that tells one folder from another, and a function that fills a folder. Out: the folder under
`cache/models`, whole. Several processes, on several nodes, may ask at once: one makes it, the others wait or lose the
rename.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cathpc.models.bars import no_bars


def place(cache: Path, key: dict[str, Any]) -> Path:
    """Where the folder of `key` is or will be."""
    text = json.dumps(key, sort_keys=True)
    return cache / "models" / hashlib.sha256(text.encode()).hexdigest()[:16]


def cached(cache: Path, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder of `key` under `cache/models`; `build(folder)` fills it where it is not there yet."""
    final = place(cache, key)
    name = final.name
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with _alone(final.parent / f".{name}.lock"):
        if final.is_dir():
            return final
        host = socket.gethostname()
        for stale in final.parent.glob(f".{name}.{host}.*"):
            if not Path(f"/proc/{stale.suffix[1:]}").exists():  # left by a process that was killed here
                shutil.rmtree(stale, ignore_errors=True)
        temporary = final.parent / f".{name}.{host}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with no_bars():
                build(temporary)
            _sync(temporary)
            with contextlib.suppress(OSError):
                os.rename(temporary, final)
            if not final.is_dir():
                raise OSError(f"cannot rename {temporary} to {final}")
            _sync(final.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return final


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold a lock on a file, so that others wait instead of doing the same work. Where the disk has no locks, go on:
    whoever renames first wins."""
    with open(lock, "w") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _sync(folder: Path) -> None:
    """fsync a folder and the files in it."""
    for path in (*(p for p in folder.iterdir() if p.is_file() and not p.name.endswith(".lock")), folder):
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
