"""The parts of a save, in the order in which `cathpc.train.saver` does them; each is a rank's own.

Functions raise OSError where a disk refuses; what ranks have to agree on is the saver's.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cathpc import disk
from cathpc.lease import fence
from cathpc.models.weights import write_json
from cathpc.train import history, metrics, ranks, rng, states

TAG = "deepspeed"
ROOM = 1.05
"""Free space that must be there, in sizes of what is to be written."""

Work = Callable[[], None]


@dataclass(frozen=True)
class Written:
    """What this rank wrote: hash and size by name, and how it failed."""

    files: dict[str, Any]
    error: OSError | None


def clear(folder: Path, final: Path, local: Path | None) -> None:
    """Remove what killed attempts left behind: temporary folders, and one that was renamed but never committed."""
    if ranks.rank() == 0:
        fence(folder)
        for stale in folder.glob(".tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        if final.exists() and not (final / history.MANIFEST).exists():
            shutil.rmtree(final)
    if local and int(os.environ.get("LOCAL_RANK", 0)) == 0:
        for stale in local.parent.glob(f"{local.name.partition('-.tmp-')[0]}-.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        with suppress(OSError):  # then `ours` says no
            os.mkdir(local, 0o700)


def ours(local: Path) -> bool:
    """Whether `local` is, on every node, a folder that we own and nobody else may write to: in a shared temporary
    folder others may take its name first."""
    try:
        found = os.lstat(local)
        mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    except OSError:
        mine = False
    if ranks.agree(mine):
        return True
    say(f"{local} could not be made, or is another user's; saving without it")
    return False


def room(engine: Any, local: Path) -> bool:
    """Whether every node has room for what its ranks are about to write; rank 0 says so where not."""
    need = states.nbytes(engine.optimizer.state_dict()) + states.nbytes(list(engine.module.parameters()))
    node = zlib.crc32(socket.gethostname().encode())
    everyone = ranks.gather([float(node), float(need), float(disk.free(local).bytes)])
    for host in {row[0] for row in everyone}:
        needed = ROOM * sum(row[1] for row in everyone if row[0] == host)
        free = min(row[2] for row in everyone if row[0] == host)
        if needed > free:
            say(f"{local.parent}: {disk.human(needed)} are needed on a node and {disk.human(free)} free; not used")
            return False
    return True


def say(text: str) -> None:
    """Rank 0's line for people."""
    if ranks.rank() == 0:
        metrics.say(f"checkpoint: {text}")


def write(engine: Any, folder: Path, *, durable: bool) -> Written:
    """Write this rank's files of a checkpoint into `folder`."""
    writer: states.CheckpointWriter = engine.checkpoint_engine
    writer.begin(durable=durable)
    engine.save_checkpoint(str(folder), tag=TAG, save_latest=False, exclude_frozen_parameters=True)
    files = {path.relative_to(folder).as_posix(): record for path, record in writer.written.items()}
    error = writer.error
    if error is None:
        path = folder / f"rng-{ranks.rank():05d}.json"
        error = attempt(partial(write_json, path, rng.state()))
        if error is None:
            digest, size = history.sha256(path)
            files[path.name] = {"sha256": digest, "bytes": size}
    return Written(files, error)


def copy(files: dict[str, Any], local: Path, target: Path) -> None:
    """Copy this rank's files from its node to the shared file system, and remove them here."""
    for name, record in files.items():
        if states.copy(local / name, target / name) != record:
            raise OSError(f"{local / name} is not the file that was written")
        (local / name).unlink()
    for folder in (local / TAG, local):
        with suppress(OSError):  # the last rank of a node finds it empty
            folder.rmdir()


def record(folder: Path, files: dict[str, Any]) -> None:
    """Tell rank 0 what this rank wrote."""
    write_json(folder / _part(ranks.rank()), files)


def _part(rank: int) -> str:
    return f"files-{rank:05d}.json"


def publish(temporary: Path, final: Path, data: dict[str, Any]) -> None:
    """Rank 0: make the folder a checkpoint. The marker is written last."""
    files: dict[str, Any] = {}
    for rank in range(ranks.world_size()):  # by name: another node's file may not be listed yet
        part = temporary / _part(rank)
        files |= json.loads(part.read_text())
        part.unlink()
    for root, _, _ in os.walk(temporary):
        history.sync(Path(root))
    _rename(temporary, final)
    _mark(final, data | {"files": files})


def _rename(temporary: Path, final: Path) -> None:
    os.rename(temporary, final)
    history.sync(final.parent)


def _mark(final: Path, data: dict[str, Any]) -> None:
    write_json(final / history.MANIFEST, data)
    history.sync(final)


def read_back(final: Path, dropped: threading.Event) -> None:
    """Compare this rank's share of what lies on the disk with what was written: where there are several nodes, what
    another one wrote. Ends early where it is `dropped`."""
    share, shares = (ranks.rank() + ranks.world_size() // 2) % ranks.world_size(), ranks.world_size()
    problem = history.verify(final, share=share, shares=shares, cold=True, dropped=dropped)
    if problem:
        raise OSError(problem)


def prune(folder: Path, keep: int) -> None:
    """Rank 0: remove what need not be kept."""
    if ranks.rank() == 0:
        history.prune(folder, keep)


def attempt(work: Work) -> OSError | None:
    """Do something; how the disk refused it, None where it did not."""
    try:
        work()
    except OSError as error:
        return error
    return None
