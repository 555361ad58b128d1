"""`explain` and `diff` on runs whose pull and select are real; scores and models are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cathpc import acts
from cathpc.config import as_plain, compose, run_name
from cathpc.data import judged, pull, select
from cathpc.data.config import DatasetConfig, Format, SelectConfig, SourceConfig
from cathpc.errors import UserError
from cathpc.record import SCORE_SCHEMA, Record, Score

FIGURES = {"nll": 1.0, "pool_nll": 1.5, "perplexity": 2.7, "contrast": 0.5, "tokens": 99, "answer_tokens": 60}
FIGURES |= {"correlatives": 2, "steps": 1, "turn_tokens": 60.0, "diagnosis": 0.4}


def finish(folder: Path, stage: str, config: Any, summary: dict[str, Any]) -> None:
    manifest = {"fingerprint": folder.name, "digest": "d" * 16, "config": config, "summary": summary}
    (folder / "manifest.json").write_text(json.dumps({"stage": stage, "inputs": {}, **manifest}))


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs 'loose' and 'strict' over one pull; ids of a good, a refusing and a borderline record, in this order."""
    monkeypatch.chdir(tmp_path)
    answers = ["Because it is so.", "I cannot help.", "If so, then so."]
    rows = [{"prompt": f"Why {i}?", "response": answer} for i, answer in enumerate(answers)]
    lines = [*map(json.dumps, rows), json.dumps(rows[0]), "{broken"]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    source = SourceConfig(path="rows.jsonl", license="mit", format=Format.prompt_response, generator="gpt-4")
    dataset: Any = SimpleNamespace(dataset=DatasetConfig(root=str(tmp_path), sources={"mine": source}))
    folders = {
        name: tmp_path / "store" / name / ("f" * 16) for name in ("pull", "score", "reference", "pool", "refusal")
    }
    for folder in folders.values():
        folder.mkdir(parents=True)
    finish(folders["pull"], "pull", {}, pull.run(dataset, {}, folders["pull"]))
    for name in ("reference", "pool", "refusal"):
        config = {"refusal" if name == "refusal" else "gpt": {"base": f"./{name}-base"}}
        finish(folders[name], name, config, {"line": f"{name} is good"})
    ids = pq.read_table(folders["pull"] / "records" / "records-00000.parquet")["id"].to_pylist()
    scored = [
        {**dict.fromkeys(SCORE_SCHEMA.names), "id": i, "status": "ok", "language": "en", "refusal": r, **FIGURES}
        for i, r in zip(ids, (0.01, 0.9, 0.15), strict=True)
    ]
    (folders["score"] / "scores").mkdir()
    table = pa.Table.from_pylist(scored, schema=SCORE_SCHEMA)
    pq.write_table(table, folders["score"] / "scores" / "scores-00000.parquet")
    finish(folders["score"], "score", {}, {})
    for name, limit in (("loose", 0.2), ("strict", 0.1)):
        settings = SelectConfig(refusal_max=limit, drop_quality=0.0)
        out = tmp_path / "store" / "select" / name
        out.mkdir(parents=True)
        given: Any = SimpleNamespace(select=settings)
        finish(out, "select", {"select": as_plain(settings)}, select.run(given, folders, out))
        links = tmp_path / "runs" / name / "stages"
        links.mkdir(parents=True)
        for stage, folder in {**folders, "select": out}.items():
            (links / stage).symlink_to(folder)
    return list(ids)


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    act, arguments = acts.pick(list(words))
    assert act.main(arguments) == 0
    return capsys.readouterr().out


