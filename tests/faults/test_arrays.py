"""Faults 35 to 38: arrays whose tasks die, meet in a shard, are relaunched or are very many; shards that fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.slurm.hooks import let, plant, reached
from tests.slurm.many import CLUSTER, KILL_SOME, MANY, on_one_machine, prepare
from tests.slurm.rerun import (
    FAST,
    all_well,
    attempts,
    downstream,
    no_controller,
    once_each,
    reserved,
    same_rows,
    shell,
    submitted,
    without,
)
from tests.slurm.site import Site, copy_store, wait

pytestmark = [pytest.mark.slurm, pytest.mark.faults]

AFTER = downstream("score")


def test_fault_35_tasks_killed_before_in_and_after_a_write_and_in_that_of_a_mark(finished: Site, site: Site) -> None:
    without(finished, site, "score")
    code = """
def in_the_middle(file):
    file.write(b"{")
    file.flush()
    die()

@after_import("cathpc.shards")
def patch(module):
    inner = module.whole
    @module.contextmanager
    def whole(path, **options):
        if path.name == "scores-00000.parquet" and once("before"):
            die()
        with inner(path, **options) as file:
            if path.name == "scores-00001.parquet" and once("in"):
                in_the_middle(file)
            if path.name == "00003.json" and once("mark"):
                in_the_middle(file)
            yield file
        if path.name == "scores-00002.parquet" and once("after"):
            die()
    module.whole = whole
"""
    site.must(*FAST, **plant(site, code))
    site.settled()
    once_each(site, *AFTER)
    assert sorted((a["index"], a["again"]) for a in attempts(site)) == [(n, True) for n in range(4)]
    all_well(finished, site, *AFTER)


def test_fault_36_two_arrays_that_do_the_same_shards_at_once_leave_each_shard_once_and_whole(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    code = """
@after_import("cathpc.shards")
def patch(module):
    inner = module.mark
    def mark(out, shard, **facts):
        if out.parent.name == "score" and shard < 4:  # the first shard of each task: both tasks have written it
            mine, other = ("first", "second") if once(f"{shard}.came") else ("second", "first")
            say(f"{shard}.{mine}")
            until(f"{shard}.{other}")
        inner(out, shard, **facts)
    module.mark = mark
"""
    with reserved(site):
        site.must(*FAST, **plant(site, code))
        array = site.record("score")["jobs"][0]["id"]
        script = site.folder / "again.sh"
        script.write_text(site.cluster.slurm("scontrol", "write", "batch_script", array, "-"))
        script.chmod(0o755)
        assert shell(site, "sbatch", str(script), **plant(site, code)).startswith("Submitted batch job")
    site.settled()
    assert len(submitted(site)["score.w0.0"]) == 2
    for job in submitted(site)["score.w0.0"]:
        assert site.history(job) == ["COMPLETED"] * 4
    assert {p.name for p in (site.folder / "hooks").glob("*.second")} == {f"{n}.second" for n in range(4)}
    all_well(finished, site, *AFTER)


HOLD_SHARD_3 = """
@after_import("cathpc.shards")
def patch(module):
    inner = module.mark
    def mark(out, shard, **facts):
        if out.parent.name == "score" and shard == 3 and once("held"):
            say("at-shard-3")
            until("go")
        inner(out, shard, **facts)
    module.mark = mark
