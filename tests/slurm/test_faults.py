"""A training that Slurm interrupts, on a real Slurm: it comes back by itself and ends equal to one left alone.

Those that take minutes are in tests/faults; names bear the number of the fault in the matrix of the documentation.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.slurm.site import Site
from tests.slurm.training import Training, assert_same, preempt

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]  # with the fixtures of the session
Make = Callable[..., Training]


def test_fault_01_at_its_wall_clock_limit_a_training_saves_and_comes_back_once(training: Make, calm: Make) -> None:
    one = training("cluster.timeout_min=2", "cluster.lead_s=25")
    one.submit(pace_s=5)
    one.back(1)
    one.finish()
    assert one.restarts() == 1
    assert one.lost() == 0
    assert_same(one, calm())


def test_fault_05_term_alone_saves_and_the_job_comes_back(training: Make, calm: Make) -> None:
    one = training()
    one.submit(pace_s=1)
    one.reach(5)
    one.site.cluster.slurm("scancel", "--signal=TERM", one.job)
    one.back(1)
    one.finish()
    assert one.restarts() == 1
    assert one.lost() == 0
    assert_same(one, calm())


def test_fault_03_a_preempted_training_saves_within_the_grace_time_and_comes_back(training: Make, calm: Make) -> None:
    one = training()
    one.submit(pace_s=1)
    one.reach(5)
    preempt(one)
    one.back(1)
    one.finish()
    assert one.restarts() == 1
    assert one.lost() == 0
    assert_same(one, calm())


def test_a_cancelled_training_saves_and_does_not_come_back(training: Make, site: Site) -> None:
    one = training()
    one.submit(pace_s=1)
    one.reach(5)
    one.site.must("cancel", *one.overrides)
    one.site.settled(120)
    assert one.attempts() == ["CANCELLED"]
    assert one.saved() == one.step()
    assert one.saved() < 24
    assert one.status()["state"] == "failed"
