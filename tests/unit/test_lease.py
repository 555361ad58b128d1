"""Leases: one owner at a time, a takeover from the dead, and no commit by who was outranked."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cathpc import lease
from cathpc.errors import FencedError


def write(folder: Path, number: int, **changes: object) -> Path:
    path = folder / f"claim-{number:06d}.json"
    path.write_text(json.dumps({**lease.owner(), **changes}))
    return path


def test_a_lease_is_held_once_and_freed(tmp_path: Path) -> None:
    with lease.held(tmp_path) as first:
        assert first
        assert lease.holder(tmp_path) is not None
        with lease.held(tmp_path) as second:
            assert second is None
        assert lease.holder(tmp_path) is not None, "the one who did not get it must not free it"
    assert lease.holder(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_lease_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from cathpc import lease\n"
        f"with lease.held(Path({str(tmp_path)!r})) as got:\n    print(bool(got), flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline().strip() == "True"
    assert lease.take(tmp_path) is None
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert lease.holder(tmp_path) is None
    with lease.held(tmp_path) as got:
        assert got and got.number == 2, "the next number outranks the dead owner's"


def test_a_lease_of_another_machine_is_never_stolen(tmp_path: Path) -> None:
    path = write(tmp_path, 1, host="some-other-node")
    assert lease.take(tmp_path) is None
    assert path.exists()


@pytest.mark.parametrize(("known", "stolen"), [(True, False), (None, False), (False, True)])
def test_a_lease_of_a_job_elsewhere_is_taken_only_when_the_job_is_known_to_be_gone(
    tmp_path: Path, known: bool | None, stolen: bool
) -> None:
    write(tmp_path, 1, host="some-other-node", job="123", slurm=True)
    got = lease.take(tmp_path, job_state=lambda job: known)
    assert bool(got) is stolen
    if got:
        lease.release(got)


def test_a_later_attempt_of_a_job_outranks_an_earlier_one_that_still_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    old = lease.take(tmp_path)
    assert old
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    new = lease.take(tmp_path)
    assert new, "Slurm started the job again: the old attempt's processes do not count"
    with pytest.raises(FencedError, match="job 77"):
        old.check()
    new.check()
    lease.release(old)
    assert lease.holder(tmp_path) is not None, "a fenced owner frees nothing"
    lease.release(new)


def test_a_lower_attempt_that_wakes_up_late_does_not_get_the_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    new = lease.take(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert lease.take(tmp_path) is None
    assert new
    lease.release(new)


def test_fence_stops_a_commit_in_a_folder_that_has_another_owner(tmp_path: Path) -> None:
    mine = lease.take(tmp_path)
    assert mine
    lease.fence(tmp_path / "checkpoints")
    write(tmp_path, mine.number + 1, pid=1)
    with pytest.raises(FencedError, match="writes nothing more"):
        lease.fence(tmp_path / "checkpoints")
    lease.fence(tmp_path.parent)
    lease.release(mine)


def test_a_lease_whose_process_id_was_given_to_another_process_is_dead(tmp_path: Path) -> None:
    write(tmp_path, 1, ticks=(lease.owner()["ticks"] or 1) - 1)
    assert lease.holder(tmp_path) is None


def test_of_many_that_race_for_a_dead_owners_lease_one_gets_it(tmp_path: Path) -> None:
    write(tmp_path, 4, ticks=1)
    got: list[lease.Lease] = []
    start = threading.Barrier(8)

    def race() -> None:
        start.wait()
        found = lease.take(tmp_path)
        if found:
            got.append(found)

    threads = [threading.Thread(target=race) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1
    lease.release(got[0])
