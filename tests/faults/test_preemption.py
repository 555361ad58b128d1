"""Jobs of a higher partition take a training's nodes: with warning, with TERM alone, with nothing at all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.slurm.site import wait
from tests.slurm.training import INTERVAL, Training, assert_same, preempt

pytestmark = [pytest.mark.slurm, pytest.mark.faults, pytest.mark.timeout(1200)]  # with the fixtures of the session
Make = Callable[..., Training]


def test_fault_03_a_training_on_two_nodes_of_which_one_is_taken_saves_within_the_grace_time(
    training: Make, calm: Make
) -> None:
    one = training("train.nodes=2", "train.ranks_per_node=1")
    one.submit(pace_s=1)
    one.reach(6)
    preempt(one, "gpu2")
    one.back(1)
    one.finish()
    assert one.restarts() == 1
    assert one.lost() == 0
    assert_same(one, calm())


def test_fault_04_without_grace_the_periodic_checkpoint_is_used(
    training: Make, calm: Make, settings: Callable[..., None]
) -> None:
    settings(grace_s=0, SlurmctldParameters="", KillWait="2")
    one = training()
    one.submit(pace_s=1)
    one.reach(INTERVAL + 2)
    one.pace(60)  # the ranks wait behind this step: they are told, and have no time to save
    saved, old = one.saved(), set(one.site.ranks())
    preempt(one)
    one.back(1)
    wait(lambda: not old & set(one.site.ranks()), what="the end of the old ranks")
    assert one.saved() == saved, "nothing was saved"
    one.finish()
    assert one.restarts() == 1
    assert one.attempts() == ["PREEMPTED", "COMPLETED"]
    assert 0 < one.lost() <= INTERVAL
    assert_same(one, calm())


def test_fault_05_term_alone_saves_within_the_grace_time(
    training: Make, calm: Make, settings: Callable[..., None]
) -> None:
    settings(SlurmctldParameters="")
    one = training()
    one.submit(pace_s=1)
    one.reach(6)
    preempt(one)
    one.back(1)
    one.finish()
    assert "SIGTERM" in one.site.logs("train") and "SIGUSR2" not in one.site.logs("train")
    assert one.restarts() == 1
    assert one.lost() == 0
    assert_same(one, calm())
