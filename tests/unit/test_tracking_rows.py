"""The rows that W&B gets of a training: each step once, whenever and however often the file is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cathpc.tracking.rows import Tail
from cathpc.train import metrics


def step(log: metrics.Log, number: int, **more: Any) -> None:
    """A step of 2 seconds that ends at second 10 * number of the clock."""
    row = {"global_step": number, "loss": 3.0 / number, "step_s": 2.0, "seconds": {"forward": 1.0}}
    log.write(row | {"time": 1000.0 + 10 * number + log.attempt} | more)


OPEN: list[metrics.Log] = []
"""Attempts that were killed, as it were: their files are closed after the test."""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / metrics.METRICS
    while OPEN:
        OPEN.pop().close()


def attempt(path: Path, after: int, until: int) -> metrics.Log:
    """An attempt that goes on after one step and ends without a word after another."""
    log = metrics.Log(path, after, began=1000.0 + 10 * after)
    OPEN.append(log)
    for number in range(after + 1, until + 1):
        step(log, number)
    return log


def steps(rows: list[dict[str, Any]]) -> list[int]:
    return [row["global_step"] for row in rows]


def test_a_row_is_final_when_the_next_step_is_there_with_all_that_belongs_to_it(path: Path) -> None:
    tail = Tail(path)
    log = attempt(path, 0, 2)
    tail.read()
    assert steps(tail.final()) == [1]
    log.write({"global_step": 2, "eval_loss": 1.5, "seconds": {"eval": 3.0}, "time": 1030.0})
    log.write({"global_step": 2, "seconds": {"save": 4.0}, "time": 1031.0})
    tail.read()
    assert tail.final() == []
    step(log, 3)
    tail.read()
    (row,) = tail.final()
    found = {key: row[key] for key in ("global_step", "train/loss", "eval/loss", "train/seconds/save")}
    assert found == {"global_step": 2, "train/loss": 1.5, "eval/loss": 1.5, "train/seconds/save": 4.0}
    assert row["train/seconds/forward"] == 1.0 and row["train/seconds/eval"] == 3.0
    assert steps(tail.final(complete=True)) == [3]


def test_steps_that_are_taken_again_are_given_out_once_to_whoever_was_there_all_along(path: Path) -> None:
    tail, seen = Tail(path), []
    for after, until in ((0, 9), (6, 12), (10, 11), (10, 15)):
        attempt(path, after, until)
        tail.read()
        seen += tail.final()
    assert steps(seen + tail.final(complete=True)) == list(range(1, 16))


def test_who_comes_late_gets_the_newest_version_of_every_step(path: Path) -> None:
    attempt(path, 0, 9)
    attempt(path, 6, 12)
    attempt(path, 10, 15)
    tail = Tail(path)
    tail.read()
    rows = tail.final(complete=True)
    truth = metrics.by_step(path)
    assert steps(rows) == [row["global_step"] for row in truth] == list(range(1, 16))
    assert [row["train/attempt"] for row in rows] == [row["attempt"] for row in truth]
    assert [row["train/requeues"] for row in rows] == [row["attempt"] - 1 for row in truth]


def test_goodput_spikes_and_slow_ranks_are_told(path: Path) -> None:
    log = attempt(path, 0, 5)
    step(log, 6, fault="loss is nan")
    again = attempt(path, 4, 4)
    step(again, 5, fault="passed over")
    step(again, 6, slow_ranks=[3, 7])
    tail = Tail(path)
    tail.read()
    rows = tail.final(complete=True)
    assert rows[-1]["train/goodput"] == pytest.approx(metrics.goodput(path), abs=1e-6)
    assert [row["train/spikes"] for row in rows] == [0, 0, 0, 0, 1, 1]
    assert rows[-1]["train/slow_ranks"] == 2


def test_a_half_written_line_waits_for_its_other_half_and_a_broken_one_is_passed_over(path: Path) -> None:
    attempt(path, 0, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    tail = Tail(path)
    tail.read()
    assert steps(tail.final(complete=True)) == [1]
    path.write_bytes(whole)
    tail.read()
    assert steps(tail.final(complete=True)) == [2]
    with path.open("ab") as file:
        file.write(b'{"attempt": 1, "global_st')  # the attempt is killed here
    attempt(path, 2, 3)
    tail.read()
    assert steps(tail.final(complete=True)) == [3]


def test_what_an_earlier_attempt_that_still_lives_writes_does_not_count(path: Path) -> None:
    old = attempt(path, 0, 3)
    attempt(path, 2, 4)
    step(old, 4, loss=99.0)
    tail = Tail(path)
    tail.read()
    assert [row["train/loss"] for row in tail.final(complete=True)] == [3.0, 1.5, 1.0, 0.75]


def test_values_that_are_not_finite_are_left_out(path: Path) -> None:
    log = attempt(path, 0, 0)
    log.write({"global_step": 1, "loss": 1.0, "grad_norm": float("nan"), "time": 2.0})
    tail = Tail(path)
    tail.read()
    (row,) = tail.final(complete=True)
    assert "train/grad_norm" not in row and row["train/loss"] == 1.0


def test_a_training_that_has_not_begun_has_no_rows(path: Path) -> None:
    tail = Tail(path)
    tail.read()
    assert tail.final(complete=True) == []
