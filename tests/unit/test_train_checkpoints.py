"""What lies in a folder of checkpoints: which count, which are sound, which may go; and files without trust."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cathpc.train import history, rng, states


def committed(folder: Path, step: int, **more: object) -> Path:
    """A checkpoint as `save` leaves it, without an engine."""
    path = folder / history.folder_name(step)
    path.mkdir(parents=True)
    files = {}
    for name in ("a.pt", "b.pt"):
        (path / name).write_bytes(os.urandom(1000))
        digest, size = history.sha256(path / name)
        files[name] = {"sha256": digest, "bytes": size}
    (path / "manifest.json").write_text(json.dumps({"step": step, "files": files, **more}))
    return path


def test_only_folders_with_a_manifest_are_committed_and_steps_sort_as_numbers(tmp_path: Path) -> None:
    for step in (2, 1_000_000, 999_999):
        committed(tmp_path, step)
    (tmp_path / "step-2000000").mkdir()
    (tmp_path / ".tmp-step-000003").mkdir()
    assert [p.name for p in history.committed(tmp_path)] == ["step-1000000", "step-999999", "step-000002"]


def test_a_flipped_byte_a_cut_file_and_a_missing_one_are_found(tmp_path: Path) -> None:
    path = committed(tmp_path, 1)
    assert history.verify(path) == ""
    whole = (path / "b.pt").read_bytes()
    (path / "b.pt").write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
    assert "b.pt is not the file that was saved" in history.verify(path)
    assert history.verify(path, share=0, shares=2) == "", "the first rank's share is a.pt"
    assert "b.pt" in history.verify(path, share=1, shares=2)
    (path / "b.pt").write_bytes(whole[:-1])
    assert "(999 bytes, 1000 recorded)" in history.verify(path)
    (path / "b.pt").unlink()
    assert "b.pt cannot be read" in history.verify(path)
    (path / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in history.verify(path)


def test_random_generators_go_on_where_they_were() -> None:
    def draw() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.randn(1).item()]

    draw()
    state = json.loads(json.dumps(rng.state()))
    expected = [draw(), draw()]
    rng.restore(state)
    assert [draw(), draw()] == expected


def test_files_of_other_classes_than_deepspeeds_are_not_unpickled(tmp_path: Path) -> None:
    torch.save({"x": Path("/")}, tmp_path / "evil.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        states.peek(tmp_path / "evil.pt")


def test_the_newest_and_the_milestones_stay_and_what_a_killed_removal_left_goes(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        committed(tmp_path, step, milestone=step == 2)
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / "a.pt").write_bytes(b"half of a removed one")
    history.prune(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000006", "step-000008"]


def test_a_broken_checkpoint_is_set_aside_under_a_name_of_its_own_and_stays_a_proof_of_history(tmp_path: Path) -> None:
    assert not history.has_history(tmp_path)
    for number in (1, 2):
        assert history.set_aside(committed(tmp_path, 4)).name == f"bad-step-000004-{number}"
    assert history.committed(tmp_path) == []
    assert history.has_history(tmp_path)


def test_what_is_written_is_hashed_on_the_way_and_looked_into_without_being_read(tmp_path: Path) -> None:
    writer = states.CheckpointWriter()
    big = torch.arange(3 * states.BLOCK // 4 + 5, dtype=torch.float32)
    data = {"module": {"w": big, "half": big[10:20].bfloat16(), "none": torch.empty(0)}, "step": 3}
    writer.save(data, str(tmp_path / "x.pt"))
    assert writer.error is None
    digest, size = history.sha256(tmp_path / "x.pt")
    assert writer.written == {tmp_path / "x.pt": {"sha256": digest, "bytes": size}}
    found = states.peek(tmp_path / "x.pt")
    assert found["step"] == 3
    stored = found["module"]["w"]
    assert torch.cat(list(stored.blocks(7, stored.numel() - 7))).equal(big[7:])
    assert found["module"]["half"].read(2, 3).equal(big[12:15].bfloat16())
    assert found["module"]["none"].read().numel() == 0
    assert states.copy(tmp_path / "x.pt", tmp_path / "copy/x.pt") == writer.written[tmp_path / "x.pt"]
    assert states.nbytes(data) == 4 * big.numel() + 20