"""


def marks(site: Site) -> dict[str, int]:
    """Mark of a done shard -> when it was written."""
    return {p.name: p.stat().st_mtime_ns for p in (site.stage("score") / ".shards").glob("0000?.json")}


@pytest.mark.parametrize("width", [4, 7])
def test_fault_37_the_same_command_keeps_an_array_that_runs(finished: Site, site: Site, width: int) -> None:
    without(finished, site, "score")
    hooks = plant(site, HOLD_SHARD_3)
    site.must(*FAST, **hooks)
    reached(site, "at-shard-3")
    wait(lambda: len(marks(site)) == 6, what="the shards of the other tasks")
    before = submitted(site)
    assert f"0 stages submitted, {len(AFTER)} in the queue already" in site.must(*FAST, f"cluster.arrays.score={width}")
    assert submitted(site) == before
    early = marks(site)
    let(site, "go")
    site.settled()
    once_each(site, *AFTER)
    assert not attempts(site)
    assert early.items() <= marks(site).items(), "a shard that was done is not done again"
    all_well(finished, site, *AFTER)


def test_fault_37_a_relaunch_after_a_cancelled_array_does_only_the_rest_in_another_width(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    site.must(*FAST, **plant(site, HOLD_SHARD_3))
    reached(site, "at-shard-3")
    wait(lambda: len(marks(site)) == 6, what="the shards of the other tasks")
    early = marks(site)
    array = site.record("score")["jobs"][0]["id"]
    site.cluster.slurm("scancel", array)
    wait(lambda: not site.queue(), 90, what="an empty queue: no cancelled task comes back")
    assert "CANCELLED" in site.history(array) and "REQUEUED" not in site.history(array)
    assert re.search(r"score +submitted.* 2 tasks", site.must(*FAST))
    assert site.record("score")["shards"] == [3, 7]
    site.settled()
    assert early.items() <= marks(site).items()
    all_well(finished, site, *AFTER)


def test_fault_37_a_relaunch_where_only_the_last_job_is_gone_ends_the_old_array_first(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    site.must(*FAST, **plant(site, HOLD_SHARD_3))
    reached(site, "at-shard-3")
    wait(lambda: len(marks(site)) == 6, what="the shards of the other tasks")
    old = site.record("score")["jobs"]
    site.cluster.slurm("scancel", old[1]["id"])
    wait(lambda: old[1]["id"] not in site.queue(), what="the end of the last job")
    site.must(*FAST)
    site.settled()
    assert "CANCELLED" in site.history(old[0]["id"])
    assert site.record("score")["shards"] == [3, 7]
    all_well(finished, site, *AFTER)


def torn(site: Site, *shards: int) -> dict[Path, bytes]:
    """Cut the record shards short; returns what they were."""
    paths = [site.stage("pull") / "records" / f"records-{n:05d}.parquet" for n in shards]
    whole = {path: path.read_bytes() for path in paths}
    for path, content in whole.items():
        path.write_bytes(content[: len(content) // 2])
    return whole


@pytest.mark.parametrize("act", ["run", "retry"])
def test_a_shard_that_fails_is_set_aside_named_and_done_again_alone(finished: Site, site: Site, act: str) -> None:
    without(finished, site, "score")
    whole = torn(site, 3)
    site.must(*FAST)
    site.settled()
    assert sorted(marks(site)) == [f"{n:05d}.json" for n in range(8) if n != 3], "its siblings are done"
    array, last = (job["id"] for job in site.record("score")["jobs"])
    assert set(site.history(array)) == {"COMPLETED"} and site.history(last) == ["FAILED"]
    for stage in AFTER[1:]:
        assert set(site.history(site.job(stage))) == {"CANCELLED"}, "Slurm ends what can never begin"
    states = json.loads(site.must("status", *FAST, "--json"))
    assert states["score"]["state"] == "failed" and states["score"]["failed_shards"] == [3]
    assert states["score"]["shards"] == {"done": 7, "failed": 1, "running": 0}
    assert "shard 3: DataError" in states["score"]["message"]
    assert "records-00003.parquet is no readable Parquet file" in states["score"]["message"]
    assert "shards 3 failed: logs --stage score --shard 3" in site.must("status", *FAST)
    log = site.must("logs", *FAST, "--stage", "score", "--shard", "3")
    assert "shard 3 failed" in log and "records-00003.parquet is no readable Parquet file" in log
    early = marks(site)
    for path, content in whole.items():
        path.write_bytes(content)
    site.own()
    again = site.must(*([act] if act == "retry" else []), *FAST)
    assert re.search(r"score +submitted.* 1 tasks? ", again)
    site.settled()
    assert site.record("score")["shards"] == [3]
    assert early.items() <= marks(site).items()
    all_well(finished, site, *AFTER)


def test_a_record_that_breaks_scoring_is_marked_broken_and_cancels_nothing(finished: Site, site: Site) -> None:
    without(finished, site, "score")
    first = sorted((finished.stage("pull") / "records").glob("*.parquet"))[5]
    bad = pq.read_table(first)["id"].to_pylist()[7]
    code = f"""
@after_import("cathpc.data.likelihood")
def patch(module):
    inner = module._tokenise
    def tokenise(record, models):
        if record.id == {bad!r}:
            raise ZeroDivisionError("planted")
        return inner(record, models)
    module._tokenise = tokenise
