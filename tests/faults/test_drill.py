"""`drill`, as a user runs it on a cluster."""

from __future__ import annotations

import json

import pytest

from tests.slurm.site import Site

pytestmark = [pytest.mark.slurm, pytest.mark.faults, pytest.mark.timeout(1800)]


def test_a_disturbed_training_comes_back_identical_from_every_fault(site: Site) -> None:
    done = site.run("drill", "cluster=devcluster", "train.nodes=2", "--json", timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    results = {row["fault"]: row for row in json.loads(done.stdout)}
    assert set(results) == {"signal", "kill", "torn", "lost"}
    assert all(row["came_back"] and row["identical"] and row["attempts"] == 2 for row in results.values())
    assert results["signal"]["again"] == 0, "a signal loses no step"
    assert results["torn"]["again"] > 0, "the checkpoint before the torn one was used"
    assert not (site.folder / "runs" / "drill").exists(), "a drill that went well leaves nothing behind"


def test_a_drill_of_an_unknown_fault_or_without_a_cluster_is_refused(site: Site) -> None:
    unknown = site.run("drill", "cluster=devcluster", "--faults", "flood")
    assert unknown.returncode == 2 and "valid are signal, kill, torn, lost" in unknown.stderr
    alone = site.run("drill")
    assert alone.returncode == 2 and "drill needs a Slurm cluster" in alone.stderr
