"""Loss, schedule, stop flag and logs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from cathpc.errors import UserError
from cathpc.train import engine, metrics, stop
from cathpc.train.config import Schedule, TrainConfig
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


def test_warm_up_is_linear_and_cosine_ends_at_the_floor() -> None:
    config = TrainConfig(warmup_share=0.1, min_lr_ratio=0.1, schedule=Schedule.cosine)
    factors = [lr_factor(config, step, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (k + 1) for k in range(10)])
    assert factors[10] == 1.0
    assert factors[99] == pytest.approx(0.1)
    assert factors[54] == pytest.approx(0.55, abs=0.01)
    assert factors[9:] == sorted(factors[9:], reverse=True)


def test_wsd_stays_up_and_reaches_its_floor_in_the_last_step_and_constant_stays() -> None:
    wsd = TrainConfig(warmup_share=0.0, min_lr_ratio=0.0, schedule=Schedule.wsd)
    assert [lr_factor(wsd, step, 10) for step in range(10)] == pytest.approx([1.0] * 8 + [0.5, 0.0])
    flat = TrainConfig(warmup_share=0.0, schedule=Schedule.constant)
    assert {lr_factor(flat, step, 10) for step in range(10)} == {1.0}


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
    log.file.write('{"attempt": 1, "global_step": 4, "lo')
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
