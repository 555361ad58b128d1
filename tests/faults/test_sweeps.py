"""Sweeps of training and of filtration on a real Slurm: what the runs share is submitted and run once."""

from __future__ import annotations

import json
import re
import time
from collections import Counter

import pytest

from tests.slurm.site import Site

pytestmark = [pytest.mark.slurm, pytest.mark.faults]

SWEPT = ("cluster=devcluster", "train.nodes=2", "train.global_batch=4", "train.epochs=1")
DATA = ("pull", "base", "reference", "pool", "refusal", "score")


def ran(site: Site) -> Counter[str]:
    """Stage -> how many submissions of it accounting knows, all of them COMPLETED."""
    names: dict[str, set[str]] = {}
    for path in site.store.glob("*/*/.jobs/job.json"):
        record = json.loads(path.read_text())
        ids = ",".join(j["id"] for j in record["jobs"])
        text = site.cluster.slurm("sacct", "-X", "-n", "-P", "-j", ids, "--format=JobName%80,State")
        for line in text.splitlines():
            name, state = line.split("|")
            assert state == "COMPLETED", line
            names.setdefault(record["stage"], set()).add(".".join(name.split(".")[:4]))
    return Counter({stage: len(found) for stage, found in names.items()})


def test_a_sweep_of_training_makes_the_data_once_and_trains_three_times(site: Site) -> None:
    began = time.monotonic()
    said = site.must("-m", "+experiment=smoke", "train.lr=1e-5,2e-5,5e-5", *SWEPT)
    assert time.monotonic() - began < 30, "three submissions of at most ten seconds"
    assert [len(re.findall(rf"^{s} +submitted", said, re.M)) for s in ("score", "pack", "train")] == [1, 1, 3]
    site.settled(900)
    counts = ran(site)
    assert {counts[s] for s in (*DATA, "select", "cards", "pack")} == {1}
    assert {counts[s] for s in ("train", "export", "evaluate", "report")} == {3}
    table = site.must("compare", "+experiment=smoke")
    rates = re.findall(r"\b[125]e-05\b|\b0\.0000[125]\b", table)
    assert len(set(rates)) == 3, table
    assert table.count("finished") == 3


def test_a_sweep_of_filtration_scores_once(site: Site) -> None:
    """The tiny refusal model is untrained and gives every answer about 0.503: the grid lies around that."""
    site.must("-m", "+experiment=smoke", "select.refusal_max=0.502925,0.502935,0.6", *SWEPT)
    site.settled(1200)
    counts = ran(site)
    assert {counts[s] for s in DATA} == {1}
    assert counts["select"] == 3
    kept = set()
    for manifest in site.store.glob("select/*/manifest.json"):
        kept.add(json.loads((manifest.parent / "flow.json").read_text())["dropped"]["refusal"])
    assert len(kept) == 3, "another threshold keeps other records"
