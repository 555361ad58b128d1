"""The wall clock: a training whose job may run for four minutes, and one that is stopped again and again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.slurm.training import Training, assert_same

pytestmark = [pytest.mark.slurm, pytest.mark.faults, pytest.mark.timeout(1200)]  # with the fixtures of the session
Make = Callable[..., Training]
FOUR_MINUTES = ("cluster.timeout_min=4", "cluster.lead_s=45")


def test_fault_01_wall_clock_one_requeue_and_no_step_is_lost(training: Make, calm: Make) -> None:
    one = training(*FOUR_MINUTES)
    one.submit(pace_s=10)
    one.back(1, seconds=400)
    one.finish()
    assert one.restarts() == 1
    assert one.lost() == 0
    assert_same(one, calm())


@pytest.mark.timeout(2400)
def test_fault_02_four_windows_in_a_row_equal_an_uninterrupted_training(training: Make, calm: Make) -> None:
    one = training(*FOUR_MINUTES, epochs=15)
    one.submit(pace_s=12, everything=True)
    for times in (1, 2, 3):
        one.back(times, seconds=500)
    one.finish(900)
    assert one.restarts() == 3
    assert one.lost() == 0
    assert_same(one, calm(15))
    done = one.site.states()
    assert {done[stage] == {"COMPLETED"} for stage in ("export", "evaluate", "report")} == {True}, done
    times = {}
    for stage in ("train", "export"):
        text = one.site.cluster.slurm("sacct", "-X", "-n", "-P", "-j", one.site.job(stage), "--format=Start,End")
        times[stage] = text.strip().split("|")
    assert times["export"][0] >= times["train"][1], "what depends on the training ran after it"


def test_fault_02_a_training_that_is_stopped_seven_times_hits_no_cap(training: Make, calm: Make) -> None:
    one = training("cluster.max_crashes=2")
    one.submit(pace_s=1)
    for times in range(1, 8):
        one.reach(one.saved() + 2)
        one.site.cluster.slurm("scancel", "--signal=TERM", one.job)
        one.back(times)
    one.finish()
    assert one.restarts() == 7
    assert one.lost() == 0
    assert_same(one, calm())
