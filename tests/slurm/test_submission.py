"""Commands and tasks that die or meet a dead controller: the same command goes on, and no job is there twice."""

from __future__ import annotations

import re

import pytest

from cathpc.errors import EXIT_AGAIN
from cathpc.pipeline import STAGES
from tests.e2e.harness import complaint
from tests.slurm.hooks import plant
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
from tests.slurm.site import Site

pytestmark = pytest.mark.slurm

DIE_AFTER_SBATCH = """
@after_import("cathpc.dispatch.script")
def patch(module):
    inner = module.send
    def send(request, cluster):
        found = inner(request, cluster)
        if request.name.endswith(os.environ["DIE_AFTER"]):
            die()
        return found
    module.send = send
"""


def test_fault_15_slurmctld_down_at_submit_is_one_clear_error_and_the_same_command_goes_on_later(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    with no_controller(site):
        refused = site.run(*FAST)
    assert refused.returncode == EXIT_AGAIN
    assert re.search(r"squeue: .*Unable to contact.*same command goes on", complaint(refused))
    assert not submitted(site) and not list(site.store.glob("*/*/.jobs/job.json"))
    with reserved(site):
        site.must(*FAST)
        once_each(site, *downstream("score"))
        assert site.must("cancel", *FAST).count("cancelled") == len(downstream("score"))


def test_fault_16_a_command_killed_after_sbatch_took_the_job_finds_it_again(finished: Site, site: Site) -> None:
    without(finished, site, "score")
    with reserved(site):
        killed = site.run(*FAST, **plant(site, DIE_AFTER_SBATCH), DIE_AFTER="w0.0")
        assert killed.returncode == -9
        (lost,) = submitted(site)["score.w0.0"]
        assert site.record("score")["jobs"][0]["id"] == "", "its id was not written down"
        assert f"{lost}, " in site.must(*FAST)
        assert once_each(site, *downstream("score"))["score.w0.0"] == lost
        assert site.must("cancel", *FAST).count("cancelled") == len(downstream("score"))


def test_fault_17_the_same_command_twice_at_once_makes_one_set_of_jobs_and_both_print_it(site: Site) -> None:
    with reserved(site):
        both = [site.start(*FAST) for _ in range(2)]
        texts = [process.communicate(timeout=120)[0] for process in both]
        assert [process.returncode for process in both] == [0, 0], texts
        ids = once_each(site, *(s.name for s in STAGES))
        tables = [sorted(re.findall(r"^(\w+) +(?:submitted|in the queue) +(\d+(?:, \d+)*) ", t, re.M)) for t in texts]
        assert tables[0] == tables[1] and len(tables[0]) == len(STAGES)
        assert {i for _, some in tables[0] for i in some.split(", ")} == set(ids.values())
        assert sorted(f"{len(STAGES)} in the queue already" in t for t in texts) == [False, True]
        assert site.must("cancel", *FAST).count("cancelled") == len(STAGES)


def test_fault_18_a_command_killed_between_two_jobs_of_a_stage_is_completed_by_the_next(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    code = """
@after_import("cathpc.dispatch.script")
def patch(module):
    inner = module.send
    def send(request, cluster):
        if request.name.endswith(".f") and once("died"):
            die()
        return inner(request, cluster)
    module.send = send
"""
    killed = site.run(*FAST, **plant(site, code))
    assert killed.returncode == -9
    assert submitted(site).keys() == {"score.w0.0"}
    site.must(*FAST)
    site.settled()
    assert all(len(ids) == 1 for ids in submitted(site).values()), submitted(site)
    all_well(finished, site, *downstream("score"))


def test_fault_35_a_task_killed_in_the_write_of_a_shard_comes_back_and_does_it_whole(
    finished: Site, site: Site
) -> None:
    without(finished, site, "score")
    code = """
@after_import("cathpc.shards")
def patch(module):
    inner = module.whole
    @module.contextmanager
    def whole(path, **options):
        with inner(path, **options) as file:
            if path.name == "scores-00002.parquet" and once("died"):
                file.write(b"PAR1 torn")
                file.flush()
                die()
            yield file
    module.whole = whole
"""
    site.must(*FAST, **plant(site, code))
    site.settled()
    once_each(site, *downstream("score"))
    assert [(a["index"], a["again"], a["why"]) for a in attempts(site)] == [(2, True, "was killed by SIGKILL")]
    all_well(finished, site, *downstream("score"))
