"""Loss, schedule, stop flag, logs, and the guards of a training."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cathpc.errors import EXIT_AGAIN, UserError
from cathpc.train import engine, metrics, passed, slow, stop
from cathpc.train.config import Schedule, TrainConfig
from cathpc.train.guard import Guard
from cathpc.train.loss import sum_cross_entropy
from cathpc.train.schedule import lr_factor

# --- loss -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_the_chunked_loss_and_its_gradients_are_those_of_plain_cross_entropy(chunk: int) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(40, 16, requires_grad=True)
    weight = torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (40,))
    labels[::3] = -100
    loss = sum_cross_entropy(hidden, weight, labels, chunk)
    mine = torch.autograd.grad(loss * 0.3, (hidden, weight))
    plain = torch.nn.functional.cross_entropy(hidden @ weight.t(), labels, ignore_index=-100, reduction="sum")
    theirs = torch.autograd.grad(plain * 0.3, (hidden, weight))
    torch.testing.assert_close(loss, plain)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_loss_in_bfloat16_is_summed_in_float32() -> None:
    hidden = torch.zeros(3000, 4, dtype=torch.bfloat16)
    loss = sum_cross_entropy(hidden, torch.zeros(8, 4, dtype=torch.bfloat16), torch.zeros(3000, dtype=torch.long), 100)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(3000 * np.log(8), rel=1e-5)


# --- schedule -------------------------------------------------------------------------------------------------------


def test_warm_up_is_linear_in_tokens_and_cosine_ends_at_the_floor() -> None:
    config = TrainConfig(warmup_share=0.1, min_lr_ratio=0.1, schedule=Schedule.cosine)
    factors = [lr_factor(config, seen, 1000) for seen in range(10, 1001, 10)]
    assert factors[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
    assert factors[99] == pytest.approx(0.1)
    assert lr_factor(config, 550, 1000) == pytest.approx(0.55)
    assert factors[9:] == sorted(factors[9:], reverse=True)


def test_wsd_stays_up_and_reaches_its_floor_with_the_last_token_and_constant_stays() -> None:
    wsd = TrainConfig(warmup_share=0.0, min_lr_ratio=0.0, schedule=Schedule.wsd)
    assert [lr_factor(wsd, seen, 100) for seen in range(10, 101, 10)] == pytest.approx([1.0] * 8 + [0.5, 0.0])
    flat = TrainConfig(warmup_share=0.0, schedule=Schedule.constant)
    assert {lr_factor(flat, seen, 10) for seen in range(1, 11)} == {1.0}


# --- batch arithmetic -----------------------------------------------------------------------------------------------


def test_accumulation_fills_the_global_batch_or_says_what_would() -> None:
    config = TrainConfig(global_batch=16, micro_batch=2)
    assert engine.accumulation(config, 4) == 2
    with pytest.raises(UserError, match=r"global_batch=16 is not a multiple of train.micro_batch=2 x 3 ranks = 6"):
        engine.accumulation(config, 3)


# --- stop -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_a_signal_is_noted_and_kills_nobody(number: signal.Signals) -> None:
    before = {known: signal.getsignal(known) for known in stop.SIGNALS}
    try:
        stop.install()
        assert not stop.requested()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        assert stop.requested()
        assert stop.reason() == number.name
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)


# --- logs -----------------------------------------------------------------------------------------------------------


def test_steps_of_a_killed_attempt_are_superseded_and_its_half_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = metrics.Log(path, 0)
    for step in (1, 2, 3):
        log.write({"global_step": step, "loss": 10.0 + step})
    log.file.write(b'{"attempt": 1, "global_step": 4, "lo')
    log.close()
    again = metrics.Log(path, 2)
    assert again.attempt == 2
    again.write({"global_step": 3, "loss": 20.0, "seconds": {"step": 1.0}})
    again.write({"global_step": 3, "eval_loss": 5.0, "seconds": {"eval": 2.0}})
    again.close()
    rows = metrics.read(path)
    assert [(r["global_step"], r["attempt"]) for r in rows] == [(1, 1), (2, 1), (3, 2), (3, 2)]
    last = metrics.by_step(path)[-1]
    assert (last["loss"], last["eval_loss"], last["seconds"]) == (20.0, 5.0, {"step": 1.0, "eval": 2.0})


def test_goodput_is_the_time_of_steps_that_count_over_the_time_of_all_attempts(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"attempt": 1, "start": True, "global_step": 0, "time": 100.0},
        {"attempt": 1, "global_step": 1, "step_s": 10.0, "time": 120.0},
        {"attempt": 1, "global_step": 2, "step_s": 10.0, "time": 130.0},
        {"attempt": 1, "global_step": 2, "seconds": {"save": 5.0}, "time": 135.0},
        {"attempt": 1, "global_step": 3, "step_s": 10.0, "time": 145.0},  # taken again by the second attempt
        {"attempt": 2, "start": True, "global_step": 2, "time": 200.0},
        {"attempt": 2, "global_step": 3, "step_s": 10.0, "time": 220.0},
        {"attempt": 2, "global_step": 4, "step_s": 5.0, "fault": "a spike", "time": 225.0},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert metrics.held_s(path) == 45 + 25
    assert metrics.goodput(path) == pytest.approx(30 / 70)


def test_fault_42_a_full_disk_ends_no_training_and_its_lines_come_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = metrics.Log(tmp_path / "metrics.jsonl", 0)

    class Full:
        def write(self, text: bytes) -> int:
            raise OSError(28, "No space left on device")

    real, log.file = log.file, Full()  # type: ignore[assignment]
    for step in (1, 2):
        log.write({"global_step": step})
    assert capsys.readouterr().out.count("No space left on device") == 1
    log.file = real
    log.write({"global_step": 3})
    log.close()
    assert [row["global_step"] for row in metrics.read(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    monkeypatch.setattr("builtins.print", lambda *a, **k: Full().write(b""))
    metrics.say("a line for a log on a full disk")


# --- the guard ------------------------------------------------------------------------------------------------------


def watched(norms: list[float], *, loss: float = 1.0, **config: Any) -> Guard:
    guard = Guard(TrainConfig(**{"spike_window": 16, "spike_sigmas": 5.0, "clip": 1.0, **config}))
    guard.loss = loss
    for norm in norms:
        guard.refuses(norm)
    return guard


def test_a_spike_is_refused_and_not_remembered() -> None:
    guard = watched([2.0, 2.2, 1.9, 2.1])
    assert not guard.refuses(2.9), "ordinary noise"
    assert guard.refuses(20.0)
    assert guard.fault.startswith("the gradient norm 20 is a spike: over ")
    assert guard.bad == 1 and 20.0 not in guard.norms
    assert not guard.refuses(2.0) and guard.bad == 0


def test_no_spike_is_seen_before_a_quarter_of_the_window_nor_under_the_clip_nor_when_switched_off() -> None:
    assert not watched([2.0, 2.0, 2.0]).refuses(50.0)
    assert not watched([0.01] * 8).refuses(0.9)
    assert not watched([2.0] * 8, spike_sigmas=0.0).refuses(1e9)


@pytest.mark.parametrize("norm", [float("nan"), float("inf"), -1.0])
def test_what_is_not_finite_is_refused_from_the_first_step_on(norm: float) -> None:
    assert watched([]).refuses(norm)
    assert watched([], loss=float("nan")).refuses(1.0)


def test_a_guard_with_its_memory_back_decides_the_same() -> None:
    norms = [2.0 + 0.1 * math.sin(k) for k in range(30)]
    one = watched(norms)
    state = json.loads(json.dumps(list(one.norms)))
    other = Guard(one.config, state)
    other.loss = 1.0
    assert [one.refuses(n) for n in (2.0, 4.0, 2.2)] == [other.refuses(n) for n in (2.0, 4.0, 2.2)]
    assert list(one.norms) == list(other.norms)


# --- the watchdog, stragglers, steps passed over --------------------------------------------------------------------


def test_fault_10_a_rank_that_stands_still_ends_with_its_stacks_in_the_log() -> None:
    code = (
        "import time\nfrom cathpc.train.watchdog import Watchdog\n"
        "with Watchdog(0.5, rank=3) as watchdog:\n"
        "    for _ in range(8):\n        time.sleep(0.1)\n        watchdog.beat('a step')\n"
        "    watchdog.beat('step 7')\n    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == EXIT_AGAIN
    assert "rank 3 has not moved for" in done.stderr and "in step 7" in done.stderr
    assert 'File "<string>", line 8' in done.stderr, "where it stood"


def test_a_slow_rank_is_named_and_even_ones_are_not() -> None:
    assert slow.report(np.array([1.0, 1.1, 1.0, 1.7])) == {"slow_ranks": [3]}
    assert slow.report(np.array([1.0, 1.1, 1.0, 1.2])) == {}
    assert slow.report(np.zeros(4)) == {}


def test_steps_of_a_rollback_are_passed_over(tmp_path: Path) -> None:
    assert passed.read(tmp_path) == []
    passed.add(tmp_path, 5, 7)
    passed.add(tmp_path, 20, 20)
    assert [step for step in range(30) if passed.over(passed.read(tmp_path), step)] == [5, 6, 7, 20]
