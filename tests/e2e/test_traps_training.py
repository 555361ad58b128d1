"""Traps of training, each with real ranks: what a loss is a mean of, and what a resumed run trains on."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cathpc.errors import EXIT_AGAIN
from cathpc.train import metrics
from tests.e2e.ranks import assert_same_training, checkpoints, evals, grad_norms, launch, losses, settings, trained
from tests.e2e.ranks import plain as plain
from tests.e2e.ranks import whole as whole
from tests.e2e.ranks import world as world


@pytest.mark.parametrize(("dtype", "noise"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_trap_7_any_split_into_ranks_and_accumulation_gives_the_same_losses_and_gradients(
    plain: SimpleNamespace, tmp_path: Path, dtype: str, noise: float
) -> None:
    """1 x 4, 2 x 2 and 4 x 1 ranks x accumulation; the last batch of an epoch is short, and rows are unevenly long."""
    runs = {}
    for ranks in (1, 2, 4):
        train = settings(ranks_per_node=ranks, dtype=dtype, save_every_steps=100, epochs=1)
        runs[ranks] = trained(plain, tmp_path / str(ranks), train, gradients=str(tmp_path / f"{ranks}.pt"))
    gradients = {ranks: torch.load(tmp_path / f"{ranks}.pt", weights_only=True) for ranks in runs}
    for ranks in (2, 4):
        apart = {n: float((g - gradients[ranks][n]).norm() / g.norm()) for n, g in gradients[1].items()}
        worst = max(apart, key=lambda name: apart[name])
        print(f"{dtype}, {ranks} ranks: gradients differ by {apart[worst]:.1e} at most ({worst})")
        assert apart[worst] < noise
        assert losses(runs[ranks])[1] == pytest.approx(losses(runs[1])[1], rel=1e-6 if dtype == "float32" else 1e-3)
        assert list(losses(runs[ranks]).values()) == pytest.approx(list(losses(runs[1]).values()), rel=noise)
        assert list(grad_norms(runs[ranks]).values()) == pytest.approx(list(grad_norms(runs[1]).values()), rel=noise)


def test_trap_8_all_ranks_take_part_in_a_step_that_has_fewer_rows_than_ranks(
    plain: SimpleNamespace, tmp_path: Path
) -> None:
    """11 rows in batches of 4: the third step has one row short, and one of four ranks an empty one."""
    out = trained(plain, tmp_path / "out", settings(ranks_per_node=4, save_every_steps=100, epochs=1))
    rows = metrics.read(out / "samples.jsonl")
    assert [len(row["bins"]) for row in rows] == [4, 4, 3]


def test_trap_22_resumes_within_an_epoch_in_the_middle_of_accumulation_and_at_an_epochs_end(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train = settings(save_every_steps=1)
    events = [
        {"at": 2, "do": "SIGTERM"},  # in the save after step 2: stops after step 3, the end of the first epoch
        {"hook": "cathpc.train.microbatch:tensors", "call": 2, "do": "kill"},  # the first step's second micro-batch
        {"at": 1, "do": "SIGUSR2"},  # within the second epoch, and again
        {"at": 1, "do": "SIGUSR2"},
    ]
    ends = [launch(world, out, train, rank=1, **event)[1].returncode for event in events]
    assert ends == [EXIT_AGAIN, -signal.SIGKILL, EXIT_AGAIN, EXIT_AGAIN]
    trained(world, out, train)
    assert_same_training(out, whole)
    assert set(metrics.consumed(out / "samples.jsonl").values()) == {4}
    assert json.loads((out / "final.json").read_text())["attempts"] == 5


def test_trap_23_a_signal_while_loading_or_evaluating_stops_at_the_next_safe_place(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    loading = launch(world, out, settings(), rank=1, hook="cathpc.train.checkpoint:load", do="SIGTERM")
    assert [r.returncode for r in loading] == [EXIT_AGAIN] * 2, loading[0].stderr
    assert all("in the evaluation after step 0 of 12" in r.stderr for r in loading)
    assert losses(out) == {} and checkpoints(out) == []
    evaluating = launch(world, out, settings(), rank=0, hook="cathpc.train.loop:_evaluate", call=2, do="SIGUSR2")
    assert [r.returncode for r in evaluating] == [EXIT_AGAIN] * 2, evaluating[0].stderr
    assert checkpoints(out) == ["step-000004", "step-000005"], "the evaluation was due after step 5"
    trained(world, out, settings())
    assert_same_training(out, whole)
    assert sorted(evals(out)) == [0, 5, 10, 12]
