"""The stage store: fingerprints, manifests, claims."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cathpc import store
from cathpc.config import Config, compose
from cathpc.dispatch import jobs
from cathpc.errors import ChangedError, UserError
from cathpc.pipeline import STAGES, Stage

STUDY = (
    Stage("first", "none:run", inputs=(), config=("pack",), does="", identity=lambda c: c.name),
    Stage("second", "none:run", inputs=("first",), config=("train",), does=""),
    Stage("third", "none:run", inputs=("second",), config=(), does=""),
)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return compose(["+experiment=smoke", f"paths.store={tmp_path}/store"])


def finish(place: store.Place, config: Config, text: str) -> None:
    store.prepare_folder(place)
    used = store.begin(place)
    (place.folder / "out.txt").write_text(text)
    store.commit(place, config, {"line": text}, used, started=time.time(), seconds=1.0)


def test_a_change_of_train_lr_changes_train_and_what_follows_and_nothing_before() -> None:
    before = store.fingerprints(compose(["+experiment=smoke"]))
    after = store.fingerprints(compose(["+experiment=smoke", "train.lr=0.5"]))
    assert [s.name for s in STAGES if before[s.name] != after[s.name]] == ["train", "export", "evaluate", "report"]


def test_where_things_lie_changes_no_fingerprint(tmp_path: Path) -> None:
    before = store.fingerprints(compose(["+experiment=smoke"]))
    moved = compose(["+experiment=smoke", f"paths.store={tmp_path}", f"paths.cache={tmp_path}", "cluster.cores=1"])
    assert store.fingerprints(moved) == before


def test_a_stage_is_complete_only_with_its_manifest(config: Config) -> None:
    place = store.places(config, STUDY)["first"]
    store.prepare_folder(place)
    (place.folder / "out.txt").write_text("half")
    assert not place.fresh()
    finish(place, config, "whole")
    assert place.fresh()
    assert place.folder.stat().st_mode & 0o777 == 0o700


def test_a_torn_manifest_is_no_manifest(config: Config) -> None:
    place = store.places(config, STUDY)["first"]
    finish(place, config, "x")
    manifest = place.folder / store.MANIFEST
    manifest.write_text(manifest.read_text()[:-20])
    assert not place.fresh()


def test_an_input_made_anew_with_other_content_makes_what_stands_on_it_stale(config: Config) -> None:
    places = store.places(config, STUDY)
    for place in places.values():
        finish(place, config, place.stage.name)
    assert places["third"].fresh()
    (places["first"].folder / store.MANIFEST).unlink()
    finish(places["first"], config, "first")
    assert places["second"].fresh(), "the same content again leaves what follows fresh"
    (places["first"].folder / store.MANIFEST).unlink()
    finish(places["first"], config, "another first")
    assert not places["second"].fresh()


def test_a_stale_folder_is_emptied_before_it_is_made_anew(config: Config) -> None:
    places = store.places(config, STUDY)
    for place in places.values():
        finish(place, config, place.stage.name)
    (places["first"].folder / store.MANIFEST).unlink()
    finish(places["first"], config, "another first")
    store.begin(places["second"])
    assert [p.name for p in places["second"].folder.iterdir()] == [store.INPUTS]


def test_what_a_killed_attempt_left_is_kept_only_for_the_same_inputs(config: Config) -> None:
    places = store.places(config, STUDY)
    finish(places["first"], config, "first")
    half = places["second"].folder / "shard"
    store.prepare_folder(places["second"])
    store.begin(places["second"])
    half.write_text("scored with the first model")
    store.begin(places["second"])
    assert half.exists()
    (places["first"].folder / store.MANIFEST).unlink()
    finish(places["first"], config, "another first")
    store.begin(places["second"])
    assert not half.exists()


def test_a_result_of_an_input_that_was_made_anew_meanwhile_is_not_committed(config: Config) -> None:
    places = store.places(config, STUDY)
    finish(places["first"], config, "first")
    store.prepare_folder(places["second"])
    used = store.begin(places["second"])
    (places["first"].folder / store.MANIFEST).unlink()
    finish(places["first"], config, "another first")
    with pytest.raises(ChangedError, match="made anew"):
        store.commit(places["second"], config, {}, used, started=0.0, seconds=0.0)
    assert places["second"].manifest() is None


def test_the_manifest_hashes_every_file_and_counts_a_subfolder_with_a_manifest_by_that_alone(config: Config) -> None:
    place = store.places(config, STUDY)["first"]
    store.prepare_folder(place)
    (place.folder / "sub").mkdir()
    (place.folder / "sub" / "a").write_text("a")
    (place.folder / "checkpoint").mkdir()
    (place.folder / "checkpoint" / "weights").write_text("w")
    (place.folder / "checkpoint" / store.MANIFEST).write_text("{}")
    (place.folder / "progress.json").write_text("{}")
    manifest = store.commit(place, config, {}, {}, started=0.0, seconds=0.0)
    assert sorted(manifest["outputs"]) == [f"checkpoint/{store.MANIFEST}", "sub/a"]


def test_a_store_that_cannot_be_written_is_named(config: Config, tmp_path: Path, bound_by_permissions: None) -> None:
    place = store.places(config, STUDY)["first"]
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match=r"paths\.store"):
        store.prepare_folder(place)


def test_an_attempt_on_other_inputs_keeps_the_dispatchers_folder_by_whatever_name(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FOLDER", ".elsewhere")
    first, second = list(store.places(config, STUDY).values())[:2]
    finish(first, config, "old")
    finish(second, config, "made of the old")
    jobs.write(second.folder, jobs.Record("second", "run"))
    finish(first, config, "new")
    store.begin(second)
    assert jobs.read(second.folder) and not (second.folder / "out.txt").exists()
