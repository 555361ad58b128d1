"""The training's full width, 2 nodes x 8 ranks, on a real Slurm: as on one machine, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.e2e.harness import Home
from tests.slurm.site import Site, copy_store
from tests.slurm.test_smoke import losses

pytestmark = [pytest.mark.slurm, pytest.mark.faults]

DATA = ("pull", "base", "reference", "pool", "refusal", "score", "select", "cards", "pack")
WIDE = ("+experiment=smoke", "train.ranks_per_node=8", "train.global_batch=16")


def test_sixteen_ranks_on_two_nodes_equal_sixteen_on_one_machine(finished: Site, site: Site, tmp_path: Path) -> None:
    copy_store(finished.store, site, *DATA)
    site.must(*WIDE, "cluster=devcluster", "train.nodes=2")
    site.settled(900)
    states = site.states()
    assert {stage: states[stage] for stage in ("train", "export", "evaluate", "report")} == {
        stage: {"COMPLETED"} for stage in ("train", "export", "evaluate", "report")
    }
    assert site.manifest("train")["summary"]["ranks"] == 16
    local = Home(tmp_path)
    for stage in DATA:
        shutil.copytree(finished.store / stage, local.store / stage, symlinks=True)
    done = local.run(WIDE[0], "train.ranks_per_node=16", WIDE[2], timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    train = site.stage("train")
    assert losses(train) == losses(local.store / "train" / train.name)
    (mine,) = (site.stage("export") / "model").glob("*.safetensors")
    (theirs,) = local.store.glob("export/*/model/*.safetensors")
    assert mine.read_bytes() == theirs.read_bytes()
