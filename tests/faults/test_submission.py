"""Faults 14 to 18 at length: controllers that are down, commands that are killed at any point or run side by side."""

from __future__ import annotations

import os
import re
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cathpc.errors import EXIT_AGAIN
from tests.e2e.harness import complaint
from tests.slurm.hooks import let, plant, reached
from tests.slurm.rerun import (
    FAST,
    all_well,
    attempts,
    downstream,
    no_controller,
    once_each,
    reserved,
    submitted,
    without,
)
from tests.slurm.site import Site, wait

pytestmark = [pytest.mark.slurm, pytest.mark.faults]

SLOW_SHARD = """
@after_import("cathpc.shards")
def patch(module):
    inner = module.mark
    def mark(out, shard, **facts):
        if out.parent.name == "score" and shard == 3 and once("stopped"):
            say("at-shard-3")
            until("go")
        inner(out, shard, **facts)
    module.mark = mark
"""


def children(pid: int) -> set[int]:
    """The processes that `pid` has started and that live."""
    try:
        return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except OSError:
        return set()


def first_of(pids: list[int]) -> int:
    """Of a process and its forks the process: numbers begin anew at 1 from time to time."""
    found = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found.append((psutil.Process(pid).create_time(), pid))
    return min(found)[1]


def killed_without_controller(site: Site, *overrides: str) -> None:
    """Kill the task that is in shard 3 while slurmctld is down; returns with its trap at work."""
    site.must(*FAST, *overrides, **plant(site, SLOW_SHARD))
    victim = reached(site, "at-shard-3")
    site.cluster.must("stop", "slurmctld")
    os.kill(victim, signal.SIGKILL)


def test_fault_14_slurmctld_down_at_the_requeue_is_asked_until_it_is_back(finished: Site, site: Site) -> None:
    without(finished, site, "score")
    asked: set[int] = set()
    try:
        killed_without_controller(site, "cluster.requeue_wait_s=600")
        # The other tasks' traps, of code 0, end at once.
        trap = first_of(wait(lambda: site.processes("cathpc.dispatch.attempt", ".json 137 "), what="the trap"))

        def in_vain() -> bool:
            asked.update(children(trap))
            return len(asked) > 2  # what is the job's state; requeue it; once more

        wait(in_vain, every_s=0.05, what="a second try")
    finally:
        site.cluster.must("start", "slurmctld")
    site.settled()
    assert [a["again"] for a in attempts(site)] == [True]
    assert "could not requeue" not in site.logs("score")
    once_each(site, *downstream("score"))
    all_well(finished, site, *downstream("score"))


