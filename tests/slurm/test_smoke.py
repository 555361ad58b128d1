"""The whole pipeline on a real Slurm: submitted at once, finished by itself, the same to the bit as on one machine."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cathpc.pipeline import STAGES
from tests.e2e.harness import Home
from tests.slurm.conftest import SMOKE
from tests.slurm.site import Cluster, Site, copy_store

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """The same run on one machine, with as many ranks."""
    home = Home(tmp_path_factory.mktemp("local"))
    done = home.run("+experiment=smoke", "train.ranks_per_node=4", "train.global_batch=4")
    assert done.returncode == 0, done.stdout + done.stderr
    return home


def losses(folder: Path) -> dict[int, float]:
    """Step -> loss; of a step that was taken twice, the later attempt's."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {row["global_step"]: row["loss"] for row in rows if "loss" in row}


def test_all_jobs_are_completed_in_accounting(finished: Site) -> None:
    assert finished.states() == {s.name: {"COMPLETED"} for s in STAGES}


def test_weights_losses_and_rows_equal_those_of_one_machine_bit_for_bit(finished: Site, local: Home) -> None:
    train = finished.stage("train")
    assert train.name == local.stage("train", local_run(local)).name, "the same fingerprint: nodes are no result"
    assert losses(train) == losses(local.store / "train" / train.name)
    (mine,) = (finished.stage("export") / "model").glob("*.safetensors")
    (theirs,) = local.store.glob("export/*/model/*.safetensors")
    assert mine.read_bytes() == theirs.read_bytes()
    for stage, name in (("select", "verdicts.parquet"), ("select", "kept.parquet"), ("cards", "carded.parquet")):
        (other,) = local.store.glob(f"{stage}/*/{name}")
        assert pq.read_table(finished.stage(stage) / name) == pq.read_table(other), name
    shards = sorted((finished.stage("score") / "scores").glob("*.parquet"))
    assert len(shards) == 8
    for shard in shards:
        (other,) = local.store.glob(f"score/*/scores/{shard.name}")
        assert pq.read_table(shard) == pq.read_table(other)


def local_run(home: Home) -> str:
    (run,) = (home.folder / "runs").iterdir()
    return run.name


def test_submitting_takes_seconds_and_the_same_command_again_submits_nothing(finished: Site, site: Site) -> None:
    with drained(site.cluster):  # nothing starts, so nothing ends between two looks
        began = time.monotonic()
        table = site.must(*SMOKE)
        assert time.monotonic() - began < 10
        assert table.count("submitted") >= len(STAGES)
        ids = sorted(site.queue())
        again = site.must(*SMOKE)
        assert "0 stages submitted" in again
        assert sorted(i.partition("_")[0] for i in site.queue()) == sorted(i.partition("_")[0] for i in ids)
        assert site.must("cancel", *SMOKE).count("cancelled") == len(STAGES)
        site.settled(60)


@contextmanager
def drained(cluster: Cluster) -> Iterator[None]:
    """No node of the cluster takes a job."""
    nodes = ",".join(sorted(set(cluster.slurm("sinfo", "--noheader", "--Node", "--format=%N").split())))
    cluster.slurm("scontrol", "update", f"NodeName={nodes}", "State=DRAIN", "Reason=test")
    try:
        yield
    finally:
        cluster.slurm("scontrol", "update", f"NodeName={nodes}", "State=RESUME")


def test_a_finished_run_is_up_to_date_whoever_looks(finished: Site) -> None:
    assert "everything is up to date" in finished.must(*SMOKE)
    states = json.loads(finished.must("status", *SMOKE, "--json"))
    assert {s["state"] for s in states.values()} == {"done"}
    assert states["score"]["shards"] == {"done": 8, "failed": 0, "running": 0}


def test_only_the_shards_that_are_missing_are_scored_again(finished: Site, site: Site) -> None:
    copy_store(finished.store, site, "pull", "base", "reference", "pool", "refusal", "score")
    folder = site.stage("score")
    (folder / "manifest.json").unlink()
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "scores").glob("*.parquet")}
    for shard in (2, 5):
        (folder / ".shards" / f"{shard:05d}.json").unlink()
        (folder / "scores" / f"scores-{shard:05d}.parquet").unlink()
    assert re.search(r"score +submitted.* 2 tasks", site.must(*SMOKE))
    site.must("cancel", *SMOKE, "--stage", "select")
    site.settled()
    after = {p.name: p.stat().st_mtime_ns for p in (folder / "scores").glob("*.parquet")}
    assert {n for n in after if after[n] != before[n]} == {"scores-00002.parquet", "scores-00005.parquet"}
    assert site.manifest("score")["digest"] == finished.manifest("score")["digest"]


def test_logs_are_found_by_stage_rank_and_shard(finished: Site) -> None:
    assert "step " in finished.must("logs", *SMOKE, "--stage", "train", "--lines", "0")
    assert "_log.out" in finished.must("logs", *SMOKE, "--stage", "score", "--shard", "3", "--path")
    unknown = finished.run("logs", *SMOKE, "--stage", "score", "--shard", "99")
    assert unknown.returncode == 2 and "no trace of shard 99" in unknown.stderr
