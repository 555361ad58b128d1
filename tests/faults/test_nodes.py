"""Nodes that die, and daemons that die while their tasks live on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest

from tests.slurm.site import Cluster, wait
from tests.slurm.training import HELD_S, INTERVAL, Training, assert_same

pytestmark = [pytest.mark.slurm, pytest.mark.faults, pytest.mark.timeout(1200)]  # with the fixtures of the session
Make = Callable[..., Training]


def twice(one: Training, nodes: Cluster) -> tuple[str, list[int]]:
    """Kill the slurmd of a training's node, so that two attempts of its job live; returns node and old ranks."""
    one.submit(pace_s=1)
    one.reach(INTERVAL + 2)
    one.pace(HELD_S)
    node, old = one.running(), one.site.ranks()
    nodes.must("kill", f"slurmd.{node}")
    one.back(1)
    assert one.running() != node
    claims = one.folder.glob
    wait(lambda: any(json.loads(p.read_text())["restart"] == 1 for p in claims("claim-*.json")), what="the new owner")
    assert old and set(old) <= set(one.site.ranks()), "the old ranks live on"
    return node, old


def test_fault_11_slurmd_dies_and_its_task_lives_on_but_commits_nothing(
    training: Make, calm: Make, nodes: Cluster
) -> None:
    one = training()
    _, old = twice(one, nodes)
    new = wait(lambda: sorted(set(one.site.ranks()) - set(old)), what="the ranks of the new attempt")
    for process in new:  # let the old attempt alone come to its next save
        os.kill(process, signal.SIGSTOP)
    one.pace(0)
    wait(lambda: not set(one.site.ranks()) & set(old), what="the end of the old ranks")
    assert one.saved() == INTERVAL, "it committed nothing"
    assert "this process writes nothing more there" in one.site.logs("train")
    assert one.status()["state"] == "running"
    for process in new:
        os.kill(process, signal.SIGCONT)
    one.finish()
    assert one.restarts() == 1
    assert not list(one.folder.glob("checkpoints/.tmp-*"))
    assert_same(one, calm())


def test_fault_11_the_end_of_the_old_task_does_not_put_the_new_one_back(
    training: Make, calm: Make, nodes: Cluster
) -> None:
    one = training()
    node, old = twice(one, nodes)
    for process in old:  # srun could end the peers of a dead rank through the slurmd alone
        os.kill(process, signal.SIGKILL)
    wait(lambda: not set(one.site.ranks()) & set(old), what="the end of the old ranks")
    nodes.must("start", f"slurmd.{node}")
    one.finish()
    assert one.restarts() == 1
    assert one.attempts()[-1] == "COMPLETED" and len(one.attempts()) == 2
    assert_same(one, calm())


def test_fault_12_a_node_dies_and_the_training_goes_on_on_another(training: Make, calm: Make, nodes: Cluster) -> None:
    one = training()
    one.submit(pace_s=1)
    one.reach(INTERVAL + 2)
    node = one.running()
    nodes.must("lose", node)
    one.back(1)
    assert one.running() != node
    one.finish()
    assert one.restarts() == 1
    assert one.attempts() == ["NODE_FAIL", "COMPLETED"]
    assert 0 < one.lost() <= INTERVAL
    assert_same(one, calm())


def test_fault_12_one_of_two_nodes_dies_and_comes_back(training: Make, calm: Make, nodes: Cluster) -> None:
    one = training("train.nodes=2", "train.ranks_per_node=1")
    one.submit(pace_s=1)
    one.reach(INTERVAL + 2)
    assert one.running() == "gpu[1-2]"
    nodes.must("lose", "gpu2")
    wait(lambda: one.site.queue()[one.job][0] == "PENDING", what="a job that waits for its node")
    nodes.must("start", "slurmd.gpu2")
    one.back(1)
    one.finish()
    assert 0 < one.lost() <= INTERVAL
    assert_same(one, calm())


def test_fault_13_a_job_that_slurm_holds_after_nodes_died_six_times_is_reported(
    training: Make, calm: Make, nodes: Cluster, settings: Callable[..., None]
) -> None:
    settings(BatchStartTimeout="1")
    one = training()
    one.submit(pace_s=HELD_S)
    for times in range(1, 7):  # Slurm's max_batch_requeue is 5
        node = one.running()
        wait(lambda n=times: one.started() == n, what=f"attempt {times} at its first step")
        nodes.must("lose", node)
        nodes.must("start", f"slurmd.{node}")
        # A node that came back is asked what runs on it every two minutes, and when the configuration is read again.
        wait(lambda n=times: nodes.slurm("scontrol", "reconfigure") or one.restarts() >= n, every_s=3, what="a requeue")
        if one.site.queue()[one.job][0] == "REQUEUE_HOLD":
            break
    found = one.status()
    assert found["state"] == "held", (one.site.queue(), found)
    assert f"scontrol release {one.job}" in found["message"]
    assert "administrator" in found["message"]
    assert one.site.queue()[one.site.job("export")][1] == "Dependency", "what depends on it waits on"
    nodes.slurm("scontrol", "release", one.job)
    one.finish()
    assert_same(one, calm())
