"""A finished run of which a part is made again under a fault, and what must be true of it afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow.parquet as pq

from cathpc.pipeline import STAGES
from tests.slurm.conftest import SMOKE
from tests.slurm.site import DEVCLUSTER, USER, Site, copy_store

FAST = (*SMOKE, "cluster.health_check=false")
SHARDED = {"score", "cards"}


def without(finished: Site, site: Site, *stages: str) -> None:
    """Let `site` begin with all that `finished` made but the folders of `stages`.

    What stands on these is fresh again once the same rows are there: its jobs run, find that, and end in a second.
    """
    copy_store(finished.store, site, *(s.name for s in STAGES if s.name not in stages))


def submitted(site: Site, states: str = "all") -> dict[str, set[str]]:
    """'<stage>.<kind>' -> ids of the jobs of this home with this part in the stage, those that ended lately too."""
    text = site.cluster.slurm("squeue", "--noheader", f"--states={states}", f"--user={USER}", "--format=%F|%j|%Z")
    found: dict[str, set[str]] = {}
    for line in text.splitlines():
        job, name, folder = line.split("|")
        if folder == str(site.folder):
            words = name.split(".")  # cathpc.<stage>.<fingerprint>.<nonce>.<kind>
            found.setdefault(".".join([words[1], *words[4:]]), set()).add(job)
    return found


def once_each(site: Site, *stages: str, states: str = "all") -> dict[str, str]:
    """One job for each part of each of `stages` and no other job; returns 'stage.kind' -> id."""
    found = submitted(site, states)
    kinds = {s: ("w0.0", "f") if s in SHARDED else ("s0",) for s in stages}
    assert found.keys() == {f"{s}.{k}" for s in stages for k in kinds[s]}, found
    assert all(len(ids) == 1 for ids in found.values()), found
    return {name: ids.pop() for name, ids in found.items()}


def downstream(stage: str) -> list[str]:
    """The stage and all that stands on it, in order."""
    found = [stage]
    for other in STAGES:
        if set(other.inputs) & set(found):
            found.append(other.name)
    return found


def same_rows(finished: Site, site: Site, stage: str = "score") -> None:
    """The rows of all shards are those of the undisturbed run, each shard is marked once, and nothing is left over."""
    mine, theirs = site.stage(stage), finished.stage(stage)
    tables = sorted(p.relative_to(theirs) for p in theirs.rglob("*.parquet"))
    assert tables and tables == sorted(p.relative_to(mine) for p in mine.rglob("*.parquet"))
    for table in tables:
        assert pq.read_table(mine / table) == pq.read_table(theirs / table), table
    assert site.manifest(stage)["digest"] == finished.manifest(stage)["digest"]
    marks = sorted(p.name for p in (mine / ".shards").glob("*.json"))
    assert marks == sorted(p.name for p in (theirs / ".shards").glob("*.json"))


def all_well(finished: Site, site: Site, *stages: str) -> None:
    """All jobs of `stages` ended well, the queue is empty, and the whole run is as the undisturbed one."""
    assert not site.queue()
    states = site.states()
    assert {s: states.get(s) for s in stages} == {s: {"COMPLETED"} for s in stages}
    same_rows(finished, site)
    for stage in STAGES:
        assert site.manifest(stage.name)["fingerprint"] == finished.manifest(stage.name)["fingerprint"]
    assert "everything is up to date" in site.must(*FAST)


def attempts(site: Site, stage: str = "score") -> list[dict[str, object]]:
    """The attempts that ended badly."""
    return [json.loads(p.read_text()) for p in site.store.glob(f"{stage}/*/.jobs/attempts/*.json")]


@contextmanager
def reserved(site: Site) -> Iterator[None]:
    """All nodes are reserved for root for the length of a block: what is submitted waits."""
    words = ("starttime=now", "duration=3600", "users=root", "nodes=ALL", "flags=ignore_jobs")
    site.cluster.slurm("scontrol", "create", "reservation", "reservationname=test", *words)
    try:
        yield
    finally:
        site.cluster.slurm("scontrol", "delete", "reservation=test")


@contextmanager
def no_controller(site: Site) -> Iterator[None]:
    """slurmctld is down for the length of a block."""
    site.cluster.must("stop", "slurmctld")
    try:
        yield
    finally:
        site.cluster.must("start", "slurmctld")


def shell(site: Site, *words: str, **environment: str) -> str:
    """What any command of the ordinary user prints."""
    inner = ["env", *(f"{k}={v}" for k, v in {"HOME": str(site.folder), **environment}.items()), *words]
    command = [sys.executable, str(DEVCLUSTER), "shell", "--folder", str(site.cluster.folder), "--", *inner]
    done = subprocess.run(command, cwd=site.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout
