"""Sources are identified by content, and refused before anything runs when they cannot be used."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from cathpc import digests
from cathpc.data import lock, sources
from cathpc.data.config import Component, DatasetConfig, SourceConfig
from cathpc.errors import UserError

ROW = '{"instruction": "a", "output": "b"}\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_text(ROW)
    return folder


def dataset(root: Path, path: str = "a.jsonl", **settings: Any) -> DatasetConfig:
    return DatasetConfig(
        root=str(root), decontaminate=[], sources={"k": SourceConfig(path=path, **{"license": "mit", **settings})}
    )


def test_identity_follows_content_not_place(root: Path, tmp_path: Path) -> None:
    before = sources.identity(dataset(root))
    moved = tmp_path / "moved"
    root.rename(moved)
    (moved / "a.jsonl").rename(moved / "b.jsonl")
    assert sources.identity(dataset(moved, "b.jsonl")) == before
    (moved / "b.jsonl").write_text(ROW.replace("b", "c"))
    assert sources.identity(dataset(moved, "b.jsonl")) != before


def test_a_cached_digest_is_used_only_while_the_file_is_the_same(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    cache = tmp_path / "cache" / "digests.json"
    file = root / "a.jsonl"
    monkeypatch.setattr(time, "time", lambda: file.stat().st_mtime + 60)
    first = sources.identity(dataset(root), cache)
    read: list[Path] = []
    real = digests.file_hash
    monkeypatch.setattr(digests, "file_hash", lambda path: read.append(path) or real(path))
    assert sources.identity(dataset(root), cache) == first and not read
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_text(ROW.replace("b", "c"))
    os.utime(file, ns=times)  # same size, same time of change: the inode's own time still tells
    assert sources.identity(dataset(root), cache) != first and read


def test_a_file_that_changed_just_now_is_not_cached(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "digests.json"
    sources.identity(dataset(root), cache)
    assert not cache.exists()


def test_a_cache_that_cannot_be_read_or_written_is_no_error(root: Path, tmp_path: Path) -> None:
    (tmp_path / "digests.json").write_text("not JSON")
    assert sources.identity(dataset(root), tmp_path / "digests.json") == sources.identity(dataset(root))
    (tmp_path / "file").write_text("")
    os.utime(root / "a.jsonl", (1, 1))
    sources.identity(dataset(root), tmp_path / "file" / "digests.json")


@pytest.mark.parametrize(
    "path", ["../secret.jsonl", "../../etc/passwd", "/etc/passwd", "x/../../secret.jsonl", "out.jsonl", "dir/s.jsonl"]
)
def test_a_path_that_leaves_the_data_root_is_refused(root: Path, tmp_path: Path, path: str) -> None:
    (tmp_path / "secret.jsonl").write_text(ROW)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "s.jsonl").write_text(ROW)
    (root / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (root / "dir").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"dataset\.sources\.k\.path: .*: path leaves the data root"):
        sources.identity(dataset(root, path))


def test_a_link_inside_the_root_and_a_linked_root_are_fine(root: Path, tmp_path: Path) -> None:
    (root / "link.jsonl").symlink_to("a.jsonl")
    (tmp_path / "linked").symlink_to(root)
    assert sources.identity(dataset(tmp_path / "linked", "link.jsonl")) == sources.identity(dataset(root))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.jsonl", "no such file under"),
        ("a.jsonl/b.jsonl", "no such file under"),
        ("empty.jsonl", "the file is empty"),
        ("folder.jsonl", "not a file"),
        ("pipe.jsonl", "not a file"),
        ("loop.jsonl", "cannot be opened"),
        ("a\0b.jsonl", "cannot be opened"),
        (
            "a.xlsx",
            r"unknown file format '.xlsx'. Valid: .jsonl, .ndjson, .json, .csv, .parquet, .arrow; text",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name(root: Path, path: str, message: str) -> None:
    (root / "empty.jsonl").touch()
    (root / "folder.jsonl").mkdir()
    (root / "a.xlsx").write_text("x")
    (root / "loop.jsonl").symlink_to("loop.jsonl")
    os.mkfifo(root / "pipe.jsonl")
    with pytest.raises(UserError, match=r"dataset\.sources\.k\.path: ") as caught:
        sources.identity(dataset(root, path))
    assert caught.match(message)


def test_a_file_without_permission_is_refused(root: Path, bound_by_permissions: None) -> None:
    (root / "a.jsonl").chmod(0)
    with pytest.raises(UserError, match=r"a\.jsonl: cannot be read: Permission denied"):
        sources.identity(dataset(root))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"license": ""}, r"sources\.k\.license is '': state the licence of a\.jsonl"),
        ({"license": "Unknown"}, r"sources\.k\.license is 'Unknown'"),
        ({"limit": 0}, r"sources\.k\.limit is 0"),
        ({"hub": "org/x"}, "give either path"),
        ({"path": "", "hub": "json"}, r"hub is 'json': expected the id of a dataset"),
        ({"path": "", "hub": "../x"}, r"hub is '../x'"),
        ({"component": Component.refusal}, "columns has no label"),
        ({"columns": {"label": "l"}, "labels": {"yes": 2.0}}, r"labels\.yes is 2\.0"),
        ({"columns": {"nope": "l"}}, "has no field 'nope'"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(root: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sources.identity(dataset(root, **settings))


def test_all_faults_come_in_one_message(root: Path) -> None:
    config = dataset(root, "missing.jsonl")
    config.sources["other"] = SourceConfig(path="a.jsonl")
    with pytest.raises(UserError, match=r"(?s)missing\.jsonl.*other\.license"):
        sources.identity(config)


def test_a_hub_source_counts_by_its_locked_commit(root: Path, tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "lock.yaml"
    monkeypatch.setenv("CATHPC_LOCK", str(file))
    config = DatasetConfig(decontaminate=[], sources={"k": SourceConfig(hub="org/name", license="mit")})
    with pytest.raises(UserError, match=r"org/name \(dataset of the Hub\) is not pinned in .*python -m cathpc pin"):
        sources.identity(config)
    entry = {"commit": "a" * 40, "license": "mit", "gated": False, "size_gb": 1.5}
    lock.write({"datasets": {"org/name": entry}, "models": {}}, file)
    assert lock.read(file)["datasets"]["org/name"] == entry
    assert sources.identity(config) == {"k": {"hub": "org/name", "commit": "a" * 40}}
    with pytest.raises(UserError, match=r"org/name \(model of the Hub\) is not pinned"):
        lock.commit("org/name", "model")


@pytest.mark.parametrize("text", ["[1", "- a", "datasets: 3", "other: {}", "datasets: {a/b: {commit: main}}"])
def test_a_broken_lock_file_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "lock.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=str(file)):
        lock.read(file)
