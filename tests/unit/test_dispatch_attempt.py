"""What becomes of a job when an attempt ends: done, failed for good, or back in the queue."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cathpc import lease
from cathpc.dispatch import attempt, jobs, work
from cathpc.dispatch.job import PORTS, ended, port


def error(code: int, message: str = "why", **more: Any) -> dict[str, Any]:
    return {"code": code, "message": message, "time": 1.0, "rank": 0, **more}


@pytest.mark.parametrize("code", [1, 2, 3, 65, 74, 78])
def test_these_codes_are_final_where_a_rank_explained_them(code: int) -> None:
    assert not attempt.judge(code, [error(code)], near_limit=False).again


def test_a_code_without_a_word_may_be_that_of_srun_or_of_a_python_that_could_not_import() -> None:
    for code in (1, 2, 3):
        verdict = attempt.judge(code, [], near_limit=False)
        assert verdict.again and verdict.counts
    for code in (0, 65, 74, 78):
        assert not attempt.judge(code, [], near_limit=False).again


def test_a_crash_counts_though_its_peers_say_that_they_were_told_to_stop() -> None:
    verdict = attempt.judge(139, [error(75, "stopped by SIGTERM")], near_limit=False)
    assert verdict.again and verdict.counts
    assert verdict.why == "was killed by SIGSEGV (stopped by SIGTERM)"


@pytest.mark.parametrize("code", [75, 85, 134, 137, 139, 143, 7])
def test_every_other_code_brings_the_job_back(code: int) -> None:
    assert attempt.judge(code, [], near_limit=False).again


def test_what_a_rank_explained_weighs_more_than_the_signal_that_killed_its_peers() -> None:
    verdict = attempt.judge(143, [error(65, "no checkpoint is sound")], near_limit=False)
    assert (verdict.code, verdict.again, verdict.why) == (65, False, "no checkpoint is sound")
    assert attempt.judge(143, [error(75), error(65)], near_limit=False).code == 65


def test_a_stop_that_was_asked_for_counts_as_no_crash_but_a_limit_may() -> None:
    assert not attempt.judge(75, [error(75, "stopped by USR2")], near_limit=False).counts
    assert attempt.judge(75, [error(75, "stopped by USR2")], near_limit=True).counts


def test_a_killed_rank_counts_and_is_named() -> None:
    verdict = attempt.judge(137, [], near_limit=False)
    assert verdict.counts and "SIGKILL" in verdict.why


def test_ranks_that_lost_another_come_back_and_count_unless_that_one_was_told_to_stop() -> None:
    verdict = attempt.judge(137, [error(85, "lost the other ranks")], near_limit=False)
    assert (verdict.again, verdict.counts, verdict.why) == (True, True, "was killed by SIGKILL (lost the other ranks)")
    assert not attempt.judge(137, [error(85), error(75)], near_limit=False).counts
    assert not attempt.judge(137, [error(85), error(1)], near_limit=False).again


def test_only_crashes_in_a_row_without_progress_count() -> None:
    rows = [
        {"index": 0, "mark": 2, "counts": True},
        {"index": 0, "mark": 4, "counts": True},
        {"index": 0, "mark": 4, "counts": False},
        {"index": 1007, "mark": 4, "counts": True},
        {"index": 0, "mark": 4, "counts": True},
    ]
    assert attempt.crashes(rows, 0, 4) == 2
    assert attempt.crashes(rows, 0, 6) == 0
    assert attempt.crashes(rows, 1007, 4) == 1
    assert attempt.crashes(rows, 7, 4) == 0, "task 7 of another array of the stage"


def test_the_mark_is_the_newest_checkpoint_and_the_shards_of_one_task(tmp_path: Path) -> None:
    assert jobs.mark(tmp_path) == 0
    for step in (2, 10):
        (tmp_path / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step-{step:06d}" / "manifest.json").write_text("{}")
    (tmp_path / "checkpoints" / "step-000012").mkdir()
    assert jobs.mark(tmp_path) == 10
    other = tmp_path / "score"
    (other / ".shards").mkdir(parents=True)
    for shard in (0, 1, 4, 5):
        (other / ".shards" / f"{shard:05d}.json").write_text("{}")
    assert jobs.mark(other, [4, 8]) == 1
    assert jobs.mark(other, index=1, width=4) == 2


class Scontrol:
    """Stands in for scontrol beside the tests against a real one: a list of answers, and what was asked."""

    def __init__(self, fields: dict[str, str], *answers: str | None) -> None:
        self.fields, self.answers, self.asked = fields, list(answers), []

    def __call__(self, *words: str) -> str | None:
        self.asked.append(words)
        return self.answers.pop(0) if self.answers else None


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(attempt, "LAST_WORDS_S", 0.0)
    monkeypatch.setattr(attempt.time, "sleep", lambda seconds: None)
    path = tmp_path / "spec.json"
    facts = {
        "folder": str(tmp_path),
        "kind": "stage",
        "timeout_min": 60,
        "lead_s": 60,
        "first": 0,
        "width": 1,
        "shards": None,
        "max_crashes": 3,
        "requeue": "scontrol",
        "requeue_wait_s": 5,
        "logs": "/logs",
    }
    path.write_text(json.dumps(facts))
    return path


def play(monkeypatch: pytest.MonkeyPatch, slurm: Scontrol) -> Scontrol:
    monkeypatch.setattr(attempt, "_scontrol", slurm)
    monkeypatch.setattr(attempt, "_fields", lambda job: slurm.fields)
    return slurm


def test_the_third_crash_without_progress_fails_for_good_and_says_so(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = play(monkeypatch, Scontrol({"JobState": "RUNNING"}))
    codes = []
    for restart in range(3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        slurm.fields["Restarts"] = str(restart)
        codes.append(attempt.main([str(spec), "137", "10"]))
    assert codes == [85, 85, 1]
    assert slurm.asked == [("requeue", "12"), ("requeue", "12")]
    assert "3 attempts in a row brought no new checkpoint" in jobs.attempts(spec.parent)[-1]["why"]


def test_crashes_of_an_earlier_submission_are_forgotten(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, Scontrol({"JobState": "RUNNING"}))
    for restart in range(2):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(restart))
        attempt.main([str(spec), "137", "10"])
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    jobs.write(spec.parent, jobs.Record("train", "run", jobs=[jobs.Submitted("a", "stage", "13")]))
    assert attempt.main([str(spec), "137", "10"]) == 85


def test_a_controller_that_does_not_answer_is_asked_again_and_then_the_site_may_requeue(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = play(monkeypatch, Scontrol({}, "Unable to contact slurm controller", None))
    assert attempt.requeue("12", [], wait_s=60) == 85
    assert slurm.asked == [("requeue", "12")] * 2
    down = play(monkeypatch, Scontrol({}, *["Unable to contact slurm controller"] * 9))
    assert attempt.requeue("12", [], wait_s=-1) == 85
    assert len(down.asked) == 1


def test_a_cancelled_job_does_not_come_back(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = play(monkeypatch, Scontrol({"JobState": "COMPLETING", "Reason": "None", "Restarts": "0"}))
    assert attempt.main([str(spec), "143", "10"]) == 1
    assert slurm.asked == []


def test_a_job_that_slurm_has_put_back_itself_is_not_put_back_again(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = play(monkeypatch, Scontrol({"JobState": "COMPLETING", "Reason": "None", "Restarts": "1"}))
    assert attempt.main([str(spec), "143", "10"]) == 85
    assert slurm.asked == []


def test_the_end_of_an_attempt_that_a_later_one_replaced_is_not_written_down(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = play(monkeypatch, Scontrol({"JobState": "RUNNING", "Restarts": "1"}))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with lease.held(spec.parent) as later:
        assert later
        monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
        assert attempt.main([str(spec), "137", "10"]) == 3
        assert (slurm.asked, jobs.attempts(spec.parent)) == ([], [])
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        assert attempt.main([str(spec), "137", "10"]) == 85


def test_a_bad_node_is_added_to_those_that_the_user_excluded(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = play(monkeypatch, Scontrol({"JobState": "RUNNING", "ExcNodeList": "gpu[5-6]"}))
    attempt.requeue("12", ["gpu1"], wait_s=5)
    assert slurm.asked[-1] == ("update", "JobId=12", "ExcNodeList=gpu[5-6],gpu1")


def test_an_attempt_that_committed_its_stage_is_done_whatever_its_exit_code(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play(monkeypatch, Scontrol({"JobState": "RUNNING"}))
    manifest = spec.parent / "manifest.json"
    manifest.write_text(json.dumps({"attempt": ["12", 0]}))
    assert attempt.main([str(spec), "134", "10"]) == 0
    manifest.write_text(json.dumps({"attempt": ["11", 0]}))
    assert attempt.main([str(spec), "134", "10"]) == 85, "the manifest of another job, on other inputs perhaps"


def test_a_segment_of_a_chain_leaves_going_on_to_the_next_one(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec.write_text(json.dumps({**json.loads(spec.read_text()), "requeue": "chain"}))
    assert attempt.main([str(spec), "137", "10"]) == 137
    jobs.write(spec.parent, jobs.Record("train", "run", jobs=[jobs.Submitted("a", "stage", i) for i in ("12", "13")]))
    assert ended(spec.parent, 0) is None
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    assert attempt.main([str(spec), "65", "10"]) == 65
    assert ended(spec.parent, 0) == 65
    assert ended(spec.parent, 1000) is None, "another task of the stage"


def test_a_disk_that_refuses_the_bookkeeping_hinders_no_requeue(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = play(monkeypatch, Scontrol({"JobState": "RUNNING"}))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "add_attempt", full)
    assert attempt.main([str(spec), "75", "10"]) == 85
    assert slurm.asked == [("requeue", "12")]


def test_a_bad_node_is_kept_where_no_other_is_left(spec: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = play(monkeypatch, Scontrol({"JobState": "RUNNING"}))
    monkeypatch.setattr(attempt, "_spare", lambda job, nodes: False)
    attempt.requeue("12", ["gpu1"], wait_s=5)
    assert slurm.asked == [("requeue", "12")]


def test_two_jobs_and_two_attempts_meet_at_different_ports() -> None:
    ports = {port(str(job), restart) for job in range(1000, 1200) for restart in range(5)}
    assert len(ports) == 1000 and ports <= set(PORTS)


def test_a_torn_record_is_none_and_a_torn_attempt_is_passed_over(tmp_path: Path) -> None:
    assert jobs.read(tmp_path) is None
    jobs.write(tmp_path, jobs.Record("train", "run"))
    (jobs.folder(tmp_path) / jobs.RECORD).write_text("{")
    assert jobs.read(tmp_path) is None
    rows = [{"job": "1", "restart": n, "time": 100.0 - n} for n in range(12)]  # each on a node whose clock is behind
    for row in reversed(rows):
        jobs.add_attempt(tmp_path, row)
    (jobs.folder(tmp_path) / jobs.ATTEMPTS / "1.12.json").write_text('{"job": "1", "ag')
    assert jobs.attempts(tmp_path) == rows


def test_a_program_behind_a_closed_folder_of_path_is_no_folder_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    monkeypatch.setenv("PATH", f"{tmp_path}:{closed}:{tmp_path / 'absent'}")
    code, message = work.explain(PermissionError(errno.EACCES, "Permission denied", "numactl"), tmp_path)
    assert code == 2 and message.startswith("numactl cannot be looked for along PATH") and "paths.store" not in message
    if os.getuid():  # nothing is closed to root
        assert message.endswith(f"closed to you: {closed}")
    _, message = work.explain(PermissionError(errno.EACCES, "Permission denied", "store/x"), tmp_path)
    assert message.startswith("no permission for store/x: ") and "paths.store=" in message