def test_explain_gives_source_scores_models_and_how_far_the_rule_was(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(said(capsys, "explain", runs[1], "--run", "loose", "--json"))
    assert found["record"]["origin"] == "rows.jsonl:2" and found["record"]["license"] == "mit"
    assert found["score"]["refusal"] == 0.9 and found["score"]["diagnosis"] == 0.4
    assert found["models"]["refusal"] == {
        "fingerprint": "f" * 16, "digest": "d" * 16, "base": "./refusal-base", "line": "refusal is good"
    }  # fmt: skip
    rules = {rule["rule"]: rule for rule in found["rules"]}
    assert rules["refusal"] | {"off": None} == {
        "rule": "refusal", "passes": False, "value": 0.9, "threshold": 0.2, "off": None
    }  # fmt: skip
    assert rules["refusal"]["off"] == pytest.approx(0.7)
    assert rules["too_short"]["passes"] and rules["too_short"]["off"] == 50
    text = said(capsys, "explain", runs[1][:8], "--run", "loose")
    assert "dropped by the rule refusal" in text and "I cannot help." in text and "0.7" in text


def judge(score: Score, component: str = "general", *, settings: SelectConfig | None = None) -> dict[str, Any]:
    """Rule -> what it saw of a record with this score, whose window had 300 tokens."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    record = Record(score.id, "s", component, turns).row()
    table = pa.Table.from_pylist([vars(score)], schema=SCORE_SCHEMA)
    verdict = {"kept": False, "rule": "status", "value": None, "threshold": None}
    seen = judged.rules(settings or SelectConfig(), {}, record, table, verdict, 300)
    return {row["rule"]: row for row in seen}


def test_what_was_not_measured_passes_no_rule_and_fails_none() -> None:
    seen = judge(Score("a", "too_long", tokens=400, answer_tokens=350), settings=SelectConfig(min_quality=0.1))
    assert {name: row["passes"] for name, row in seen.items()} == {
        "status": False, "too_short": True, "too_long": True,
        "language": None, "no_correlative": None, "refusal": None, "low_quality": None,
    }  # fmt: skip
    assert (seen["status"]["value"], seen["status"]["threshold"], seen["status"]["off"]) == (400, 300, 100)
    counts = {"tokens": 40, "answer_tokens": 30, "correlatives": 0, "steps": 0, "diagnosis": 0.1, "language": "en"}
    seen = judge(Score("b", "skipped", **counts))
    assert seen["status"]["passes"] and seen["status"]["threshold"] is None
    assert seen["language"]["passes"] and not seen["no_correlative"]["passes"] and seen["refusal"]["passes"] is None
    assert {row["passes"] for row in judge(Score("c", "broken")).values()} == {False, None}


def test_a_rule_about_another_component_is_not_listed() -> None:
    fine = Score("a", **{"language": "en", "refusal": 0.0, **FIGURES})
    settings = SelectConfig(health_min_diagnosis=0.5)
    about = {c: judge(fine, c, settings=settings).keys() for c in ("general", "reasoning", "health")}
    assert about["reasoning"] - about["general"] == {"cot_short"}
    assert about["health"] - about["general"] == {"health_short", "health_vague"}


def test_explain_takes_the_window_from_the_scores_and_says_what_was_not_measured(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    scores = Path("runs/loose/stages/score").resolve()
    path = scores / "scores" / "scores-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0] = {**dict.fromkeys(SCORE_SCHEMA.names), "id": runs[0], "status": "too_long", "tokens": 900}
    pq.write_table(pa.Table.from_pylist(rows, schema=SCORE_SCHEMA), path)
    for manifest in (({"score": {"window": 512}}, {}), ({"score": {"window": 9000}}, {"window": 512})):
        finish(scores, "score", *manifest)
        found = json.loads(said(capsys, "explain", runs[0], "--run", "loose", "--json"))
        assert found["rules"][0] == {"rule": "status", "passes": False, "value": 900, "threshold": 512, "off": 388}
    text = said(capsys, "explain", runs[0], "--run", "loose")
    assert "refusal         not measured" in text and "388" in text


def test_explain_knows_what_repeats_a_record_and_rows_that_never_were_one(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(said(capsys, "explain", runs[0], "--run", "loose", "--json"))
    assert [(r["origin"], r["reason"]) for r in found["rejects"]] == [("rows.jsonl:4", "duplicate")]
    assert found["verdict"]["kept"]
    assert "not_json" in said(capsys, "explain", "rows.jsonl:5", "--run", "loose")
    assert runs[2] in said(capsys, "explain", "rows.jsonl:3", "--run", "loose")


def test_explain_of_nothing_says_where_names_are(runs: list[str]) -> None:
    with pytest.raises(UserError, match=r"loose knows no record 'ffffffffff'.*rejects\.jsonl"):
        acts.pick(["explain", "ffffffffff", "--run", "loose"])[0].main(
            acts.pick(["explain", "ffffffffff", "--run", "loose"])[1]
        )


def test_diff_shows_what_moved_by_which_rule_and_setting(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(capsys, "diff", "loose", "strict", "--json"))
    assert found["settings"] == {"refusal_max": [0.2, 0.1]} and found["same"] == 2
    assert found["moves"] == [{"from": "kept", "to": "refusal", "records": 1, "examples": [runs[2]]}]
    assert found["components"] == {"general": {"a": 2, "b": 1, "left": 1, "joined": 0}}
    text = said(capsys, "diff", "loose", "strict")
    assert "select.refusal_max: 0.2 -> 0.1" in text and f"explain {runs[2]} --run strict" in text


def test_diff_of_selections_of_other_records_says_who_was_not_there(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    verdicts = Path("runs/strict/stages/select").resolve() / "verdicts.parquet"
    pq.write_table(pq.read_table(verdicts).slice(1), verdicts)
    found = json.loads(said(capsys, "diff", "loose", "strict", "--json"))
    assert {(m["from"], m["to"]) for m in found["moves"]} == {("kept", "not there"), ("kept", "refusal")}


def test_a_run_that_is_not_there_is_named_with_those_that_are(runs: list[str]) -> None:
    act, arguments = acts.pick(["diff", "loose", "stric"])
    with pytest.raises(UserError, match=r"there is no run 'stric'.*Did you mean: strict"):
        act.main(arguments)


@pytest.mark.parametrize(
    "words", [["+experiment=demo", "select.refusal_max=0.1"], ["loose", "strict", "+experiment=demo"]]
)
def test_diff_of_one_run_or_of_three_is_refused(runs: list[str], words: list[str]) -> None:
    act, arguments = acts.pick(["diff", *words])
    with pytest.raises(UserError, match=r"diff compares two runs.*names [13]\."):
        act.main(arguments)


def test_diff_takes_the_overrides_of_the_second_run(
    runs: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    overrides = ["+experiment=smoke", "select.refusal_max=0.1", f"paths.runs={tmp_path / 'runs'}"]
    name = run_name(compose(overrides), overrides)
    (tmp_path / "runs" / "strict").rename(tmp_path / "runs" / name)
    found = json.loads(said(capsys, "diff", "loose", *overrides, "--json"))
    assert found["runs"] == ["loose", name] and found["settings"] == {"refusal_max": [0.2, 0.1]}


def test_a_run_is_not_compared_with_itself(runs: list[str]) -> None:
    act, arguments = acts.pick(["diff", "loose", "loos*"])
    with pytest.raises(UserError, match="names the run loose twice"):
        act.main(arguments)


def test_a_pattern_that_names_several_runs_is_refused_with_their_names(runs: list[str]) -> None:
    act, arguments = acts.pick(["explain", runs[0], "--run", "*"])
    with pytest.raises(UserError, match=r"'\*' names 2 runs; give one of: loose, strict"):
        act.main(arguments)


def test_explain_of_a_run_without_a_finished_selection_gives_the_scores(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    link = Path("runs/loose/stages/select")
    (link.resolve() / "manifest.json").unlink()  # its verdicts are there, and may be half of them
    found = json.loads(said(capsys, "explain", runs[0], "--run", "loose", "--json"))
    assert found["score"]["refusal"] == 0.01 and "verdict" not in found
    link.unlink()
    text = said(capsys, "explain", runs[0], "--run", "loose")
    assert "refusal 0.01" in text and "rule" not in text


def test_explain_knows_that_a_kept_record_passed_the_population(
    runs: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    settings = SelectConfig(population=0.9, drop_quality=0.5)
    out = Path("runs/loose/stages/select").resolve()
    (out / "manifest.json").unlink()
    inputs = {name: tmp_path / "store" / name / ("f" * 16) for name in ("pull", "score")}
    given: Any = SimpleNamespace(select=settings)
    finish(out, "select", {"select": as_plain(settings)}, select.run(given, inputs, out))
    kept, refused = (
        {rule["rule"]: rule["passes"] for rule in found["rules"]}
        for found in (json.loads(said(capsys, "explain", i, "--run", "loose", "--json")) for i in runs[:2])
    )
    assert kept["population"] is True and kept["quality"] is True
    assert refused["refusal"] is False and refused["population"] is None
