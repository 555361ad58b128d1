"""What of the store no run needs: who needs what, what is never touched, and removal that stays inside the store."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cathpc import disk, lease, store, unneeded
from cathpc.acts import gc
from cathpc.config import compose
from cathpc.dispatch import jobs, slurm
from cathpc.errors import UserError
from cathpc.pipeline import STAGES
from cathpc.runs import Run, open_run

ROOT = Path(__file__).parents[2]
SMOKE = "+experiment=smoke"
ALL = tuple(s.name for s in STAGES)
STRAY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make_run(*overrides: str, linked: bool = True) -> tuple[Run, dict[str, store.Place]]:
    """A run all of whose stages are finished."""
    config = compose([SMOKE, *overrides])
    run, places = open_run(config, [SMOKE, *overrides]), store.places(config)
    for place in places.values():
        inputs = {name: {"fingerprint": folder.name} for name, folder in place.inputs.items()}
        make_folder(place.folder, inputs=inputs)
        if linked:
            run.link(place)
    return run, places


def make_folder(path: Path, inputs: dict[str, Any] | None = None) -> Path:
    """A finished folder of a stage with 4,000 bytes in it."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "data").write_bytes(b"x" * 4000)
    store.write_json(path / store.MANIFEST, {"fingerprint": path.name, "digest": path.name, "inputs": inputs or {}})
    return path


def stray(stage: str = "train", name: str = STRAY) -> Path:
    """A finished folder that no run knows."""
    return make_folder(Path("store").absolute() / stage / name)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    gc.options(parser)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_intermixed_args(list(words))


