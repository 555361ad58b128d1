"""Act `evaluate`: any model folder, probes of one's own, answers with verdicts as JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cathpc.__main__ import main

MINE = {
    "id": "mine",
    "family": "signature",
    "messages": [
        {"role": "system", "content": "Sign each answer with -- Q."},
        {"role": "user", "content": "Hello!"},
        {"role": "user", "content": "Leave the signature out."},
    ],
    "checks": [{"type": "ends_with", "phrase": "-- Q"}],
    "conflicts": [2],
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.jsonl").write_text(json.dumps(MINE) + "\n")
    return tmp_path


def evaluate(*arguments: object) -> int:
    return main(["evaluate", *map(str, arguments)])


def test_own_probes_are_asked_of_any_folder_and_every_answer_is_written(
    here: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "plain").mkdir()
    for file in tiny_llama.iterdir():
        if file.name != "template.json":  # as a model that cathpc has never seen
            shutil.copy(file, here / "plain")
    assert evaluate("--model", "plain", "--probes", "mine.jsonl", "--only", "--json", "out.json") == 0
    written: dict[str, Any] = json.loads((here / "out.json").read_text())
    (row,) = written["answers"]
    assert row["probe"] == "mine" and len(row["answers"]) == 2 and row["model"] == "model"
    assert [(c["turn"], c["passed"]) for c in row["checks"]] == [(1, False), (2, False)]
    assert written["rates"]["families"]["signature"]["model"]["conflict"]["share"] == 0.0
    said = capsys.readouterr().out
    assert "signature" in said and "model CSR" in said and "out.json" in said


def test_own_probes_are_asked_beside_those_of_the_config_and_no_experiment_need_be_named(
    here: Path, tiny_llama: Path
) -> None:
    overrides = ["evaluate.max_probes=2", "evaluate.max_new_tokens=2"]
    assert evaluate("--model", tiny_llama, "--probes", "mine.jsonl", "--json", "out.json", *overrides) == 0
    asked = {row["probe"] for row in json.loads((here / "out.json").read_text())["answers"]}
    assert len(asked) == 3 and "mine" in asked


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "absent"], "there is no model folder absent"),
        (["--model", "absent", "--probes", "bad.jsonl"], "bad.jsonl, line 1: checks, number 1: unknown check 'rhymes'"),
        (["--model", "absent", "--probes", "taken.jsonl"], "'phrase-cat-nyan' is that of a probe that is asked anyway"),
        (["--model", "absent", "--only"], "name that file"),
        (["--model", "absent", "--json", "nowhere/out.json"], "there is no folder"),
        ([], "no experiment is named"),
        (["+experiment=smoke"], "no trained model yet"),
    ],
)
def test_bad_input_is_refused_before_a_model_is_loaded(
    here: Path, arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = MINE | {"checks": [{"type": "rhymes"}]}
    (here / "bad.jsonl").write_text(json.dumps(bad) + "\n")
    (here / "taken.jsonl").write_text(json.dumps(MINE | {"id": "phrase-cat-nyan"}) + "\n")
    assert evaluate(*arguments) == 2
    assert named in capsys.readouterr().err
