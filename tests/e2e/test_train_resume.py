"""Training with real ranks on a tiny random Llama: killed, stopped, damaged, and exported. See tests/e2e/ranks.py."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace

from cathpc.errors import EXIT_AGAIN, EXIT_CHANGED, EXIT_USER
from cathpc.train import metrics
from tests.e2e.ranks import (
    STEPS,
    assert_same_training,
    checkpoints,
    copy,
    evals,
    killed,
    launch,
    settings,
    trained,
    whole,
    world,
)

__all__ = ["killed", "whole", "world"]  # fixtures


def test_a_run_killed_after_a_checkpoint_goes_on_to_the_same_losses_and_weights(
    world: SimpleNamespace, whole: Path, killed: Path, tmp_path: Path
) -> None:
    out = trained(world, copy(killed, tmp_path / "out"), settings())
    assert_same_training(out, whole)
    attempts = {row["global_step"]: row["attempt"] for row in metrics.read(out / "metrics.jsonl") if "loss" in row}
    assert [attempts[step] for step in (4, 5, 12)] == [1, 2, 2]


def test_in_bfloat16_with_activation_checkpointing_too(world: SimpleNamespace, tmp_path: Path) -> None:
    train = settings(dtype="bfloat16", activation_checkpointing=True)
    one = trained(world, tmp_path / "whole", train)
    other = tmp_path / "killed"
    results = launch(world, other, train, at=9, rank=1, do="kill")
    assert results[1].returncode == -signal.SIGKILL
    assert_same_training(trained(world, other, train), one)


def test_every_row_is_seen_once_an_epoch_and_the_ledger_says_so(world: SimpleNamespace, whole: Path) -> None:
    ledger = metrics.consumed(whole / "samples.jsonl")
    assert set(ledger.values()) == {4}
    assert len(ledger) == world.summary["train"]["bins"]
    rows = metrics.read(whole / "samples.jsonl")
    orders = [[b for row in rows if row["epoch"] == epoch for b in row["bins"]] for epoch in range(4)]
    assert all(sorted(order) == sorted(ledger) for order in orders)
    assert len({tuple(order) for order in orders}) == 4, "each epoch has an order of its own"
    final = json.loads((whole / "final.json").read_text())
    assert final["steps"] == STEPS
    assert final["tokens"] == 4 * world.summary["train"]["tokens"]
    assert final["loss"] < final["first_loss"]
    assert sorted(evals(whole)) == [0, 5, 10, 12]


def test_the_ledger_of_a_resumed_run_counts_no_record_twice(
    world: SimpleNamespace, killed: Path, tmp_path: Path
) -> None:
    out = copy(killed, tmp_path / "out")
    lines = (out / "samples.jsonl").read_text()
    (out / "samples.jsonl").write_text(lines + '{"attempt": 1, "global_st')  # killed in the middle of a line
    trained(world, out, settings())
    assert set(metrics.consumed(out / "samples.jsonl").values()) == {4}


def test_fault_6_a_stop_signal_to_one_rank_stops_all_after_the_same_step_with_one_checkpoint(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    results = launch(world, out, settings(), at=4, rank=1, do="SIGUSR2")
    assert [r.returncode for r in results] == [EXIT_AGAIN] * 2, results[0].stderr
    # The signal comes when rank 1 has said for step 4 that it goes on: both stop after step 5, where an evaluation is
    # due.
    assert "SIGUSR2" in results[1].stderr
    assert all("after step 5 of 12" in r.stderr for r in results)
    assert checkpoints(out) == ["step-000004", "step-000005"]
    assert 5 not in evals(out), "no time is spent on an evaluation once a stop is requested"
    assert_same_training(trained(world, out, settings()), whole)


def test_a_stop_in_the_last_evaluation_leaves_it_to_the_next_attempt(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    results = launch(
        world, out, settings(), at=STEPS - 1, rank=1, do="SIGUSR2"
    )  # once it said in the last step that it goes on
    assert [r.returncode for r in results] == [EXIT_AGAIN] * 2, results[0].stderr
    assert checkpoints(out)[-1] == f"step-{STEPS:06}" and STEPS not in evals(out)
    assert_same_training(trained(world, out, settings()), whole)
    assert evals(out)[STEPS] == evals(whole)[STEPS]


def test_trap_14_another_number_of_ranks_or_other_settings_are_refused(
    world: SimpleNamespace, killed: Path, tmp_path: Path
) -> None:
    out = copy(killed, tmp_path / "out")
    (changed,) = {r.returncode for r in launch(world, out, settings(lr=1e-3))}
    assert changed == EXIT_CHANGED
    result = launch(world, out, settings(ranks_per_node=1))[0]
    assert result.returncode == EXIT_USER
    assert "saved by 2 ranks and cannot be loaded by 1" in result.stderr
    assert checkpoints(out) == ["step-000004"]