def test_fault_14_slurmctld_down_for_long_ends_the_attempt_with_85_and_slurm_requeues_it(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    try:
        killed_without_controller(site, "cluster.requeue_wait_s=1")
        wait(lambda: "could not requeue job" in site.logs("score"), what="the trap giving up")
    finally:
        site.cluster.must("start", "slurmctld")
    site.settled()
    once_each(site, *downstream("score"))
    assert "REQUEUED" in site.history(site.record("score")["jobs"][0]["id"])
    all_well(finished, site, *downstream("score"))


def test_fault_15_slurmctld_down_after_some_jobs_keeps_these_and_submits_the_rest_later(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    code = """
@after_import("cathpc.dispatch.script")
def patch(module):
    inner = module.send
    def send(request, cluster):
        if request.stage == "cards" and once("stopped"):
            say("at-cards")
            until("go")
        return inner(request, cluster)
    module.send = send
"""
    with reserved(site):
        command = site.start(*FAST, **plant(site, code))
        reached(site, "at-cards")
        with no_controller(site):
            let(site, "go")
            text, _ = command.communicate(timeout=120)
        assert command.returncode == EXIT_AGAIN and "Traceback" not in text
        assert re.search(r"^cathpc: sbatch: .*Unable to contact.*same command goes on", text, re.M), text
        before = submitted(site)
        assert before.keys() == {"score.w0.0", "score.f", "select.s0"}
        site.must(*FAST)
        after = once_each(site, *downstream("score"))
        assert {name: {after[name]} for name in before} == before
    site.settled()
    all_well(finished, site, *downstream("score"))


DIE_AT_EVENT = """
seen = 0

def event():
    global seen
    seen += 1
    if seen == int(os.environ["DIE_AT"]):
        die()

def around(inner):
    def call(*arguments):
        event()
        found = inner(*arguments)
        event()
        return found
    return call

@after_import("cathpc.dispatch.script")
def script(module):
    module.send = around(module.send)

@after_import("cathpc.dispatch.jobs")
def jobs(module):
    module.write, module.write_spec = around(module.write), around(module.write_spec)
"""


def test_fault_18_a_command_killed_at_any_point_leaves_nothing_orphaned_and_no_job_twice(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    hooks = plant(site, DIE_AT_EVENT)
    points = 16 + 10  # of an array and its last job, and of the stage that follows it
    with reserved(site):
        for point in range(1, points + 1):
            killed = site.run(*FAST, **hooks, DIE_AT=str(point))
            assert killed.returncode == -9, point
            site.must(*FAST)
            once_each(site, *downstream("score"), states="pending")
            ever = submitted(site)
            assert all(len(ids) == point for ids in ever.values()), (point, ever)
            if point < points:
                site.must("cancel", *FAST)
                wait(lambda: not site.queue(), 60, what="an empty queue")
    site.settled()
    all_well(finished, site, *downstream("score"))


def test_fault_18_cancel_ends_a_job_whose_id_was_lost_with_the_command(finished: Site, site: Site) -> None:
    without(finished, site, "score")
    with reserved(site):
        killed = site.run(*FAST, **plant(site, DIE_AT_EVENT), DIE_AT="6")  # sbatch took the array
        assert killed.returncode == -9
        (lost,) = submitted(site)["score.w0.0"]
        assert f"score: cancelled {lost}" in site.must("cancel", *FAST)
        wait(lambda: not site.queue(), 60, what="an empty queue")


def test_fault_17_two_runs_that_share_stages_at_once_share_their_jobs(finished: Site, site: Site) -> None:
    without(finished, site, "score", "train")
    other = (*FAST, "train.lr=2e-3")
    with reserved(site):
        both = [site.start(*words) for words in (FAST, other)]
        texts = [process.communicate(timeout=120)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], texts
        found = submitted(site)
        for stage in downstream("score"):
            expected = 2 if stage in downstream("train") else 1
            for name in (n for n in found if n.split(".")[0] == stage):
                assert len(found[name]) == expected, (name, found)
        site.must("cancel", *other, "--shared")
        site.must("cancel", *FAST)
        wait(lambda: not site.queue(), 60, what="an empty queue")


def test_fault_16_a_reply_that_is_lost_costs_no_second_job_and_the_run_ends_as_undisturbed(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    code = """
@after_import("cathpc.dispatch.script")
def patch(module):
    inner = module.send
    def send(request, cluster):
        found = inner(request, cluster)
        if once(request.name):
            from cathpc.dispatch.slurm import QueueError
            raise QueueError("sbatch: Batch job submission failed: Socket timed out on send/recv operation")
        return found
    module.send = send
"""
    hooks = plant(site, code)
    lost = 0
    with reserved(site):
        while (done := site.run(*FAST, **hooks)).returncode:
            assert "Socket timed out" in complaint(done)
            lost += 1
            assert lost <= 20
    site.settled()
    once_each(site, *downstream("score"))
    assert lost == len(submitted(site))
    all_well(finished, site, *downstream("score"))


def test_fault_18_what_was_left_of_another_width_is_ended_before_the_shards_are_divided_anew(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    with reserved(site):
        killed = site.run(*FAST, **plant(site, DIE_AT_EVENT), DIE_AT="8")  # the array's id is written down
        assert killed.returncode == -9
        (old,) = submitted(site)["score.w0.0"]
        site.must(*FAST, "cluster.arrays.score=3")
        assert once_each(site, *downstream("score"), states="pending")["score.w0.0"] != old
        assert site.record("score")["jobs"][0]["width"] == 3
    site.settled()
    all_well(finished, site, *downstream("score"))
