"""W&B offline: what the files of a run's stages hold, read back and compared with what the stages left."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest

from cathpc.config import Config
from cathpc.tracking import beside, shown
from cathpc.tracking.config import WandbMode
from cathpc.tracking.described import describe
from cathpc.train.metrics import by_step
from tests import report_fixture, wandb_reader

Sent = tuple[dict[str, Path], dict[str, Path]]


def told(config: Config, stages: dict[str, Path], below: Path | None = None) -> list[dict[str, Any]]:
    """What the process that sends says of each stage."""
    sender = beside.start(beside.spec(config, stages, offline_below=below), stdout=subprocess.PIPE)
    said, _ = sender.communicate(timeout=300)
    return [json.loads(line) for line in said.splitlines()]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """A finished run: stage -> its folder, stage -> its offline file."""
    root = tmp_path_factory.mktemp("run")
    folders = report_fixture.build(root, count=80)
    report = root / "report" / ("a" * 16)
    (report / "figures").mkdir(parents=True)
    picture = report / "figures" / "flow.png"
    matplotlib.figure.Figure().savefig(picture)
    shown.write(report, {"flow": (picture, "From rows to the mix")}, {"t": (["a", "b"], [["x", 1]])}, kept=31)
    inputs = {name: {"fingerprint": folder.name, "digest": "d" * 16} for name, folder in folders.items()}
    manifest = {"fingerprint": "a" * 16, "digest": "e" * 16, "config": {}, "inputs": inputs, "summary": {}}
    (report / "manifest.json").write_text(json.dumps(manifest))
    folders["report"] = report
    config = report_fixture.config(mode=WandbMode.offline)
    lines = told(config, folders, below=report)
    assert [line["stage"] for line in lines] == list(folders) and not any("failure" in line for line in lines), lines
    files = {line["stage"]: next(report.rglob(f"run-{line['id']}.wandb")) for line in lines}
    return folders, files


def test_every_step_of_a_resumed_training_is_there_once_with_all_its_figures(sent: Sent) -> None:
    folders, files = sent
    rows = [row for row in wandb_reader.history(files["train"]) if "global_step" in row]
    truth = by_step(folders["train"] / "metrics.jsonl")
    assert len({row["attempt"] for row in truth}) == 2
    assert [row["global_step"] for row in rows] == [row["global_step"] for row in truth]
    for row, true in zip(rows, truth, strict=True):
        for key, value in true.items():
            if key in ("global_step", "seconds"):
                continue
            name = f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
            assert row[name] == value, f"step {row['global_step']}: {key}"
        assert {k: v for k, v in row.items() if k.startswith("train/seconds/")} == {
            f"train/seconds/{part}": value for part, value in true["seconds"].items()
        }
        assert row["_step"] == row["global_step"]
    assert {row["train/requeues"] for row in rows} == {0, 1}


def test_each_stage_is_a_run_of_the_experiment_under_an_id_of_its_own(sent: Sent) -> None:
    folders, files = sent
    runs = {}
    for stage, file in files.items():
        (runs[stage],) = [r.run for r in wandb_reader.records(file) if r.HasField("run")]
    assert {run.run_group for run in runs.values()} == {"demo"} and {run.project for run in runs.values()} == {"cathpc"}
    assert {stage: run.job_type for stage, run in runs.items()} == {stage: stage for stage in folders}
    assert len({run.run_id for run in runs.values()}) == len(folders)
    assert not any(run.host for run in runs.values())


def test_one_axis_is_defined(sent: Sent) -> None:
    records = wandb_reader.records(sent[1]["train"])
    metrics = {r.metric.glob_name or r.metric.name: r.metric.step_metric for r in records if r.HasField("metric")}
    assert metrics == {"global_step": "", "train/*": "global_step", "eval/*": "global_step"}


@pytest.mark.parametrize(
    ("stage", "keys"),
    {
        "pull": ("tables/sources", "figures/set_aside_table"),
        "base": ("tables/token_rows",),
        "refusal": ("tables/measures", "figures/probability_refusals"),
        "score": ("figures/perplexity", "figures/contrast", "figures/refusal", "figures/answer_tokens"),
        "select": ("figures/dropped_table",),
        "cards": ("figures/rules_table",),
        "evaluate": ("tables/fidelity", "figures/fidelity_table"),
        "report": ("tables/t", "figures/flow"),
    }.items(),
)
def test_stages_of_data_log_figures_and_tables(sent: Sent, stage: str, keys: tuple[str, ...]) -> None:
    logged = {key.split("/_type")[0] for row in wandb_reader.history(sent[1][stage]) for key in row}
    assert set(keys) <= {key for one in logged for key in (one, one.rpartition("/")[0])}


def test_a_histogram_counts_every_record(sent: Sent) -> None:
    folders, files = sent
    found, _ = shown._binned(sorted((folders["score"] / "scores").glob("*.parquet")), "refusal", [0.0, 0.5, 1.0])
    (row,) = wandb_reader.history(files["score"])
    assert sum(row["figures/refusal/values"]) == sum(found) == 80


def test_the_numbers_of_a_stage_are_the_summary_of_its_run(sent: Sent) -> None:
    folders, files = sent
    manifest = json.loads((folders["pack"] / "manifest.json").read_text())
    found = wandb_reader.summary(files["pack"])
    assert found["train/tokens"] == manifest["summary"]["train"]["tokens"] and found["line"] == "64 records in 30 rows"
    assert wandb_reader.summary(files["report"])["kept"] == 31


def test_what_a_stage_made_is_an_artifact_by_reference(sent: Sent) -> None:
    folders, files = sent
    for stage, kind in (("pull", "dataset"), ("export", "model"), ("train", "checkpoint")):
        artifacts = [r.artifact for r in wandb_reader.records(files[stage]) if r.HasField("artifact")]
        (made,) = [a for a in artifacts if a.name == f"demo-{stage}"]
        assert made.type == kind and set(made.aliases) == {"latest", folders[stage].name}
        (content,) = made.manifest.contents
        assert content.ref == (folders[stage] / "manifest.json").as_uri() and not content.local_path, (
            "nothing is copied"
        )
        assert json.loads(made.metadata)["folder"] == folders[stage].as_uri()


def test_files_that_an_offline_run_points_to_are_kept(sent: Sent) -> None:
    records = wandb_reader.records(sent[1]["evaluate"])
    tables = [r.artifact for r in records if r.HasField("artifact") and r.artifact.name.startswith("run-")]
    paths = [Path(content.local_path) for table in tables for content in table.manifest.contents]
    assert paths and all(path.is_file() for path in paths)


def test_the_same_stage_has_the_same_id_and_another_one_another(tmp_path: Path) -> None:
    folders = report_fixture.build(tmp_path, count=40)
    first = describe("demo", "train", folders["train"], {})
    (folders["train"] / "manifest.json").rename(folders["train"] / "gone")
    inputs = json.loads((folders["train"] / "gone").read_text())["inputs"]
    (folders["train"] / "inputs.json").write_text(json.dumps(inputs))
    assert describe("demo", "train", folders["train"], {}).id == first.id, "an unfinished training is the same run"
    assert describe("other", "train", folders["train"], {}).id != first.id
    other = folders["train"].with_name("f" * 16)
    folders["train"].rename(other)
    assert describe("demo", "train", other, {}).id != first.id


def test_sending_offline_again_replaces_what_was_written(tmp_path: Path) -> None:
    pack = {"pack": report_fixture.build(tmp_path / "run", count=40)["pack"]}
    config = report_fixture.config(mode=WandbMode.offline)
    for _ in range(2):
        told(config, pack, below=tmp_path)
    assert len(list(tmp_path.rglob("run-*.wandb"))) == 1


def test_the_reader_joins_records_that_cross_a_block(sent: Sent) -> None:
    file = sent[1]["train"]
    assert file.stat().st_size > wandb_reader.BLOCK
    assert len(wandb_reader.records(file)) > 50
