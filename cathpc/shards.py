"""The shards of a stage: which are done, which failed, which were begun.

In: the numbers of shards and a function that does one. Out: small JSON files in `.shards` of the stage's folder, which
any number of processes may fill: `00017.json` (done, with its facts), `00017.failed.json` (set aside, with the
reason), `00017.running.json` (begun; one that is left over tells that its process died in that shard). What a shard
holds is fixed by the data, never by how many processes share the work. One row that breaks a shard: `cathpc.broken`.
"""

from __future__ import annotations

import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from cathpc.broken import Died, passes
from cathpc.errors import EXIT_DATA, CathpcError, DataError

FOLDER = ".shards"
MAX_DEATHS = 8
"""A shard in which so many processes have died is set aside; failed nodes and preemptions without grace count."""
MAX_IN_A_ROW = 3
"""Shards that may fail one after the other in a process before it is taken for sick: a GPU in error, a full memory."""
_DONE, _FAILED, _RUNNING = "", ".failed", ".running"


@contextmanager
def whole(path: Path, *, first: bool = False) -> Iterator[BinaryIO]:
    """A file that is there whole or not at all; with `first` a file that is there already stands."""
    temporary = path.with_name(f".{path.stem}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if first:
            with suppress(FileExistsError):
                os.link(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _path(out: Path, shard: int, kind: str) -> Path:
    return out / FOLDER / f"{shard:05d}{kind}.json"


def _put(out: Path, shard: int, kind: str, facts: Mapping[str, Any], *, first: bool = False) -> None:
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID") or str(os.getpid())
    task = os.environ.get("SLURM_ARRAY_TASK_ID", "")
    where = {"host": socket.gethostname(), "pid": os.getpid(), "job": job, "task": task, "time": time.time()}
    (out / FOLDER).mkdir(exist_ok=True)
    with whole(_path(out, shard, kind), first=first) as file:
        file.write(json.dumps({**facts, **where}, indent=1).encode() + b"\n")


def _all(out: Path, kind: str) -> dict[int, dict[str, Any]]:
    found = {}
    for path in (out / FOLDER).glob(f"[0-9]*{kind}.json"):
        number = path.name.removesuffix(f"{kind}.json")
        if number.isdigit():
            with suppress(OSError, ValueError):
                found[int(number)] = json.loads(path.read_bytes())
    return dict(sorted(found.items()))


def done(out: Path) -> dict[int, dict[str, Any]]:
    """The facts of every shard that is done, by number."""
    return _all(out, _DONE)


def marked(out: Path) -> set[int]:
    """Numbers of the shards that are done, by the names of their markers alone: one listing, however many they are."""
    try:
        with os.scandir(out / FOLDER) as entries:
            stems = [e.name.removesuffix(".json") for e in entries if e.name.endswith(".json")]
    except FileNotFoundError:
        return set()
    return {int(stem) for stem in stems if stem.isdigit()}


def failed(out: Path) -> dict[int, dict[str, Any]]:
    """The shards that were set aside: 'reason' (data, error, died), 'type', 'message', 'log' and where it was."""
    return _all(out, _FAILED)


def running(out: Path) -> dict[int, dict[str, Any]]:
    """The shards that were begun and have not ended: 'tries', 'started' and where; a dead process leaves its own."""
    return _all(out, _RUNNING)


def is_done(out: Path, shard: int) -> bool:
    """Whether one shard is done, without a look at the others."""
    return _path(out, shard, _DONE).exists()


def mark(out: Path, shard: int, **facts: Any) -> None:
    """Mark `shard` as done, with small `facts` (rows, tokens, seconds); the first mark stands."""
    _put(out, shard, _DONE, facts, first=True)
    _path(out, shard, _FAILED).unlink(missing_ok=True)


def forget(out: Path, shard: int) -> None:
    """Make a shard undone, since what it wrote is gone or belongs to other data."""
    _path(out, shard, _DONE).unlink(missing_ok=True)


def release(out: Path) -> None:
    """For a process that is told to stop and will not unwind: it does not die of the shard that it is in."""
    for shard, facts in running(out).items():
        if (facts["host"], facts["pid"]) == (socket.gethostname(), os.getpid()):
            _path(out, shard, _RUNNING).unlink(missing_ok=True)


def clear_failed(out: Path, shards: Iterable[int] | None = None) -> None:
    """Let the shards that were set aside (those of `shards`; all by default) be tried again."""
    for shard in failed(out) if shards is None else shards:
        _path(out, shard, _FAILED).unlink(missing_ok=True)


def complete(out: Path, count: int) -> dict[int, dict[str, Any]]:
    """The facts of all `count` shards; raises `DataError` that names the ones that are not done, and why."""
    marks, aside = done(out), failed(out)
    missing = [n for n in range(count) if n not in marks]
    if not missing:
        return {n: marks[n] for n in range(count)}
    told = [n for n in missing if n in aside]
    reasons = [f"shard {n}: {aside[n].get('type')}: {str(aside[n].get('message'))[:300]}" for n in told[:3]]
    never = [n for n in missing if n not in aside]
    raise DataError(
        f"{len(missing)} of {count} shards are not done: {len(told)} failed ({_some(told)}), {len(never)} missing "
        f"({_some(never)}). {'; '.join(reasons) or 'No failure was noted'}. The logs: {out / FOLDER}/*.failed.json. "
        "The same command tries these again and keeps what is done"
    )


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "") or "none"


def each(
    out: Path,
    numbers: Iterable[int],
    work: Callable[[int, bool], Mapping[str, Any]],
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Do `facts = work(number, careful)` for every shard of `numbers` that is neither done nor set aside; mark it.

    `careful` says that a process died in the shard before: `work` should do it in a `Child`. Those come first, before
    `ready` is called, once, to load what the other shards need: so that memory holds it once, and what fails there is
    no shard's fault. A shard that fails is set aside and the next one follows, unless the error `passes`; `DataError`
    is a failure of the shard.
    """
    todo = [n for n in numbers if not is_done(out, n) and not _path(out, n, _FAILED).exists()]
    begun = {n: _path(out, n, _RUNNING).exists() for n in todo}
    loaded = False
    in_a_row = 0
    for number in sorted(todo, key=lambda n: not begun[n]):
        if not begun[number] and not loaded:
            ready()
            loaded = True
        marker = _path(out, number, _RUNNING)
        deaths = 0
        if begun[number]:
            with suppress(OSError, ValueError, KeyError):
                deaths = int(json.loads(marker.read_bytes())["tries"])
        _put(out, number, _RUNNING, {"tries": deaths + 1, "started": time.time()})
        try:
            if deaths >= MAX_DEATHS:
                raise Died(f"{deaths} processes died in it")
            clock = time.perf_counter()
            facts = work(number, begun[number])
            mark(out, number, **{"seconds": round(time.perf_counter() - clock, 3), **facts})
            in_a_row = 0
        except BaseException as error:  # a panic of a Rust library is no Exception
            if passes(error) and getattr(error, "exit_code", None) != EXIT_DATA:
                raise
            reason = "data" if isinstance(error, DataError) else "died" if isinstance(error, Died) else "error"
            facts = {"reason": reason, "type": type(error).__name__, "message": str(error)}
            _put(out, number, _FAILED, {**facts, "log": traceback.format_exc()})
            in_a_row += reason == "error" and not begun[number]
            if in_a_row >= MAX_IN_A_ROW:
                raise CathpcError(
                    f"{in_a_row} shards in a row failed, the last one (shard {number}) with {facts['type']}: "
                    f"{facts['message']}. That is hardly their fault: the others of this task are left alone"
                ) from error
        finally:
            marker.unlink(missing_ok=True)
