"""Faults 7 to 10, 41 and 42: signals at bad moments, ranks that die or hang, disks of logs that are full."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cathpc.errors import EXIT_AGAIN, EXIT_USER
from cathpc.train import metrics
from tests.e2e.ranks import assert_same_training, checkpoints, launch, losses, settings, trained
from tests.e2e.ranks import whole as whole
from tests.e2e.ranks import world as world


def test_fault_7_a_signal_in_the_backward_pass_saves_once_after_its_step(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    backward = "deepspeed.runtime.engine:DeepSpeedEngine.backward"
    results = launch(world, out, settings(), rank=0, hook=backward, call=3, do="SIGUSR2")  # of step 2
    assert [r.returncode for r in results] == [EXIT_AGAIN] * 2, results[0].stderr
    assert checkpoints(out) == ["step-000002"]
    assert_same_training(trained(world, out, settings()), whole)


def test_fault_8_two_signals_in_a_save_end_the_attempt_after_the_next_step_without_a_deadlock(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    results = launch(world, out, settings(), rank=1, hook="cathpc.train.writing:write", do="SIGUSR2 SIGTERM")
    assert [r.returncode for r in results] == [EXIT_AGAIN] * 2, results[0].stderr
    assert checkpoints(out) == ["step-000004", "step-000005"], "the save that was under way, and the one of the stop"
    assert_same_training(trained(world, out, settings()), whole)


def test_fault_9_the_peers_of_a_dead_rank_end_within_a_minute_and_the_training_comes_back(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    began = time.monotonic()
    results = launch(world, out, settings(), at=5, rank=1, do="kill")
    assert time.monotonic() - began < 60
    assert results[1].returncode == -signal.SIGKILL
    assert results[0].returncode > 0, "it ended by itself"
    assert "lost the other ranks" in results[0].stderr
    assert_same_training(trained(world, out, settings()), whole)


def test_fault_10_the_peers_of_a_hanging_rank_end_by_their_watchdog_and_the_training_comes_back(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    results = launch(world, out, settings(watchdog_s=15.0), at=5, rank=1, do="SIGSTOP", outlive_s=1.0)
    assert [r.returncode for r in results] == [EXIT_AGAIN, -signal.SIGKILL], results[0].stderr
    assert "rank 0 has not moved for" in results[0].stderr
    assert "in the evaluation after step 5" in results[0].stderr
    assert "in gather" in results[0].stderr, "the stack says what it waited for"
    assert_same_training(trained(world, out, settings()), whole)


def test_fault_41_there_is_no_loader_process_that_a_signal_could_hit(world: SimpleNamespace, tmp_path: Path) -> None:
    train = settings(max_steps=2)
    trained(world, tmp_path / "out", train, rank=0, hook="cathpc.train.finish:run", do="no_children")


def test_fault_42_a_full_log_disk_ends_no_training(world: SimpleNamespace, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for result in launch(world, out, settings(), at=3, rank=0, do="full_log"):
        assert result.returncode == 0, result.stderr
    assert_same_training(out, whole)


@pytest.mark.parametrize("value", [math.nan, 1e4])
def test_a_bad_step_changes_no_weight_and_a_training_of_bad_steps_gives_up(
    world: SimpleNamespace, tmp_path: Path, value: float
) -> None:
    """The gradient of one step is multiplied by `value`, on one rank, as a broken memory would."""
    train = settings(spike_window=8, spike_sigmas=6.0, max_skips=3)
    out = trained(world, tmp_path / "out", train, rank=1, spoil=[7], value=value)
    rows = {row["global_step"]: row for row in metrics.by_step(out / "metrics.jsonl") if "step_s" in row}
    assert [step for step, row in rows.items() if "fault" in row] == [7]
    assert rows[12]["loss"] < rows[1]["loss"]
    final = json.loads((out / "final.json").read_text())
    assert final["dropped_steps"] == [7] and final["proven"] is True
    results = launch(world, tmp_path / "bad", train, rank=1, spoil=[7, 8, 9], value=value)
    assert [r.returncode for r in results] == [EXIT_USER] * 2
    assert "as in the 2 steps before it (train.max_skips)" in results[0].stderr
    assert "Lower train.lr=0.003" in results[0].stderr


def test_a_rollback_goes_back_to_the_checkpoint_and_passes_over_what_led_to_the_spike(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    train, out = settings(on_spike="rollback"), tmp_path / "out"
    results = launch(world, out, train, rank=1, spoil=[7], value=math.nan)
    assert [r.returncode for r in results] == [EXIT_AGAIN] * 2, results[0].stderr
    assert "Back to the checkpoint of step 4; steps 5 to 7 are passed over" in results[0].stderr
    trained(world, out, train)
    rows = metrics.by_step(out / "metrics.jsonl")
    assert [row["global_step"] for row in rows if row.get("fault") == "passed over"] == [5, 6, 7]
    assert sorted(losses(out)) == [1, 2, 3, 4, 8, 9, 10, 11, 12]
    assert set(metrics.consumed(out / "samples.jsonl").values()) == {4}, "they count as consumed"
