"""The rows that break whatever is tried with them, found among many, even where they kill the process.

In: rows and a function that takes several. Out: its results, in order, with a `Broken` in the place of each row that it
fails on. k such rows among n cost O(k log n) attempts.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cathpc.errors import DISK_ERRORS, CathpcError, DataError

MOST = 32
"""Rows of a shard that may break: where more do, it is no fault of theirs."""
_DYING_S = 30.0

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Broken:
    """Stands in the place of a result: the row, and how it breaks."""

    row: Any
    error: str


class Died(Exception):
    """A process ended without a word: by a segmentation fault, or by the kernel for want of memory."""


class Told(Exception):
    """An error of a child process, as text."""


def passes(error: BaseException) -> bool:
    """Whether an error is no fault of a row: it is explained, the disk's, or the wish to end the process."""
    if isinstance(error, OSError):
        return error.errno in DISK_ERRORS
    return isinstance(error, (CathpcError, KeyboardInterrupt, SystemExit))


def text(error: BaseException) -> str:
    """An error in one line."""
    return str(error) if isinstance(error, (Died, Told)) else f"{type(error).__name__}: {error}"


def bisect(rows: Sequence[T], attempt: Callable[[Sequence[T]], Sequence[R]], most: int = MOST) -> list[R | Broken]:
    """The results of `attempt` for `rows`, in order: where it raises, halves are tried, and at last single rows.

    Raises at once what `passes`, and RuntimeError where more than `most` rows break.
    """
    found: list[R | Broken] = []
    broken = 0
    blocks = [rows] if rows else []
    while blocks:
        block = blocks.pop()
        try:
            found += attempt(block)
        except BaseException as error:  # a panic of a Rust library is no Exception
            if passes(error):
                raise
            if len(block) > 1:
                blocks += [block[len(block) // 2 :], block[: len(block) // 2]]
                continue
            broken += 1
            if broken > most:
                raise RuntimeError(f"more than {most} of {len(rows)} rows break; the last by {text(error)}") from error
            found.append(Broken(block[0], text(error)))
    return found


def among(results: Sequence[object]) -> list[Broken]:
    """The broken rows among the results of a shard.

    Raises RuntimeError where so many break that it is no fault of theirs: more than `MOST`, or all of several.
    """
    found = [r for r in results if isinstance(r, Broken)]
    if len(found) > MOST or len(found) == len(results) > 1:
        raise RuntimeError(f"{len(found)} of {len(results)} rows break; the first by {found[0].error}")
    return found


class Child:
    """What `prepare(*arguments)` returns, called in a spawned process.

    The process's death is a `Died` of the call, and the next call starts another one. What crosses must be picklable.
    """

    def __init__(self, prepare: Callable[..., Callable[[Any], Any]], *arguments: Any) -> None:
        self._job = (prepare, arguments)
        self._process: Any = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def __call__(self, rows: Any) -> Any:
        """Raises what was raised there, as text where it is not explained; `DataError` where `prepare` fails."""
        if self._process is None:
            self._start()
        try:
            self._pipe.send(rows)
            fine, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            raise Died(f"the process died of it (exit code {self._end(_DYING_S)})") from None
        if not fine:
            self._end()  # it may be left in a bad state, as a GPU is by an illegal access
            raise answer
        return answer

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, *self._job))
        self._process.start()
        theirs.close()
        try:
            fine, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            fine, answer = False, Died(f"it died (exit code {self._end(_DYING_S)})")
        if not fine:
            self._end()
            raise answer if passes(answer) else DataError(f"no process could be made ready for it: {text(answer)}")

    def _end(self, wait_s: float = 0.0) -> int | None:
        if self._process is None:
            return None
        self._pipe.close()
        self._process.join(wait_s)
        self._process.kill()
        self._process.join()
        code: int | None = self._process.exitcode
        self._process = None
        return code


def _serve(pipe: Any, prepare: Callable[..., Callable[[Any], Any]], arguments: tuple[Any, ...]) -> None:
    """The child: says that it is ready, then answers (True, result) or (False, error) until the parent is gone."""
    for meant_for_the_parent in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(meant_for_the_parent, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: die with the parent
    work: Callable[[Any], Any] | None = None
    rows: Any = None
    answer: tuple[bool, Any]
    while True:
        try:
            if work is None:
                work, answer = prepare(*arguments), (True, None)
            else:
                answer = (True, work(rows))
        except BaseException as error:
            answer = (False, error if passes(error) else Told(f"{type(error).__name__}: {error}"))
        try:
            pipe.send(answer)
            rows = pipe.recv()
        except (EOFError, ConnectionError):
            return
