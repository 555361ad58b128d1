"""The act `sync`, the table of a sweep and the workspace, without a server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cathpc import acts
from cathpc.acts import sync
from cathpc.config import as_plain, compose
from cathpc.errors import UserError
from cathpc.tracking import beside, rows, send, workspace
from cathpc.tracking.config import TrackerConfig
from cathpc.tracking.described import describe
from cathpc.train.metrics import by_step
from tests import report_fixture, wandb_reader


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two runs of smoke that share all stages; stage -> folder."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    folders = report_fixture.build(tmp_path / "store", count=40)
    for name, lr in (("smoke", "1e-3"), ("smoke-0123abcd", "3e-5")):
        overrides = ["+experiment=smoke", f"train.lr={lr}"]
        links = tmp_path / "runs" / name / "stages"
        links.mkdir(parents=True)
        saved = {"overrides": overrides, "config": as_plain(compose(overrides))}
        (links.parent / "config.json").write_text(json.dumps(saved))
        for stage, folder in folders.items():
            (links / stage).symlink_to(folder)
    return folders


def called(*words: str) -> int:
    act, arguments = acts.pick(["sync", *words])
    return int(act.main(arguments))


def test_without_a_key_it_says_how_to_get_one(runs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"no key for https://api\.wandb\.ai: `wandb login`.*--offline FOLDER"):
        called("+experiment=smoke")


def test_watching_what_is_not_sent_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="leave one out"):
        called("+experiment=smoke", "--watch", "--offline", str(tmp_path / "out"))


def test_what_another_project_has_is_not_noted_as_sent_here(runs: dict[str, Path]) -> None:
    described = describe("smoke", "pull", runs["pull"], {})
    spec = send.Spec(tracker=beside.plain(TrackerConfig(project="mine")), stages=[])
    described.note.parent.mkdir()
    send._note(described, spec, complete=True)
    assert send.read_note(described, TrackerConfig(project="mine"))["complete"]
    assert not send.read_note(described, TrackerConfig(project="other"))
    assert not send.read_note(described, TrackerConfig(project="mine", entity="team"))


def test_offline_it_writes_every_stage_once_and_the_table_of_the_sweep(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called("+experiment=smoke", "--offline", str(tmp_path / "out")) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == len(runs) + 1, "shared stages are one run each"
    files = list((tmp_path / "out").rglob("run-*.wandb"))
    (train,) = [f for f in files for r in wandb_reader.records(f) if r.HasField("run") and r.run.job_type == "train"]
    steps = [row["global_step"] for row in wandb_reader.history(train) if "global_step" in row]
    assert steps == [row["global_step"] for row in by_step(runs["train"] / "metrics.jsonl")]
    (table,) = (tmp_path / "out" / "sweep").rglob("*.table.json")
    found = json.loads(table.read_text())
    assert found["columns"][:3] == ["run", "state", "train.lr"]
    assert sorted((row[0], row[2]) for row in found["data"]) == [("smoke", 1e-3), ("smoke-0123abcd", 3e-5)]


def test_watching_ends_when_every_stage_is_noted_as_sent(
    runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    told: list[int] = []
    slept: list[float] = []
    config = compose(["+experiment=smoke"])
    spec = send.Spec(tracker=beside.plain(config.tracker), stages=[])

    def sent(some: list[Any], below: Path | None) -> list[dict[str, Any]]:
        told.append(len(some))
        for name, folder in [stage for run in some for stage in run.stages().items()]:
            described = describe("smoke", name, folder, {})
            described.note.parent.mkdir(parents=True, exist_ok=True)
            send._note(described, spec, complete=len(told) > 1)
        return [{"stage": "pull", "steps": 0, "url": "u"}]

    monkeypatch.setattr(sync, "_send", sent)

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 5, "it does not end"

    monkeypatch.setattr(sync.time, "sleep", sleep)
    assert called("+experiment=smoke", "--watch") == 0
    assert len(told) == 2 and slept == [sync.EVERY_S]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the library's own, at its import
def test_the_workspace_draws_what_a_training_logs() -> None:
    pytest.importorskip("wandb_workspaces")
    built = workspace.build(TrackerConfig(project="mine"), "team")
    model = json.loads(built._to_model().model_dump_json(by_alias=True))
    assert (model["entity"], model["project"]) == ("team", "mine")
    sections = model["spec"]["section"]["panelBankConfig"]["sections"]
    names = [s["name"] for s in sections if s["name"] in (*workspace.CURVES, *workspace.FIGURES, "Result", "Sweep")]
    assert names == [*workspace.CURVES, "Result", *workspace.FIGURES, "Sweep"]
    drawn = json.dumps(sections)
    for key in (
        "train/loss",
        "eval/loss",
        "train/mfu",
        "train/goodput",
        "train/spikes",
        "train/requeues",
        "tables/runs",
    ):
        assert key in drawn


def test_the_curves_of_the_workspace_are_keys_that_are_logged(tmp_path: Path) -> None:
    line = {"attempt": 1, "global_step": 1, "eval_loss": 1.0, "slow_ranks": [1], "step_s": 1.0, "time": 2.0}
    line |= dict.fromkeys(("loss", "grad_norm", "lr", "tokens_per_s", "mfu", "memory_gb"), 1.0)
    line |= {"seconds": dict.fromkeys(("data", "forward", "backward", "step", "save"), 1.0)}
    start = {"attempt": 1, "global_step": 0, "start": True, "time": 1.0}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (start, line)))
    tail = rows.Tail(tmp_path / "metrics.jsonl")
    tail.read()
    (row,) = tail.final(complete=True)
    drawn = {key for curves in workspace.CURVES.values() for keys in curves.values() for key in keys}
    assert drawn <= set(row)