@pytest.fixture
def collect(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`gc --json` with more words."""

    def call(*words: str, code: int = 0) -> dict[str, Any]:
        assert gc.main(arguments(*words, "--json")) == code
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return call


def paths(entries: list[dict[str, Any]]) -> list[Path]:
    return [Path(e["path"]) for e in entries]


Collect = Callable[..., dict[str, Any]]


# --- who needs what -------------------------------------------------------------------------------------------------


def test_what_no_run_needs_is_listed_and_stays_without_delete(collect: Collect) -> None:
    _, places = make_run()
    orphan = stray()
    found = collect()
    assert paths(found["unneeded"]) == [orphan]
    assert {p.folder for p in places.values()} == set(paths(found["needed"]))
    assert found["stages"]["train"] | {"bytes": 0, "inodes": 0, "unneeded_bytes": 0, "unneeded_inodes": 0} == {
        "folders": 2,
        "needed": 1,
        "unneeded": 1,
        "bytes": 0,
        "inodes": 0,
        "unneeded_bytes": 0,
        "unneeded_inodes": 0,
    }
    assert orphan.is_dir() and found["freed"] is None


def test_delete_removes_what_was_listed_and_nothing_else(collect: Collect) -> None:
    _, places = make_run()
    orphan = stray()
    found = collect("--delete")
    assert found["removed"] == [str(orphan)] and not orphan.exists()
    assert all(p.manifest() for p in places.values())
    assert found["freed"]["bytes"] >= 4000 and found["freed"]["inodes"] == 3
    assert collect()["unneeded"] == [] and list((Path("store") / "train").glob(".gc-*")) == []


def test_a_folder_that_two_runs_share_goes_with_the_last_of_them(collect: Collect) -> None:
    one, _ = make_run()
    two, _ = make_run("train.lr=3e-5")
    shutil.rmtree(one.folder)
    assert {p.parent.name for p in paths(collect()["unneeded"])} == {"train", "export", "evaluate", "report"}
    shutil.rmtree(two.folder)
    assert len(collect()["unneeded"]) == len(ALL) + 4


def test_the_saved_config_needs_a_folder_that_the_run_has_not_linked_yet(collect: Collect) -> None:
    run, _ = make_run(linked=False)
    assert collect()["unneeded"] == []
    assert {e["by"][0] for e in collect()["needed"]} == {run.name}


def test_links_need_their_folders_where_the_saved_config_is_of_another_version(collect: Collect) -> None:
    run, _ = make_run()
    file = run.folder / "config.json"
    saved = json.loads(file.read_text())
    saved["config"]["train"]["a_key_of_old"] = 1
    file.write_text(json.dumps(saved))
    found = collect()
    assert found["unneeded"] == []
    assert len(found["unsure"]) == 1 and "a_key_of_old" in found["unsure"][0]


def test_links_into_a_store_that_was_moved_still_count(collect: Collect) -> None:
    run, _ = make_run()
    (run.folder / "config.json").unlink()
    Path("store").rename("moved")
    assert collect("--store", "moved")["unneeded"] == []


def test_what_a_needed_folder_was_made_from_is_needed(collect: Collect) -> None:
    old_pack = stray("pack", "aaaaaaaaaaaaaaaa")
    old_cards = stray("cards", "cccccccccccccccc")
    make_folder(old_pack, inputs={"cards": {"fingerprint": "cccccccccccccccc"}})
    unrelated = stray("pack", "bbbbbbbbbbbbbbbb")
    _, places = make_run()
    make_folder(places["train"].folder, inputs={"pack": {"fingerprint": "aaaaaaaaaaaaaaaa"}})
    found = collect()
    assert paths(found["unneeded"]) == [unrelated]
    assert {old_pack, old_cards} <= set(paths(found["needed"]))


def test_the_training_that_a_run_goes_on_from_is_needed(collect: Collect) -> None:
    source = stray()
    run, _ = make_run("train.resume_from=store/train/" + STRAY)
    found = collect()
    assert [row["by"] for row in found["needed"] if row["path"] == str(source)] == [[run.name]]


def test_all_folders_of_runs_that_are_named_count(collect: Collect) -> None:
    make_run()
    make_run("train.lr=3e-5", "paths.runs=others")
    assert len(collect()["unneeded"]) == 4
    assert collect("--runs", "runs", "others")["unneeded"] == []


def test_a_folder_that_somebody_works_on_is_needed(collect: Collect) -> None:
    make_run()
    orphan = stray()
    (orphan / store.MANIFEST).unlink()
    with lease.held(orphan):
        found = collect("--delete")
        assert found["unneeded"] == [] and orphan.is_dir()
        assert [e["by"] for e in found["needed"] if Path(e["path"]) == orphan] == [["somebody works on it"]]
    assert paths(collect()["unneeded"]) == [orphan]


@pytest.mark.parametrize("id", ["12", ""], ids=["known", "lost"])
@pytest.mark.parametrize(("queued", "needed"), [(("12", "name"), True), (None, True), (("13", "other"), False)])
def test_a_folder_for_which_jobs_are_or_may_be_queued_is_needed(
    collect: Collect, monkeypatch: pytest.MonkeyPatch, queued: tuple[str, str] | None, needed: bool, id: str
) -> None:
    make_run()
    orphan = stray()
    jobs.write(orphan, jobs.Record("train", "run", jobs=[jobs.Submitted("name", "stage", id)]))

    def queue(cluster: object) -> list[slurm.QueueJob]:
        if queued is None:
            raise slurm.QueueError("squeue: no answer")
        return [slurm.QueueJob(queued[0], *queued, "PENDING", "", "", "")]

    monkeypatch.setattr(slurm, "queue", queue)
    assert paths(collect()["unneeded"]) == [orphan], "a finished folder needs no job"
    (orphan / store.MANIFEST).unlink()
    assert (collect()["unneeded"] == []) is needed


def test_older_than_spares_what_was_changed_since(collect: Collect) -> None:
    make_run()
    old, new = stray(name="a" * 16), stray(name="b" * 16)
    for path in [*old.iterdir(), old]:
        os.utime(path, (time.time() - 10 * 86_400,) * 2)
    found = collect("--older-than", "7", "--delete")
    assert paths(found["unneeded"]) == [old] and paths(found["spared"]) == [new]
    assert not old.exists() and new.exists()


def test_a_run_that_has_lost_all_stages_is_named(collect: Collect) -> None:
    run, _ = make_run()
    shutil.rmtree("store")
    Path("store").mkdir()
    assert collect()["empty_runs"] == [str(Path("runs") / run.name)]


# --- leftovers ------------------------------------------------------------------------------------------------------


def checkpoint(train: Path, name: str, *, days: float = 0) -> Path:
    path = train / "checkpoints" / name
    path.mkdir(parents=True)
    (path / store.MANIFEST).write_text("{}")
    for one in (path / store.MANIFEST, path):
        os.utime(one, (time.time() - days * 86_400,) * 2)
    return path


def test_broken_checkpoints_and_old_temporary_ones_go_and_the_stage_stays(collect: Collect) -> None:
    _, places = make_run()
    train = places["train"].folder
    sound, bad = checkpoint(train, "step-000004"), checkpoint(train, "bad-step-000008-1")
    old, new = checkpoint(train, ".tmp-step-000012", days=2), checkpoint(train, ".tmp-step-000016")
    found = collect("--delete")
    assert paths(found["leftovers"]) == [bad, old]
    assert [p.exists() for p in (sound, bad, old, new)] == [True, False, False, True]
    assert places["train"].manifest()


def test_broken_checkpoints_stay_where_no_sound_one_is_left(collect: Collect) -> None:
    _, places = make_run()
    train = places["train"].folder
    (train / store.MANIFEST).unlink()
    checkpoint(train, "bad-step-000008-1")
    assert collect()["leftovers"] == [], "without it the next attempt would start afresh"
    checkpoint(train, "step-000004")
    assert len(collect()["leftovers"]) == 1


def test_what_an_interrupted_removal_left_goes_with_the_next(collect: Collect) -> None:
    make_run()
    doomed = stray().rename(Path("store/train/.gc-" + STRAY).absolute())
    assert paths(collect("--delete")["leftovers"]) == [doomed]
    assert not doomed.exists()


# --- staying inside -------------------------------------------------------------------------------------------------


def test_nothing_but_stage_folders_is_ever_touched(collect: Collect) -> None:
    make_run()
    others = [
        make_folder(Path("store/train/notes")),
        make_folder(Path("store/train/0123456789ABCDEF")),
        make_folder(Path("store/other") / STRAY),
        make_folder(Path("store") / STRAY),
    ]
    assert collect("--delete")["removed"] == []
    assert all(path.is_dir() for path in others)


def test_links_out_of_the_store_are_not_followed(collect: Collect, tmp_path: Path) -> None:
    make_run()
    outside = make_folder(tmp_path / "outside" / STRAY)
    (Path("store/train") / STRAY).symlink_to(outside)
    shutil.rmtree("store/evaluate")
    Path("store/evaluate").symlink_to(outside.parent)
    inner = stray("pack")
    (inner / "link").symlink_to(outside)
    assert collect("--delete")["removed"] == [str(inner)]
    assert (outside / "data").is_file() and (outside / store.MANIFEST).is_file()


def test_the_manifest_goes_first(collect: Collect, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run()
    orphan = stray()
    seen = []

    def die(path: Path, *, inside: Path) -> None:
        seen.append((path.name, (path / store.MANIFEST).exists(), (path / "data").exists()))
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk, "remove", die)
    found = collect("--delete", code=1)
    assert seen == [(f".gc-{STRAY}", False, True)]
    assert not orphan.exists() and "Input/output error" in found["not_removed"][0]


def test_what_a_run_took_into_use_after_the_listing_is_spared() -> None:
    make_run()
    run, places = make_run("train.lr=3e-5")
    shutil.move(run.folder, "elsewhere")
    found = unneeded.survey(Path("store").absolute(), [Path("runs")])
    assert len(found.unneeded()) == 4
    shutil.move("elsewhere", run.folder)
    freed = unneeded.delete(found, [Path("runs")])
    assert freed.removed == [] and len(freed.spared) == 4
    assert places["train"].manifest()


def test_what_may_not_be_removed_is_named_and_the_rest_goes(collect: Collect, bound_by_permissions: None) -> None:
    make_run()
    held, free = stray("pack"), stray("train")
    held.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        found = collect("--delete", code=1)
    finally:
        held.parent.chmod(0o700)
    assert found["removed"] == [str(free)]
    assert "Permission denied" in found["not_removed"][0] and (held / "data").is_file()


# --- refusals and forms ---------------------------------------------------------------------------------------------


def test_a_store_or_a_folder_of_runs_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"no store .*--store"):
        gc.main(arguments("--delete"))
    stray()
    with pytest.raises(UserError, match=r"no folder of runs .*--runs"):
        gc.main(arguments("--delete"))
    assert stray().is_dir()


@pytest.mark.parametrize("words", [["+experiment=smoke"], ["--older-than", "-1"], ["--older-than", "nan"]])
def test_what_gc_does_not_take_is_refused(words: list[str]) -> None:
    with pytest.raises(UserError):
        gc.main(arguments(*words))


def test_the_table_says_what_would_go_and_what_went(capsys: pytest.CaptureFixture[str]) -> None:
    make_run()
    orphan = stray()
    gc.main(arguments())
    out = capsys.readouterr().out
    assert f"unneeded  {orphan}" in out and "1 to remove: " in out and "--delete" in out
    gc.main(arguments("--delete"))
    out = capsys.readouterr().out
    assert f"removed   {orphan}" in out and "removed 1 of 1: " in out
    gc.main(arguments())
    out = capsys.readouterr().out
    assert "nothing to remove" in out and "\nfree  " in out and "\ncache  " in out


def test_no_heavy_library_is_imported() -> None:
    make_run()
    code = (
        "import sys, argparse; from cathpc.acts import gc; p = argparse.ArgumentParser(); gc.options(p); "
        "p.add_argument('overrides', nargs='*'); gc.main(p.parse_intermixed_args([])); "
        "print(sorted({'torch', 'transformers', 'datasets', 'deepspeed', 'wandb', 'submitit'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing to remove" in done.stdout and done.stdout.splitlines()[-1] == "[]"


# --- the disk -------------------------------------------------------------------------------------------------------


def test_a_size_counts_blocks_inodes_and_shares_of_hard_links(tmp_path: Path) -> None:
    folder = tmp_path / "sized"
    folder.mkdir()
    (folder / "file").write_bytes(b"x" * 1_000_000)
    alone = disk.size(folder)
    assert alone.inodes == 2 and 1_000_000 <= alone.bytes < 1_100_000
    os.link(folder / "file", tmp_path / "second")
    (folder / "link").symlink_to("/")
    shared = disk.size(folder)
    assert shared.inodes == 3 and 500_000 <= shared.bytes < 600_000


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1400, "1.4 kB"), (23e6, "23 MB"), (1e12, "1.0 TB"), (5e15, "5000 TB")],
)
def test_sizes_are_read_by_people(count: float, text: str) -> None:
    assert disk.human(count) == text


def test_removal_refuses_a_path_behind_a_link(tmp_path: Path) -> None:
    outside = make_folder(tmp_path / "outside" / "folder")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "train").symlink_to(outside.parent)
    with pytest.raises(OSError, match="symbolic link"):
        disk.remove(tmp_path / "store" / "train" / "folder", inside=tmp_path / "store")
    assert (outside / "data").is_file()


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o700)


def test_the_quota_is_what_the_sites_command_prints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    fake(tmp_path / "bin", "quota", "echo 'Disk quotas for user me:'; echo '  /home 10G 20G'; exit 1")
    assert disk.quota(tmp_path) == ["Disk quotas for user me:", "  /home 10G 20G"]
    fake(tmp_path / "bin", "lfs", 'echo "Disk quotas for $4:"; echo "$5 1T 2T"')
    assert disk.quota(tmp_path)[1] == f"{tmp_path} 1T 2T"


def test_a_quota_command_that_hangs_fails_or_says_nothing_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "QUOTA_TIMEOUT_S", 0.2)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    fake(tmp_path / "bin", "lfs", "exec sleep 20")
    fake(tmp_path / "bin", "quota", "echo 'Disk quotas for user me (uid 1): none'")
    assert disk.quota(tmp_path) == []
