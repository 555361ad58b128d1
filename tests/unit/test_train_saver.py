"""One rank's saves with an engine that is none: what is committed when, and what is left when a disk refuses."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cathpc.errors import DiskError
from cathpc.train import history, ranks, states, writing
from cathpc.train.saver import Saver


class Engine:
    """Saves as DeepSpeed's does, one small file."""

    def __init__(self) -> None:
        self.checkpoint_engine = states.CheckpointWriter()
        self.optimizer = SimpleNamespace(state_dict=lambda: {"x": torch.zeros(10)})
        self.module = torch.nn.Linear(2, 2)
        self.value = 0

    def save_checkpoint(self, folder: str, tag: str, **_: Any) -> None:
        self.checkpoint_engine.makedirs(f"{folder}/{tag}", exist_ok=True)
        self.checkpoint_engine.save({"value": torch.tensor(self.value)}, f"{folder}/{tag}/rank_0.pt")


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Saver]:
    """Makes the saver of a training of one rank."""
    monkeypatch.setattr(ranks, "gather", lambda values: [list(map(float, values))])
    monkeypatch.setattr(ranks, "rank", lambda: 0)
    monkeypatch.setattr(ranks, "world_size", lambda: 1)
    folder = tmp_path / "checkpoints"
    folder.mkdir()

    def saver(*, keep: int = 1, scratch: bool = False) -> Saver:
        local = tmp_path / "scratch"
        local.mkdir(exist_ok=True)
        return Saver(folder, Engine(), {"config": 1}, keep=keep, scratch=local if scratch else None)

    return saver


def names(saver: Saver) -> list[str]:
    return sorted(p.name for p in saver.folder.iterdir())


def refuse(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_without_scratch_a_save_is_committed_when_start_returns_and_older_ones_go_once_it_was_read_back(
    make: Callable[..., Saver],
) -> None:
    saver = make()
    saver.start(1, {"epoch": 0}, milestone=True)
    saver.start(2, {"epoch": 0})
    saver.start(3, {"epoch": 1})
    assert names(saver) == ["step-000001", "step-000002", "step-000003"]
    assert history.manifest(saver.folder / "step-000003")["epoch"] == 1
    assert not saver.seconds.keys() & {"remove"}
    steps = 0
    while saver._save is not None:  # as the loop does after each step
        while not saver.ready():
            pass
        saver.advance()
        steps += 1
    assert steps == 2, "read back; removed"
    assert names(saver) == ["step-000001", "step-000003"], "the milestone stays"
    assert sorted(saver.seconds) == ["commit", "remove", "verify", "write"]
    assert not saver.ready()


def test_with_scratch_the_training_goes_on_before_the_commit_and_the_files_are_the_same(
    make: Callable[..., Saver], tmp_path: Path
) -> None:
    saver = make(keep=9, scratch=True)
    saver.start(1, {})
    assert names(saver) == [] or history.committed(saver.folder) == []
    saver.engine.value = 5  # the next step
    saver.finish()
    assert names(saver) == ["step-000001"]
    assert list((tmp_path / "scratch").iterdir()) == []
    plain = make(keep=9)
    plain.start(2, {})
    plain.finish()
    plain.engine.value = 0
    one, other = (history.manifest(saver.folder / name)["files"] for name in ("step-000001", "step-000002"))
    assert one["deepspeed/rank_0.pt"] == other["deepspeed/rank_0.pt"], "the value of when it was started"


def test_a_checkpoint_that_reads_back_differently_is_set_aside_and_nothing_older_goes(
    make: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = make()
    saver.start(1, {})
    saver.finish()
    plain = writing.read_back

    def altered(final: Path, *rest: Any) -> None:
        path = final / "deepspeed/rank_0.pt"
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        plain(final, *rest)

    monkeypatch.setattr(writing, "read_back", altered)
    saver.start(2, {})
    with pytest.raises(DiskError, match="what was read back is not what was written"):
        saver.finish()
    assert names(saver) == ["bad-step-000002-1", "step-000001"]


@pytest.mark.parametrize("part", ["_rename", "_mark", "record"])
def test_nothing_is_left_of_a_checkpoint_that_could_not_be_committed(
    make: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    saver = make()
    saver.start(1, {})
    monkeypatch.setattr(writing, part, refuse)
    with pytest.raises(DiskError, match=r"step-000002: the checkpoint could not be written .*No space left on device"):
        saver.start(2, {})
    assert names(saver) == ["step-000001"]


@pytest.mark.parametrize("at_once", [False, True])
def test_a_scratch_that_cannot_be_written_is_done_without(
    make: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at_once: bool
) -> None:
    saver = make(scratch=True)
    plain = writing.write

    def only_shared(engine: Any, folder: Path, *, durable: bool) -> writing.Written:
        return plain(engine, folder, durable=True) if durable else writing.Written({}, OSError("it is read-only"))

    monkeypatch.setattr(writing, "write", only_shared)
    saver.start(1, {}, at_once=at_once)
    assert names(saver) == ["step-000001"]
    saver.finish()
    assert ("it is read-only; saving without it" in capsys.readouterr().out) is not at_once


def test_a_stop_leaves_the_reading_back_to_the_next_attempt(
    make: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = make()
    began = []
    monkeypatch.setattr(writing, "read_back", lambda final, dropped: began.append(dropped.wait(60)))
    saver.start(1, {})
    saver.start(2, {}, at_once=True)
    saver.finish(verify=False)
    assert names(saver) == ["step-000001", "step-000002"], "nothing was removed that was not replaced by a verified one"
    saver.finish()
    while len(began) < 2:
        pass
    assert began == [True, True], "both were told that nobody waits"


def test_old_ones_that_cannot_be_removed_end_no_training(
    make: Callable[..., Saver], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = make()
    saver.start(1, {})
    with monkeypatch.context() as patch:
        patch.setattr(history, "_remove", refuse)
        saver.start(2, {})
        saver.finish()
    assert "older ones could not be removed" in capsys.readouterr().out
    saver.start(3, {})
    saver.finish()
    assert names(saver) == ["step-000003"]
