"""Shards: done once, failures set aside, and the one row that breaks or kills its process found."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from cathpc import shards
from cathpc.broken import MOST, Broken, Child, Died, among, bisect
from cathpc.errors import DataError, TryAgainError, UserError


def facts(number: int, careful: bool) -> dict[str, Any]:
    return {"rows": number * 10, "careful": careful}


def unless(bad: dict[int, BaseException]) -> Callable[[int, bool], dict[str, Any]]:
    """Work that raises in some shards."""

    def work(number: int, careful: bool) -> dict[str, Any]:
        if number in bad:
            raise bad[number]
        return facts(number, careful)

    return work


# --- markers ------------------------------------------------------------------------------------------------------


def test_the_first_mark_of_a_shard_stands(tmp_path: Path) -> None:
    shards.mark(tmp_path, 17, rows=1)
    shards.mark(tmp_path, 17, rows=2)
    shards.mark(tmp_path, 123456, rows=3)
    assert {n: m["rows"] for n, m in shards.done(tmp_path).items()} == {17: 1, 123456: 3}
    assert sorted(p.name for p in (tmp_path / shards.FOLDER).iterdir()) == ["00017.json", "123456.json"]


def test_a_mark_that_was_not_committed_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        with pytest.raises(OSError, match="full"):
            shards.mark(tmp_path, 1)
    assert shards.done(tmp_path) == {} and list((tmp_path / shards.FOLDER).iterdir()) == []


def test_markers_name_the_array_task_or_else_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    shards.mark(tmp_path, 0)
    for name, value in (("SLURM_JOB_ID", "90"), ("SLURM_ARRAY_JOB_ID", "88"), ("SLURM_ARRAY_TASK_ID", "2")):
        monkeypatch.setenv(name, value)
    shards.mark(tmp_path, 1)
    plain, task = shards.done(tmp_path).values()
    assert (plain["job"], plain["task"]) == (str(os.getpid()), "") and (task["job"], task["task"]) == ("88", "2")


def test_completeness_names_what_failed_and_what_is_missing(tmp_path: Path) -> None:
    shards.each(tmp_path, [0, 1, 2], unless({1: ValueError("a torn row")}))
    with pytest.raises(DataError, match=r"2 of 4 .* 1 failed \(1\), 1 missing \(3\).*shard 1: ValueError: a torn row"):
        shards.complete(tmp_path, 4)
    shards.clear_failed(tmp_path)
    shards.each(tmp_path, range(4), facts)
    assert list(shards.complete(tmp_path, 4)) == [0, 1, 2, 3]


# --- the loop -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 16])
def test_every_shard_is_done_once_however_many_tasks_share_them(tmp_path: Path, width: int) -> None:
    seen: list[int] = []

    def work(number: int, careful: bool) -> dict[str, Any]:
        seen.append(number)
        return facts(number, careful)

    for _ in range(2):  # the second time finds nothing to do
        for task in range(width):
            shards.each(tmp_path, range(task, 10, width), work)
    assert sorted(seen) == list(range(10)) == list(shards.done(tmp_path))
    assert [m["rows"] for m in shards.done(tmp_path).values()] == [10 * n for n in range(10)]
    assert shards.running(tmp_path) == {}


def test_a_shard_that_fails_is_set_aside_with_its_reason_until_it_is_cleared(tmp_path: Path) -> None:
    shards.each(tmp_path, range(4), unless({1: ValueError("odd"), 2: DataError("cannot be read")}))
    assert list(shards.done(tmp_path)) == [0, 3]
    aside = shards.failed(tmp_path)
    assert [(n, m["reason"], m["type"], m["message"]) for n, m in aside.items()] == [
        (1, "error", "ValueError", "odd"),
        (2, "data", "DataError", "cannot be read"),
    ]
    assert "in work" in aside[1]["log"] and aside[1]["host"]
    shards.each(tmp_path, range(4), facts)
    assert list(shards.done(tmp_path)) == [0, 3], "a task that comes back does not try it again"
    shards.clear_failed(tmp_path, [2])
    shards.each(tmp_path, range(4), facts)
    assert list(shards.done(tmp_path)) == [0, 2, 3] and list(shards.failed(tmp_path)) == [1]
    shards.mark(tmp_path, 1)
    assert shards.failed(tmp_path) == {}


@pytest.mark.parametrize(
    "error",
    [UserError("x"), TryAgainError("x"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), SystemExit(3)],
    ids=lambda e: type(e).__name__,
)
def test_what_is_no_fault_of_a_shard_ends_the_task_and_leaves_no_trace_on_it(
    tmp_path: Path, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        shards.each(tmp_path, range(3), unless({1: error}))
    assert list(shards.done(tmp_path)) == [0]
    assert shards.failed(tmp_path) == {} == shards.running(tmp_path)
    shards.each(tmp_path, range(3), facts)
    assert not shards.done(tmp_path)[1]["careful"]


def test_loading_comes_once_before_the_first_shard_and_not_for_nothing(tmp_path: Path) -> None:
    calls: list[str] = []

    def work(number: int, careful: bool) -> dict[str, Any]:
        calls.append(f"work {number}")
        return {}

    shards.each(tmp_path, range(2), work, lambda: calls.append("load"))
    shards.each(tmp_path, range(2), work, lambda: calls.append("load"))
    assert calls == ["load", "work 0", "work 1"]

    def fails() -> None:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        shards.each(tmp_path, range(4), work, fails)
    assert shards.failed(tmp_path) == {}, "what cannot be loaded is no fault of a shard"


def dies_in(out: Path, shard: int, numbers: list[int]) -> None:
    """A process that is killed in one shard, as by the kernel for want of memory."""

    def work(number: int, careful: bool) -> dict[str, Any]:
        if number == shard:
            os.kill(os.getpid(), signal.SIGKILL)
        return facts(number, careful)

    shards.each(out, numbers, work)


def in_a_process(target: Callable[..., None], *arguments: Any) -> int | None:
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def test_a_shard_in_which_a_process_died_is_done_first_and_carefully(tmp_path: Path) -> None:
    assert in_a_process(dies_in, tmp_path, 2, [0, 1, 2, 3]) == -signal.SIGKILL
    assert list(shards.done(tmp_path)) == [0, 1]
    assert {n: m["tries"] for n, m in shards.running(tmp_path).items()} == {2: 1}
    calls: list[Any] = []

    def work(number: int, careful: bool) -> dict[str, Any]:
        calls.append((number, careful))
        return {}

    shards.each(tmp_path, [4, 3, 2, 1, 0], work, lambda: calls.append("load"))
    assert calls == [(2, True), "load", (4, False), (3, False)]
    assert shards.running(tmp_path) == {}


def test_a_shard_that_kills_every_process_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    for _ in range(shards.MAX_DEATHS):
        assert in_a_process(dies_in, tmp_path, 0, [0, 1]) == -signal.SIGKILL
    assert shards.done(tmp_path) == {}
    assert in_a_process(dies_in, tmp_path, 0, [0, 1]) == 0
    assert list(shards.done(tmp_path)) == [1]
    assert shards.failed(tmp_path)[0]["reason"] == "died"


def test_a_process_that_is_told_to_stop_does_not_count_as_dead(tmp_path: Path) -> None:
    seen: list[dict[int, Any]] = []

    def work(number: int, careful: bool) -> dict[str, Any]:
        seen.append(shards.running(tmp_path))
        shards.release(tmp_path)
        seen.append(shards.running(tmp_path))
        return {}

    other = {"tries": 1, "host": "elsewhere", "pid": os.getpid()}
    (tmp_path / shards.FOLDER).mkdir()
    (tmp_path / shards.FOLDER / "00005.running.json").write_text(json.dumps(other))
    shards.each(tmp_path, [0], work)
    assert [sorted(s) for s in seen] == [[0, 5], [5]], "its own marker goes, another's stays"


# --- rows that break ----------------------------------------------------------------------------------------------


def poisoned(bad: set[int], calls: list[int]) -> Callable[[Sequence[int]], list[int]]:
    def attempt(rows: Sequence[int]) -> list[int]:
        calls.append(len(rows))
        if bad & set(rows):
            raise ValueError(f"cannot do {min(bad & set(rows))}")
        return [row * row for row in rows]

    return attempt


@pytest.mark.parametrize("bad", [set(), {0}, {999}, {7, 8, 500}, set(range(100, 108))], ids=len)
def test_rows_that_break_are_found_by_halving_and_the_others_keep_their_results(bad: set[int]) -> None:
    calls: list[int] = []
    found = bisect(range(1000), poisoned(bad, calls))
    assert [r for r in found if not isinstance(r, Broken)] == [n * n for n in range(1000) if n not in bad]
    assert [found[n] for n in sorted(bad)] == [Broken(n, f"ValueError: cannot do {n}") for n in sorted(bad)]
    assert len(calls) <= 1 + 2 * 10 * len(bad), "about two attempts a halving and row"


def test_rows_that_break_only_together_are_all_done() -> None:
    def attempt(rows: Sequence[int]) -> list[int]:
        if len(rows) > 3:
            raise MemoryError
        return list(rows)

    assert bisect(range(20), attempt) == list(range(20)) and bisect([], attempt) == []


def test_too_many_rows_that_break_are_no_fault_of_theirs() -> None:
    calls: list[int] = []
    with pytest.raises(RuntimeError, match=f"more than {MOST} of 1000 rows break; the last by ValueError"):
        bisect(range(1000), poisoned(set(range(1000)), calls))
    assert len(calls) < 100
    with pytest.raises(RuntimeError, match="2 of 2 rows break; the first by x"):
        among([Broken(1, "x"), Broken(2, "y")])
    assert among([Broken(1, "x")]) == [Broken(1, "x")] == among([Broken(1, "x"), 4])


@pytest.mark.parametrize("error", [UserError("x"), OSError(errno.EDQUOT, "quota"), KeyboardInterrupt()], ids=repr)
def test_what_is_no_fault_of_a_row_is_not_searched_for(error: BaseException) -> None:
    calls: list[int] = []

    def attempt(rows: Sequence[int]) -> list[int]:
        calls.append(len(rows))
        raise error

    with pytest.raises(type(error)):
        bisect(range(8), attempt)
    assert calls == [8]


class Panic(BaseException):
    """As a Rust library panics: no `Exception`."""


def test_a_panic_breaks_a_row_and_not_the_process() -> None:
    def attempt(rows: Sequence[int]) -> list[int]:
        if 3 in rows:
            raise Panic("index out of bounds")
        return list(rows)

    assert bisect(range(5), attempt)[2:4] == [2, Broken(3, "Panic: index out of bounds")]


# --- rows that kill -----------------------------------------------------------------------------------------------


def deadly(log: str, factor: int) -> Callable[[Sequence[int]], list[int]]:
    """Prepared in the child: 13 kills it, 14 raises, 15 is the user's fault."""
    with open(log, "a") as file:
        file.write(f"{os.getpid()}\n")

    def work(rows: Sequence[int]) -> list[int]:
        if 13 in rows:
            os.kill(os.getpid(), signal.SIGKILL)
        if 14 in rows:
            raise ValueError("fourteen")
        if 15 in rows:
            raise UserError("give another file")
        return [factor * row for row in rows]

    return work


