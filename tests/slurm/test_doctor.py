"""`doctor` on a real Slurm: what it finds on the one-machine cluster, and what it says of a wrong site file."""

from __future__ import annotations

import json

import pytest

from tests.slurm.site import Site

pytestmark = pytest.mark.slurm
DOCTOR = ("doctor", "cluster=devcluster", "+experiment=smoke", "--json", "--wait", "200")


def test_the_one_machine_cluster_passes_with_what_it_only_pretends(site: Site) -> None:
    done = site.run(*DOCTOR)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert [row for row in rows if row["state"] == "fail"] == []
    assert {"GPUs"} <= {row["name"] for row in rows if row["state"] == "warn"}
    nodes = {(row["group"], row["name"]): row for row in rows if row["group"].startswith("nodes of")}
    assert nodes["nodes of gpu", "all-reduce"]["seen"].endswith("GB/s")
    for group in ("nodes of gpu", "nodes of cpu"):
        for name in ("job", "environment", "folders", "Slurm there", "clock"):
            assert nodes[group, name]["state"] == "pass", nodes[group, name]


def test_a_wrong_partition_is_named_by_its_key(site: Site) -> None:
    done = site.run(*DOCTOR, "--no-jobs", "cluster.partition=gpus")
    assert done.returncode == 2, done.stdout + done.stderr
    (row,) = [row for row in json.loads(done.stdout) if row["state"] == "fail"]
    assert "cluster.partition is 'gpus'" in row["seen"] and "gpu" in row["advice"]
