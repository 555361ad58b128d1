"""Attempts that fail by themselves: bad nodes, crashes again and again, and sites without scontrol on their nodes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cathpc.dispatch import jobs
from tests.slurm.training import INTERVAL, Training, assert_same

pytestmark = [pytest.mark.slurm, pytest.mark.faults, pytest.mark.timeout(1200)]  # with the fixtures of the session
Make = Callable[..., Training]


def test_a_node_that_fails_its_health_check_is_left_out_of_the_next_attempt(training: Make, calm: Make) -> None:
    one = training("cluster.health_check=true")
    script = one.site.folder / "check"
    script.write_text('#!/bin/sh\ntest "$SLURMD_NODENAME" != gpu1 || { echo memory fault; exit 1; }\n')
    script.chmod(0o755)
    one = Training(one.site, (*one.overrides, f"cluster.health_command=[{script}]"))
    one.submit(pace_s=0)
    one.finish()
    assert one.restarts() == 1
    assert "gpu1: " in one.site.logs("train") and "memory fault" in one.site.logs("train")
    (line,) = one.site.cluster.slurm("scontrol", "--oneliner", "show", "job", one.job).splitlines()
    assert " ExcNodeList=gpu1 " in line and " NodeList=gpu2 " in line
    assert_same(one, calm())


CRASH = """
@after_import("cathpc.train.ranks")
def crash(ranks):
    plain = ranks.gather

    def gather(values):
        rows = plain(values)
        if len(values) > 2 and os.environ["SLURM_PROCID"] == "1" and due():
            die()
        return rows

    ranks.gather = gather
"""


def test_a_training_that_crashes_every_time_fails_for_good_and_says_why(training: Make) -> None:
    one = training("cluster.max_crashes=3")
    one.submit(pace_s=0, hook=CRASH + "def due():\n    return True\n")
    one.site.settled(420)
    assert one.restarts() == 2
    assert one.attempts()[-1] == "FAILED"
    assert one.site.states()["export"] == {"CANCELLED"}
    found = one.status()
    assert found["state"] == "failed"
    assert "3 attempts in a row brought no new checkpoint" in found["message"]
    assert "SIGKILL" in found["message"] or "another rank" in found["message"]
    assert "retry" in found["message"]


def test_crashes_after_new_checkpoints_never_count(training: Make, calm: Make) -> None:
    one = training("cluster.max_crashes=2")
    due = """
first = None

def saved():
    return sorted(p.parent.name for p in HOOKS.parent.glob("store/train/*/checkpoints/step-*/manifest.json"))

def due():
    global first
    first = first if first is not None else saved()[-1:]
    return saved()[-1:] > first and any(once(f"crash-{n}") for n in range(4))
"""
    one.submit(pace_s=0, hook=CRASH + due)
    one.finish()
    assert one.restarts() == 4
    assert one.lost() <= 4 * INTERVAL
    rows = jobs.attempts(one.folder)
    assert [row["counts"] for row in rows] == [True] * 4
    assert len({row["mark"] for row in rows}) == 4
    assert_same(one, calm())


def test_fault_10_a_rank_that_hangs_is_ended_by_its_peers_watchdog_and_the_job_comes_back(
    training: Make, calm: Make
) -> None:
    one = training("train.watchdog_s=20")
    hang = CRASH.replace("die()", "os.kill(os.getpid(), signal.SIGSTOP)")
    due = """
import signal

def due():
    saved = list(HOOKS.parent.glob("store/train/*/checkpoints/step-*/manifest.json"))
    return bool(saved) and once("hang")
"""
    one.submit(pace_s=0, hook=hang + due)
    one.finish()
    assert one.restarts() == 1
    assert "has not moved for" in one.site.logs("train")
    assert one.lost() <= INTERVAL
    assert_same(one, calm())


def test_segments_go_on_where_nodes_have_no_scontrol(training: Make, calm: Make) -> None:
    one = training("cluster.requeue=chain", "cluster.segments=4")
    hidden = one.site.folder / "bin"
    hidden.mkdir()
    for command in Path("/usr/bin").iterdir():
        if command.name != "scontrol":
            (hidden / command.name).symlink_to(command)
    one = Training(one.site, (*one.overrides, f"cluster.setup=['export PATH={hidden}']"))
    one.submit(pace_s=1)
    segments = [job["id"] for job in one.site.record("train")["jobs"]]
    assert len(segments) == 4
    for number, step in enumerate((5, 10)):
        one.reach(step)
        one.site.cluster.slurm("scancel", "--signal=TERM", segments[number])
    one.finish()
    assert [one.site.history(s) for s in segments] == [["FAILED"], ["FAILED"], ["COMPLETED"], ["COMPLETED"]]
    assert one.lost() == 0
    assert_same(one, calm())