def test_a_row_that_kills_its_process_is_found_and_the_others_keep_their_results(tmp_path: Path) -> None:
    with Child(deadly, str(tmp_path / "pids"), 2) as attempt:
        found = bisect([11, 12, 13, 14, 16], attempt)
    assert found[:2] == [22, 24] and found[4] == 32
    assert found[2] == Broken(13, "the process died of it (exit code -9)")
    assert found[3] == Broken(14, "ValueError: fourteen")
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert os.getpid() not in pids and len(set(pids)) == len(pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids), "no child is left"


def test_what_is_explained_crosses_as_it_is(tmp_path: Path) -> None:
    with Child(deadly, str(tmp_path / "pids"), 2) as attempt, pytest.raises(UserError, match="give another file"):
        bisect([11, 15], attempt)


def unprepared(fault: str) -> Callable[[Any], Any]:
    if fault == "dies":
        os._exit(7)
    raise UserError("no such model") if fault == "user" else ValueError("bad weights")


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("raises", DataError, "ValueError: bad weights"),
        ("dies", DataError, "it died .exit code 7"),
        ("user", UserError, "model"),
    ],
)
def test_a_child_that_cannot_be_made_ready_is_no_fault_of_a_row(
    fault: str, error: type[Exception], message: str
) -> None:
    with Child(unprepared, fault) as attempt, pytest.raises(error, match=message):
        bisect([1, 2, 3], attempt)


def test_a_dead_child_is_reported_as_such(tmp_path: Path) -> None:
    with Child(deadly, str(tmp_path / "pids"), 3) as attempt:
        with pytest.raises(Died, match="-9"):
            attempt([13])
        assert attempt([1]) == [3], "the next call starts another process"
