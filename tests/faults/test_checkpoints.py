"""Faults 19 to 31: what can happen to a checkpoint, while it is written and after. Passed means that the training ends
with every loss and every weight of one that nothing happened to, bit for bit, unless a test says otherwise.

Real DeepSpeed over gloo, two ranks, a tiny model: see tests/e2e/ranks.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cathpc import store
from cathpc.errors import EXIT_AGAIN, EXIT_CHANGED, EXIT_DATA, EXIT_DISK, EXIT_USER
from cathpc.train import history, metrics
from tests.e2e.ranks import (
    assert_same_training,
    checkpoints,
    copy,
    final_weights,
    flip,
    killed,
    launch,
    losses,
    plain,
    settings,
    trained,
    whole,
    world,
)

__all__ = ["killed", "plain", "whole", "world"]  # fixtures


def codes(results: list[SimpleNamespace]) -> list[int]:
    return [r.returncode for r in results]


def text(results: list[SimpleNamespace]) -> str:
    return "\n".join(r.stderr for r in results)


# --- while it is written ----------------------------------------------------------------------------------------------


def test_fault_19_killed_before_the_rename(world: SimpleNamespace, whole: Path, killed: Path, tmp_path: Path) -> None:
    out = copy(killed, tmp_path / "out")
    results = launch(world, out, settings(), hook="cathpc.train.writing:_rename", rank=0, do="kill")
    assert results[0].returncode == -signal.SIGKILL
    temporary, sound = checkpoints(out)
    assert temporary.startswith(".tmp-step-000008")
    assert sound == "step-000004"
    assert_same_training(trained(world, out, settings()), whole)
    assert checkpoints(out) == ["step-000004", "step-000008", "step-000012"], "what the killed one left is gone"


def test_fault_20_killed_before_the_marker(world: SimpleNamespace, whole: Path, killed: Path, tmp_path: Path) -> None:
    out = copy(killed, tmp_path / "out")
    results = launch(world, out, settings(), hook="cathpc.train.writing:_mark", rank=0, do="kill")
    assert results[0].returncode == -signal.SIGKILL
    assert checkpoints(out) == ["step-000004", "step-000008"]
    assert not (out / "checkpoints/step-000008/manifest.json").exists()
    assert_same_training(trained(world, out, settings()), whole)


def test_fault_21_killed_in_one_ranks_file(world: SimpleNamespace, whole: Path, killed: Path, tmp_path: Path) -> None:
    out = copy(killed, tmp_path / "out")
    hook = "cathpc.train.states:HashedWriter.write"
    results = launch(world, out, settings(), hook=hook, call=30, rank=1, do="kill")
    assert results[1].returncode == -signal.SIGKILL
    assert results[0].returncode != 0
    assert checkpoints(out)[1:] == ["step-000004"]
    assert_same_training(trained(world, out, settings()), whole)


def test_fault_22_the_disk_is_full(world: SimpleNamespace, whole: Path, killed: Path, tmp_path: Path) -> None:
    out = copy(killed, tmp_path / "out")
    results = launch(world, out, settings(), at=2, rank=1, do="small_disk")
    assert codes(results) == [EXIT_DISK] * 2, text(results)
    assert "File too large" in results[1].stderr
    assert checkpoints(out) == ["step-000004"], "the old one stays, and nothing of the new one"
    assert_same_training(trained(world, out, settings()), whole)


@pytest.fixture
def small_disk(killed: Path, tmp_path: Path) -> Iterator[Path]:
    """A disk with room for one checkpoint and a half; only root can make one."""
    size = sum(path.stat().st_size for path in (killed / "checkpoints").rglob("*"))
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip(f"no small disk can be made here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_fault_22_on_a_real_disk_that_is_full(
    world: SimpleNamespace, whole: Path, killed: Path, small_disk: Path
) -> None:
    out = small_disk
    shutil.copytree(killed, out, dirs_exist_ok=True)
    results = launch(world, out, settings())
    assert codes(results) == [EXIT_DISK] * 2, text(results)
    assert "No space left on device" in text(results)
    assert checkpoints(out) == ["step-000004"]
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    assert_same_training(trained(world, out, settings()), whole)


@pytest.mark.parametrize("scratch", [False, True], ids=["", "through_scratch"])
def test_fault_23_the_disk_fails(
    world: SimpleNamespace, whole: Path, killed: Path, tmp_path: Path, scratch: bool
) -> None:
    out = copy(killed, tmp_path / "out")
    train = settings(save_through_scratch=scratch)
    results = launch(world, out, train, hook="cathpc.train.states:fsync", rank=1, do="eio")
    assert codes(results) == [EXIT_DISK] * 2, text(results)
    assert "Input/output error" in results[1].stderr
    assert checkpoints(out) == ["step-000004"]
    if not scratch:
        assert_same_training(trained(world, out, train), whole)


# --- on the disk ------------------------------------------------------------------------------------------------------


def test_fault_24_a_flipped_bit(world: SimpleNamespace, whole: Path, tmp_path: Path) -> None:
    out = copy(whole, tmp_path / "out")
    flip(next((out / "checkpoints/step-000012/deepspeed").glob("*rank_1*optim_states.pt")))
    results = launch(world, out, settings())
    assert codes(results) == [0, 0], text(results)
    assert "is not the file that was saved" in text(results)
    assert checkpoints(out) == ["bad-step-000012-1", "step-000004", "step-000008", "step-000012"]
    assert_same_training(out, whole)


def test_fault_25_a_truncated_file(world: SimpleNamespace, whole: Path, tmp_path: Path) -> None:
    out = copy(whole, tmp_path / "out")
    path = out / "checkpoints/step-000012/rng-00000.json"
    os.truncate(path, path.stat().st_size // 2)
    (out / "checkpoints/step-000008/manifest.json").write_text('{"step": 8, "fi')
    assert_same_training(trained(world, out, settings()), whole)
    assert checkpoints(out)[:2] == ["bad-step-000008-1", "bad-step-000012-1"]


def test_fault_26_a_wrong_pointer(world: SimpleNamespace, whole: Path, killed: Path, tmp_path: Path) -> None:
    out = copy(killed, tmp_path / "out")
    for folder in ("checkpoints", "checkpoints/step-000004"):  # DeepSpeed looks for such a file where no tag is given
        (out / folder / "latest").write_text("step-000099")
    (out / "checkpoints/step-000099").mkdir()
    assert_same_training(trained(world, out, settings()), whole)


def test_fault_27_all_checkpoints_are_bad(world: SimpleNamespace, killed: Path, tmp_path: Path) -> None:
    out = copy(killed, tmp_path / "out")
    (out / "checkpoints/step-000004/rng-00001.json").write_text("{}")
    for _ in range(2):  # the second time it is already set aside
        results = launch(world, out, settings())
        assert codes(results) == [EXIT_DATA] * 2, text(results)
        assert "no checkpoint is sound" in results[0].stderr
    assert checkpoints(out) == ["bad-step-000004-1"]
    assert losses(out) == losses(killed), "never a fresh start"


# --- another number of ranks ------------------------------------------------------------------------------------------


def test_fault_28_in_the_same_folder_another_number_of_ranks_is_refused(
    world: SimpleNamespace, killed: Path, tmp_path: Path
) -> None:
    out = copy(killed, tmp_path / "out")
    (result,) = launch(world, out, settings(ranks_per_node=1))
    assert result.returncode == EXIT_USER
    assert "saved by 2 ranks and cannot be loaded by 1" in result.stderr
    assert f"train.resume_from={out}" in result.stderr
    assert checkpoints(out) == ["step-000004"]


GROUPS = {"sub_group_size": 20_000}


@pytest.mark.parametrize(
    ("changes", "event", "worlds"),
    [
        ({}, {}, (1, 4)),
        pytest.param({}, GROUPS, (1, 3), marks=pytest.mark.faults),
        pytest.param({"zero_stage": 2}, {}, (1, 4), marks=pytest.mark.faults),
        pytest.param({"dtype": "bfloat16"}, {}, (4,), marks=pytest.mark.faults),
    ],
    ids=["zero3", "zero3_in_groups", "zero2", "bfloat16"],
)
def test_fault_28_a_training_goes_on_with_another_number_of_ranks(
    plain: SimpleNamespace, tmp_path: Path, changes: dict[str, Any], event: dict[str, Any], worlds: tuple[int, ...]
) -> None:
    train = settings(global_batch=12 if 3 in worlds else 4, save_every_steps=6, epochs=4, **changes)
    if 3 in worlds:
        train |= {"epochs": 12}  # a step is an epoch of the 11 rows
    first = tmp_path / "two"
    launch(plain, first, train, at=7, rank=0, do="kill", **event)
    assert checkpoints(first) == ["step-000006"]
    uninterrupted = trained(plain, copy(first, tmp_path / "uninterrupted"), train, **event)
    for ranks in worlds:
        out = trained(
            plain, tmp_path / f"{ranks}", train | {"ranks_per_node": ranks, "resume_from": str(first)}, **event
        )
        steps = {step: loss for step, loss in losses(uninterrupted).items() if step <= 6}
        assert steps.items() <= losses(out).items(), "the steps of the first six come along"
        assert losses(out) == pytest.approx(losses(uninterrupted), rel=1e-6), "the order of sums differs"
        theirs = final_weights(uninterrupted)
        for name, tensor in final_weights(out).items():
            assert (tensor - theirs[name]).abs().max() < 1e-6, name
        assert set(metrics.consumed(out / "samples.jsonl").values()) == {train["epochs"]}
        assert checkpoints(out) == ["step-000012"]
    assert checkpoints(first) == ["step-000006"], "where it came from is left as it was"


def test_fault_28_only_the_same_training_is_gone_on_with(plain: SimpleNamespace, killed: Path, tmp_path: Path) -> None:
    train = settings(ranks_per_node=1, resume_from=str(killed))
    (result,) = launch(plain, tmp_path / "lr", train | {"lr": 1e-3})
    assert result.returncode == EXIT_CHANGED
    assert '"lr": 0.003' in result.stderr
    assert str(killed / "checkpoints/step-000004/manifest.json") in result.stderr
    (result,) = launch(plain, tmp_path / "none", train | {"resume_from": str(tmp_path)})
    assert result.returncode == EXIT_USER
    assert f"train.resume_from={tmp_path} has no checkpoint" in result.stderr


# --- what it stands on ------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(world: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """Copies of the packed rows and of the base model with the manifests of finished stages."""
    folders = {}
    for name in ("pack", "base"):
        folders[name] = copy(getattr(world, name), tmp_path / name)
        outputs = store._outputs(folders[name])
        manifest = {"outputs": outputs, "digest": store.digest(outputs), "summary": {}}
        (folders[name] / "manifest.json").write_text(json.dumps(manifest))
    return SimpleNamespace(**{**vars(world), **folders})


@pytest.mark.parametrize(
    "name",
    [
        "pack/train/input_ids.npy",
        "pack/eval/segments.parquet",
        "base/model/tokenizer_config.json",
        "base/model/template.json",
        "base/model/config.json",
        "base/manifest.json",
    ],
)
def test_fault_29_bytes_changed_under_an_existing_fingerprint(
    recorded: SimpleNamespace, killed: Path, tmp_path: Path, name: str
) -> None:
    out = copy(killed, tmp_path / "out")
    path = tmp_path / name
    if name.endswith("manifest.json"):
        path.write_text(path.read_text().replace('"model/config.json": "', '"model/config.json": "0'))
    elif path.suffix == ".json":
        path.write_text(path.read_text() + " ")  # it means the same
    else:
        flip(path)
    results = launch(recorded, out, settings())
    assert codes(results) == [EXIT_CHANGED] * 2, text(results)
    assert all(str(path) in r.stderr for r in results), text(results)
    assert losses(out) == losses(killed), "no step was taken"


def test_fault_29_weights_changed_before_the_training_began(recorded: SimpleNamespace, tmp_path: Path) -> None:
    flip(recorded.base / "model/model.safetensors")
    results = launch(recorded, tmp_path / "out", settings())
    assert codes(results) == [EXIT_CHANGED] * 2, text(results)
    assert "model.safetensors" in results[0].stderr


def test_fault_29_the_config_in_a_checkpoint_was_changed(world: SimpleNamespace, killed: Path, tmp_path: Path) -> None:
    out = copy(killed, tmp_path / "out")
    manifest = out / "checkpoints/step-000004/manifest.json"
    manifest.write_text(manifest.read_text().replace('"lr": 0.003', '"lr": 0.002'))
    results = launch(world, out, settings())
    assert codes(results) == [EXIT_CHANGED] * 2, text(results)
    assert all(str(manifest) in r.stderr for r in results)


# --- old ones and leftovers -------------------------------------------------------------------------------------------


def test_fault_30_killed_while_old_ones_are_removed(world: SimpleNamespace, whole: Path, tmp_path: Path) -> None:
    out, train = tmp_path / "out", settings(save_every_steps=2, keep_checkpoints=2)
    results = launch(world, out, train, hook="cathpc.train.history:_remove", rank=0, do="kill")
    assert results[0].returncode == -signal.SIGKILL
    sound = history.committed(out / "checkpoints")
    assert [p.name for p in sound] == ["step-000006", "step-000004"]
    assert [history.verify(p) for p in sound] == ["", ""]
    assert "step-000002" in checkpoints(out), "half of it is still there"
    assert_same_training(trained(world, out, train), whole)
    assert checkpoints(out) == ["step-000010", "step-000012"]


def test_fault_31_stale_temporary_files(world: SimpleNamespace, whole: Path, killed: Path, tmp_path: Path) -> None:
    out = copy(killed, tmp_path / "out")
    for name in (".tmp-step-000004.77.0", ".tmp-step-000008..0"):
        shutil.copytree(out / "checkpoints/step-000004", out / "checkpoints" / name)
    (out / "checkpoints/.tmp-step-000008..0/files-00000.json").write_text("{")
    assert_same_training(trained(world, out, settings()), whole)
    assert checkpoints(out) == ["step-000004", "step-000008", "step-000012"]


# --- while the training goes on ---------------------------------------------------------------------------------------


def test_a_save_through_scratch_lets_the_training_go_on_and_is_the_same_to_the_bit(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    train = settings(save_through_scratch=True)
    out = trained(world, tmp_path / "out", train, hook="cathpc.train.writing:copy", rank=1, do="wait")
    steps = {row["global_step"]: row["time"] for row in metrics.read(out / "metrics.jsonl") if "loss" in row}
    assert (out / "checkpoints/step-000004/manifest.json").stat().st_mtime > steps[5], "committed some steps later"
    assert_same_training(out, whole)
    for name in checkpoints(whole):
        one, other = (history.manifest(top / "checkpoints" / name) for top in (out, whole))
        assert one["files"] == other["files"]
    assert [p for p in (world.top / "scratch").iterdir() if "cathpc" in p.name] == []


def test_a_stop_waits_for_the_save_in_the_making_and_adds_its_own(
    world: SimpleNamespace, whole: Path, tmp_path: Path
) -> None:
    out, train = tmp_path / "out", settings(save_through_scratch=True)
    event = {"hook": "cathpc.train.writing:copy", "do": "SIGUSR2", "rank": 0}  # of the checkpoint of step 4
    results = launch(world, out, train, **event)
    assert codes(results) == [EXIT_AGAIN] * 2, text(results)
    first, second = checkpoints(out)
    assert first == "step-000004"
    assert second in ("step-000005", "step-000006")
    assert_same_training(trained(world, out, train), whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_while_one_rank_still_reads_back_leaves_no_rank_waiting(
    world: SimpleNamespace, whole: Path, tmp_path: Path, rank: int
) -> None:
    out, train = tmp_path / "out", settings()
    event = {
        "hook": "cathpc.train.writing:read_back",
        "do": "SIGUSR2 wait",
        "rank": rank,
    }  # of the checkpoint of step 4
    results = launch(world, out, train, **event)
    assert codes(results) == [EXIT_AGAIN] * 2, text(results)
    first, second = checkpoints(out)
    assert first == "step-000004" and second in ("step-000005", "step-000006")
    assert_same_training(trained(world, out, train), whole)


def test_where_scratch_has_no_room_checkpoints_are_saved_without_it(
    world: SimpleNamespace, whole: Path, killed: Path, tmp_path: Path
) -> None:
    out = copy(killed, tmp_path / "out")
    results = launch(world, out, settings(save_through_scratch=True), set={"cathpc.train.writing:ROOM": 1e12})
    assert codes(results) == [0, 0], text(results)
    assert "are needed on a node" in results[0].stderr
    assert_same_training(out, whole)


def test_milestones_stay_and_of_the_others_the_newest(world: SimpleNamespace, whole: Path, tmp_path: Path) -> None:
    train = settings(save_milestones=True, save_every_steps=5, keep_checkpoints=1)
    out = trained(world, tmp_path / "out", train)
    assert checkpoints(out) == ["step-000003", "step-000006", "step-000009", "step-000012"]
    assert_same_training(out, whole)
