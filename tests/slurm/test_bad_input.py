"""What a cluster cannot run is refused in one message, before anything is submitted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.harness import Home, complaint
from tests.slurm.conftest import SMOKE
from tests.slurm.site import Site

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cluster.partition=gpuu", "there is no partition 'gpuu' (stage reference). Did you mean 'gpu'?"),
        ("cluster.cpu_partition=big", "there is no partition 'big' (stage score)."),
        ("cluster.short_timeout_min=99999", "partition cpu allows 2 d 0 h: lower cluster.short_timeout_min"),
        ("cluster.timeout_min=99999", "partition gpu allows 14 d 0 h: lower cluster.timeout_min"),
        ("name='smoke\n#SBATCH --uid=0'", "it must match"),
        ("+cluster.sbatch.uid=root", "cluster.sbatch.uid is not an allowed Slurm option. Allowed: contiguous"),
        ("cluster.timeout_min=1", "leaves too little beside the 45 s of warning that a save needs"),
    ],
)
def test_one_message_and_nothing_submitted(site: Site, override: str, said: str) -> None:
    done = site.run(*SMOKE, override)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in complaint(done)
    assert site.queue() == {}
    assert not list(site.store.glob("*/*/.jobs/job.json")), "nothing half-submitted"


def test_more_nodes_than_the_partition_has_are_refused(site: Site) -> None:
    done = site.run(
        "+experiment=smoke", "cluster=devcluster", "cluster.nodes=3", "train.nodes=3", "train.global_batch=6"
    )
    assert "stage train asks for 3 nodes, partition gpu has 2" in complaint(done)
    assert site.queue() == {}


def test_what_sbatch_itself_refuses_is_the_users_to_mend_and_not_to_be_tried_again(site: Site) -> None:
    done = site.run(*SMOKE, "+cluster.sbatch.reservation=winter")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Slurm refuses the job of stage" in complaint(done) and "reservation" in complaint(done)
    assert site.queue() == {}


def test_a_machine_without_slurm_is_told_what_it_can_do(tmp_path: Path) -> None:
    home = Home(tmp_path)
    environment = {**home.environment(), "PATH": str(tmp_path)}
    done = subprocess.run(
        home.command("+experiment=smoke", "cluster=devcluster"),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    said = complaint(done)
    assert "there is no Slurm on this machine" in said and "cluster=local" in said and "slurm/devcluster up" in said
    assert not list(tmp_path.glob("store/*/*/.jobs/job.json"))


def test_a_cluster_that_is_not_up_is_named(tmp_path: Path) -> None:
    done = Home(tmp_path).run("+experiment=smoke", "cluster=devcluster", f"cluster.slurm_conf={tmp_path}/slurm.conf")
    assert done.returncode == 2
    assert f"there is no {tmp_path}/slurm.conf. Is the cluster up?" in complaint(done)


def test_no_secret_reaches_a_script_a_spec_a_log_or_a_job(site: Site) -> None:
    canary = "canary-9b1d-secret"
    secrets = {"HF_TOKEN": canary, "WANDB_API_KEY": canary, "MY_PASSWORD": canary, "AWS_SECRET_ACCESS_KEY": canary}
    site.must(*SMOKE, **secrets)
    shown = site.cluster.slurm("scontrol", "show", "job")
    assert canary not in shown
    pulled = site.record("pull")["jobs"][0]["id"]
    script = site.cluster.slurm("scontrol", "write", "batch_script", pulled, "-")
    assert canary not in script and "cathpc.dispatch.job" in script
    site.must("cancel", *SMOKE)
    site.settled(60)
    for path in [*site.store.rglob("*"), *(site.folder / "runs").rglob("*")]:
        if path.is_symlink():
            continue
        assert path.stat().st_mode & 0o077 == 0, f"{path} may be read by others"
        if path.is_file():
            assert canary.encode() not in path.read_bytes(), f"{path} holds a secret"
    assert os.stat(site.store).st_mode & 0o077 == 0
