"""The stage `benchmarks`: how lm-eval is called, and what becomes of tasks that it cannot run."""

from __future__ import annotations

import json
import sys
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from cathpc import pipeline
from cathpc.config import compose
from cathpc.errors import DataError
from cathpc.evaluate import benchmarks
from cathpc.evaluate.config import BenchmarksConfig

STAND_IN = """
import json, os, pathlib, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if arguments["--tasks"] == "breaks":
    sys.exit("ValueError: the model is of no use")
out = pathlib.Path(arguments["--output_path"]) / "some__model"
out.mkdir(parents=True)
metrics = {"alias": "x", "acc,none": 0.25, "acc_norm,none": 0.5}
results = {task: {**metrics, "limit": float(arguments.get("--limit", -1))} for task in arguments["--tasks"].split(",")}
groups = {}
if "mmlu" in results:
    groups["mmlu"] = ["mmlu_anatomy"]
    results["mmlu_anatomy"] = metrics
(out / "results_2026.json").write_text(json.dumps({"results": results, "group_subtasks": groups}))
"""
TASKS = """
def get_task_dict(names):
    if "absent" in names:
        raise ConnectionError("Couldn't reach 'allenai/absent' on the Hub")
    if "unknown" in names:
        raise KeyError("unknown")
"""


@pytest.fixture
def lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that takes the arguments and writes the files of lm-eval."""
    package = tmp_path / "packages" / "lm_eval"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(STAND_IN)
    (package / "tasks.py").write_text(TASKS)
    monkeypatch.setenv("PYTHONPATH", str(package.parent))


def run(tmp_path: Path, *tasks: str, **options: Any) -> dict[str, Any]:
    inputs = {name: tmp_path / name for name in ("base", "export")}
    config = SimpleNamespace(benchmarks=BenchmarksConfig(tasks=list(tasks), **options))
    return benchmarks.run(config, inputs, tmp_path)  # type: ignore[arg-type]


@pytest.mark.usefixtures("lm_eval")
def test_tasks_are_measured_for_both_models_and_absent_data_is_skipped(tmp_path: Path) -> None:
    summary = run(tmp_path, "sciq", "absent", "arc_easy", "mmlu", limit=7)
    assert summary["base"]["sciq"] == {"acc": 0.25, "acc_norm": 0.5, "limit": 7.0} == summary["tuned"]["arc_easy"]
    assert set(summary["base"]) == {"sciq", "arc_easy", "mmlu"}, "a group is one figure, not one of each of its parts"
    assert set(summary["skipped"]) == {"absent"} and "Couldn't reach" in summary["skipped"]["absent"]
    assert "on a node with network: " in summary["skipped"]["absent"]
    measured = "; ".join(f"{task} 50.0% -> 50.0%" for task in ("sciq", "arc_easy", "mmlu"))
    assert summary["line"].startswith(f"{measured}; absent skipped: its data")
    assert set(run(tmp_path, "mmlu", "mmlu_anatomy")["base"]) == {"mmlu", "mmlu_anatomy"}, (
        "a part that is asked for stays"
    )


@pytest.mark.usefixtures("lm_eval")
def test_what_was_measured_is_written_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    run(tmp_path, "sciq")
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    assert written["tuned"]["sciq"]["acc"] == 0.25 and not list(tmp_path.glob(".base*"))


@pytest.mark.usefixtures("lm_eval")
@pytest.mark.parametrize(("task", "named"), [("unknown", "does not take 'unknown'"), ("breaks", "of no use")])
def test_other_faults_end_the_stage(tmp_path: Path, task: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        run(tmp_path, task)


def test_without_lm_eval_every_task_says_how_to_get_it(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare")
    bare = run(tmp_path, "sciq", python=str(tmp_path / "bare/bin/python"))
    assert "lm-eval is not installed" in bare["skipped"]["sciq"]
    absent = run(tmp_path, "sciq", python=str(tmp_path / "python"))
    assert "cannot be run" in absent["skipped"]["sciq"] and sys.executable not in absent["line"]


def test_lm_eval_itself_measures_a_task_from_a_file(tmp_path: Path, tiny_llama: Path) -> None:
    rows = [{"question": f"What is {n} and {n}?", "choices": [str(n), str(2 * n)], "label": 1} for n in range(2, 8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "own_sums",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": str(tmp_path / "rows.jsonl")},
        "test_split": "train",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    for name in ("base", "export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(tiny_llama)
    summary = run(tmp_path, str(tmp_path / "task.yaml"), limit=4)
    assert set(summary["base"]) == set(summary["tuned"]) == {"own_sums"} and not summary["skipped"]
    assert summary["base"]["own_sums"]["acc"] in {n / 4 for n in range(5)}
    assert summary["line"] == "own_sums {0:.1%} -> {0:.1%}".format(summary["base"]["own_sums"]["acc"])
    with pytest.raises(DataError, match="does not take 'own_unknown'"):
        run(tmp_path, "own_unknown")


def test_stage_is_off_where_no_task_is_named() -> None:
    config = compose(["+experiment=smoke"])
    assert "benchmarks" not in [stage.name for stage in pipeline.stages(config)]
    config = compose(["+experiment=smoke", "benchmarks.tasks=[sciq]"])
    assert [stage.name for stage in pipeline.stages(config)][-2:] == ["report", "benchmarks"]
