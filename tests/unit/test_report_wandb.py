"""W&B: the offline file holds every step once; no failure reaches the caller."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from cathpc.config import only
from cathpc.report import stage
from cathpc.report.config import TrackerConfig, WandbMode
from cathpc.report.gather import gather
from cathpc.report.wandb import replay
from cathpc.train.metrics import by_step
from tests import report_fixture, wandb_reader

KEY = "0123456789abcdef0123456789abcdef01234567"
STEPS = [{"global_step": step, "train/loss": 3.0 / (step + 1)} for step in range(5)]


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def send(out: Path, mode: WandbMode = WandbMode.auto, **changed: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    options: dict[str, Any] = {
        "name": "demo", "run_id": "abc123", "steps": STEPS, "config": {"train": {"lr": 1e-5}},
        "summary": {"Loss": "1.0"}, "figures": {}, "tables": {}, "timeout_s": 2.0,
    }  # fmt: skip
    return replay(TrackerConfig(mode=mode), out, **(options | changed))


def files(out: Path) -> list[Path]:
    return sorted(out.rglob("*.wandb"))


def test_offline_file_holds_every_step_of_a_resumed_run_once(tmp_path: Path) -> None:
    inputs = report_fixture.build(tmp_path / "run", count=80)
    out = tmp_path / "out"
    out.mkdir()
    summary = stage.run(only(report_fixture.config(mode=WandbMode.auto), ("report", "tracker")), inputs, out)
    assert summary["wandb"]["mode"] == "offline" and "no API key" in summary["line"]
    (file,) = files(out)
    rows = wandb_reader.history(file)
    logged = {row["global_step"]: row for row in rows if "global_step" in row}
    truth = by_step(inputs["train"] / "metrics.jsonl")
    assert [row["global_step"] for row in rows if "global_step" in row] == [row["global_step"] for row in truth]
    for row in truth:
        assert logged[row["global_step"]].get("train/loss") == row.get("loss")
        assert logged[row["global_step"]].get("eval/loss") == row.get("eval_loss")
    told = wandb_reader.summary(file)
    assert told["records/pulled"] == 80 and 0 < told["fidelity/tuned"] <= 1
    assert told["loss/held_out"] == next(row["eval_loss"] for row in reversed(truth) if "eval_loss" in row)
    media = rows[-1]
    assert media["figures/population/_type"] == "image-file" and media["tables/fidelity/_type"] == "table-file"


def test_one_axis_is_defined_and_the_run_carries_its_own_id_and_group(tmp_path: Path) -> None:
    send(tmp_path)
    records = wandb_reader.records(files(tmp_path)[0])
    metrics = {r.metric.glob_name or r.metric.name: r.metric.step_metric for r in records if r.HasField("metric")}
    assert metrics == {"global_step": "", "train/*": "global_step", "eval/*": "global_step"}
    (run,) = [r.run for r in records if r.HasField("run")]
    assert (run.run_id, run.run_group, run.project, run.display_name) == ("abc123", "demo", "cathpc", "demo")
    assert not run.host


def test_the_same_training_gets_the_same_run_id_and_another_one_another(tmp_path: Path) -> None:
    facts = gather(report_fixture.build(tmp_path, count=40), examples=1)
    first = stage.run_id("demo", facts)
    assert first == stage.run_id("demo", facts) != stage.run_id("other", facts)
    facts.manifests["train"]["fingerprint"] = "f" * 16
    assert stage.run_id("demo", facts) != first


def test_files_that_the_offline_run_points_to_are_kept(tmp_path: Path) -> None:
    send(tmp_path, tables={"t": (["a", "b"], [["x", 1], [None, 2.5]])})
    manifests = [r.artifact.manifest for r in wandb_reader.records(files(tmp_path)[0]) if r.HasField("artifact")]
    paths = [Path(content.local_path) for manifest in manifests for content in manifest.contents]
    assert paths and all(p.is_file() and tmp_path in p.parents for p in paths)


def test_a_second_attempt_replaces_the_first(tmp_path: Path) -> None:
    send(tmp_path)
    send(tmp_path)
    assert len(files(tmp_path)) == 1


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    result = send(tmp_path / "out", WandbMode.disabled)
    assert result["mode"] == "disabled" and list((tmp_path / "out").iterdir()) == []


def test_the_environment_decides_auto(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert send(tmp_path)["mode"] == "disabled"


def test_without_a_key_online_is_offline_and_asks_nobody(tmp_path: Path) -> None:
    assert send(tmp_path, WandbMode.online)["mode"] == "offline"


def test_a_server_out_of_reach_leaves_the_offline_run_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    result = send(tmp_path)
    assert result["mode"] == "offline" and "no answer from the server" in result["line"] and "\n" not in result["line"]
    (file,) = files(tmp_path)
    assert [r["global_step"] for r in wandb_reader.history(file) if "global_step" in r] == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")
    assert all(KEY.encode() not in p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())


def test_a_failure_inside_wandb_is_a_line_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    def fail(**_: Any) -> None:
        raise RuntimeError("boom\nsecond line")

    monkeypatch.setattr(wandb, "init", fail)
    result = send(tmp_path)
    assert result["mode"] == "failed" and "RuntimeError: boom" in result["line"] and "\n" not in result["line"]
    assert not (tmp_path / "wandb").exists()


def test_a_key_in_netrc_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cathpc.report.wandb import _has_key

    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    netrc.chmod(0o600)
    assert not _has_key()
    monkeypatch.setenv("NETRC", str(netrc))
    assert _has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not _has_key()


def test_the_reader_joins_records_that_cross_a_block(tmp_path: Path) -> None:
    send(tmp_path, steps=[{"global_step": s, "train/loss": s / 7, "train/text": "x" * 900} for s in range(200)])
    rows = wandb_reader.history(files(tmp_path)[0])
    assert files(tmp_path)[0].stat().st_size > 3 * wandb_reader.BLOCK
    assert [r["global_step"] for r in rows if "global_step" in r] == list(range(200))