"""
    site.must(*FAST, **plant(site, code))
    site.settled(600)
    assert site.states() == {stage: {"COMPLETED"} for stage in AFTER}
    mine, theirs = (
        pq.read_table(sorted((s.stage("score") / "scores").glob("*.parquet"))).to_pylist() for s in (site, finished)
    )
    assert [row["id"] for row in mine] == [row["id"] for row in theirs], "rows in = rows out"
    assert {row["id"] for row in mine if row["status"] == "broken"} == {bad}
    others = [[row for row in rows if row["id"] != bad and row["id"]] for rows in (mine, theirs)]
    assert [(r["id"], r["status"]) for r in others[0]] == [(r["id"], r["status"]) for r in others[1]]
    mark = json.loads((site.stage("score") / ".shards" / "00005.json").read_text())
    assert mark["broken"] == {bad: "ZeroDivisionError: planted"}
    assert "1 broken" in site.manifest("score")["summary"]["line"]
    verdicts = pq.read_table(site.folder.glob("store/select/*/verdicts.parquet").__next__()).to_pylist()
    assert [v for v in verdicts if v["id"] == bad and not v["kept"]]


def test_cancel_ends_the_jobs_of_one_run_alone_and_the_same_command_goes_on(finished: Site, site: Site) -> None:
    without(finished, site, "score")
    other = (*FAST, "train.lr=2e-3")
    site.must(*FAST, **plant(site, HOLD_SHARD_3))
    reached(site, "at-shard-3")
    site.must(*other)
    left = site.must("cancel", *other)
    assert "score: left alone" in left and "--shared cancels it too" in left
    assert set(re.findall(r"^(\w+): cancelled", left, re.M)) == set(downstream("train"))
    kept = site.must("status", *FAST)
    assert "running" in kept and "cancelled" not in kept.lower()
    site.must(*other)
    spared = site.must("cancel", *FAST)
    assert "score: left alone, smoke-" in spared and "waits for it" in spared
    assert set(re.findall(r"^(\w+): cancelled", spared, re.M)) == set(downstream("train"))
    assert len(site.queue()) >= len(AFTER), "all jobs that the other run needs"
    ended = site.must("cancel", *FAST, "--shared")  # the other run's jobs, which wait for these, are ended by Slurm
    assert set(re.findall(r"^(\w+): cancelled", ended, re.M)) == set(AFTER) - set(downstream("train"))
    wait(lambda: not site.queue(), 90, what="an empty queue: the task that ran does not come back")
    assert "CANCELLED" in site.history(site.record("score")["jobs"][0]["id"])
    assert "no job of it is in the queue" in site.must("cancel", *FAST)
    early = marks(site)
    site.must(*FAST)
    site.settled()
    assert early.items() <= marks(site).items()
    same_rows(finished, site)
    run = json.loads(next(iter((site.folder / "runs").glob("*/config.json"))).read_text())
    assert run["overrides"] and site.states()["score"] == {"COMPLETED"}


@pytest.fixture
def small_arrays(site: Site) -> Iterator[int]:
    """Slurm takes arrays of 40 tasks at most, so that a few more have to be split as 1,500 are by its default 1,001."""

    def most(tasks: int) -> None:
        with no_controller(site):
            site.cluster.act("set", f"MaxArraySize={tasks + 1}")  # read at the start of the controller only
        assert f"MaxArraySize            = {tasks + 1}" in site.cluster.slurm("scontrol", "show", "config")

    most(40)
    yield 40
    most(1000)


def test_fault_38_shards_on_16_tasks_and_an_array_that_has_to_be_split_with_tasks_killed_at_random(
    site: Site, homes: Callable[[], Site], small_arrays: int
) -> None:
    records = 100
    alone = homes()
    for home in (alone, site):
        prepare(home, records)
    on_one_machine(alone)
    copy_store(alone.store, site, "pull", "reference", "pool", "refusal")
    words = (*MANY, *CLUSTER, "cluster.arrays.score=16", f"cluster.arrays.cards={records}")
    site.must(*words, **plant(site, KILL_SOME), KILL_SHARE="0.1")
    site.settled(540)
    widths = {s: [j["width"] for j in site.record(s)["jobs"] if j["kind"] == "work"] for s in ("score", "cards")}
    assert widths == {"score": [16], "cards": [40, 40, 20]}
    assert all(len(ids) == 1 for ids in submitted(site).values())
    assert attempts(site, "score") and attempts(site, "cards"), "tasks were killed"
    for stage in ("score", "cards"):
        assert site.states()[stage] == {"COMPLETED"}
        assert len(list((site.stage(stage) / ".shards").glob("[0-9]*.json"))) == records
        same_rows(alone, site, stage)
    assert site.states()["report"] == {"COMPLETED"}, "what depends on them ran"
    assert "everything is up to date" in site.must(*words)
