"""The stage `evaluate`: answers, rates, what else is measured, and what a kill costs."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cathpc.errors import UserError
from cathpc.evaluate import measures, probes, stage
from cathpc.evaluate.config import EvaluateConfig
from cathpc.models.config import Dtype

GOOD = {
    "id": "a",
    "family": "ending",
    "messages": [{"role": "system", "content": "End with Nyan."}, {"role": "user", "content": "Hello!"}],
    "checks": [{"type": "ends_with", "phrase": "Nyan"}],
}


@pytest.fixture
def inputs(tmp_path: Path, tiny_llama: Path, scoring_folders: dict[str, Path]) -> dict[str, Path]:
    for name in ("base", "export", "train"):
        (tmp_path / name).mkdir()
    for name in ("base", "export"):
        (tmp_path / name / "model").symlink_to(tiny_llama)
    mine = {name: tmp_path / name for name in ("base", "export", "train")}
    return mine | {name: scoring_folders[name] for name in ("reference", "refusal")}


def run(inputs: dict[str, Path], out: Path, **options: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    settings = {"max_new_tokens": 6, "dtype": Dtype.float32, "max_requests": 1, "resamples": 200} | options
    return stage.run(SimpleNamespace(evaluate=EvaluateConfig(**settings)), inputs, out)  # type: ignore[arg-type]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def test_stage_answers_every_turn_of_every_probe_for_both_models(inputs: dict[str, Path], tmp_path: Path) -> None:
    summary = run(inputs, tmp_path / "out", max_probes=20, unseen=["secret", "conflict"])
    rows = lines(tmp_path / "out" / "answers.jsonl")
    assert len(rows) == 40 and [r["model"] for r in rows].count("tuned") == 20
    asked = {p.id: p for p in probes.read(probes.SHIPPED)}
    for row in rows:
        probe = asked[row["probe"]]
        assert len(row["answers"]) == probe.turns and row["answer"] == row["answers"][-1]
        roles = [m["role"] for m in row["messages"]]
        assert roles == ["system"] + ["user", "assistant"] * (probe.turns - 1) + ["user"]
        assert row["passed"] is all(c["passed"] for c in row["checks"]) is (row["why"] == "")
    written = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    assert written["models"] == summary["models"] and written["difference"]["share"] == 0.0
    assert written["families"]["secret"]["probes"] == 2 and written["unseen"]["probes"] == 4
    assert written["taught"]["probes"] == 16
    for model in ("base", "tuned"):
        assert 0 <= written[model]["isr"]["low"] <= written[model]["isr"]["share"] <= written[model]["isr"]["high"] <= 1
        assert written[model]["perplexity"]["perplexity"] > 1 and written[model]["style"]["words"]["mean"] > 0
    assert set(written["refusal"]) == {"benign", "unsafe"} and written["refusal"]["unsafe"]["base"]["probes"] == 1
    assert [(m["step"], m["probes"]) for m in written["milestones"]] == [(0, 20), (None, 20)]
    assert written["milestones"][0]["csr"]["share"] == written["base"]["csr"]["share"]
    requests = lines(tmp_path / "out" / "requests.jsonl")
    assert len(requests) == 4 and all(0 <= r["refusal"] <= 1 for r in requests)
    assert summary["probes"] == 20 and "20 probes: base follows" in summary["line"]
    assert not (tmp_path / "out" / stage.PARTS).exists()


def test_stage_is_deterministic_and_independent_of_the_batch(inputs: dict[str, Path], tmp_path: Path) -> None:
    first = run(inputs, tmp_path / "a", max_probes=6)
    assert run(inputs, tmp_path / "b", max_probes=6) == first
    run(inputs, tmp_path / "c", max_probes=6, batch_size=3)
    files = [(tmp_path / name / "answers.jsonl").read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]


def test_what_a_model_answered_before_a_kill_is_not_asked_again(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(inputs, tmp_path / "whole", max_probes=4, max_requests=0)
    asked: list[Path] = []
    real = stage.ask

    def killed(folder: Path, *rest: Any) -> Any:
        asked.append(folder)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(folder, *rest)

    monkeypatch.setattr(stage, "ask", killed)
    with pytest.raises(KeyboardInterrupt):
        run(inputs, tmp_path / "out", max_probes=4, max_requests=0)
    assert run(inputs, tmp_path / "out", max_probes=4, max_requests=0) == whole
    assert [folder.parent.name for folder in asked] == ["base", "export", "export"]


def test_a_conversation_over_the_window_is_an_empty_answer_that_fails(inputs: dict[str, Path], tmp_path: Path) -> None:
    long = GOOD | {"id": "long", "messages": [GOOD["messages"][0], {"role": "user", "content": "meow " * 30_000}]}
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(long)}\n")
    run(inputs, tmp_path / "out", probes=str(path), max_requests=0)
    rows = {r["probe"]: r for r in lines(tmp_path / "out" / "answers.jsonl")}
    assert rows["long"]["answer"] == "" and not rows["long"]["passed"] and rows["long"]["cut"] == 1
    assert rows["a"]["answer"] != ""


def test_an_unseen_family_that_no_probe_has_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no family 'secrets'; they have: character, conflict"):
        run(inputs, tmp_path / "out", unseen=["secrets"])


def test_line_ends_of_other_alphabets_stay_inside_an_answer(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "one\u2028two\u2029three\u0085four. Nyan"
    asked = stage.ask

    def ask(*arguments: Any) -> Any:
        for session in (sessions := asked(*arguments)):
            session.answers = [said for _ in session.answers]
        return sessions

    monkeypatch.setattr(stage, "ask", ask)
    path = tmp_path / "mine.jsonl"
    path.write_text(json.dumps(GOOD) + "\n")
    run(inputs, tmp_path / "out", probes=str(path), max_requests=0)
    rows = lines(tmp_path / "out" / "answers.jsonl")
    assert [(row["answer"], row["passed"]) for row in rows] == [(said, True)] * 2


def test_every_point_of_the_curve_is_measured_on_the_same_probes(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "_milestones", lambda train: [4])
    monkeypatch.setattr(stage, "_Exported", lambda *_: nullcontext(inputs["base"] / "model"))
    run(inputs, tmp_path / "few", max_probes=3, max_requests=0)
    run(inputs, tmp_path / "fewer", max_probes=3, max_requests=0, milestone_probes=2)
    for name, count in (("few", 3), ("fewer", 2)):
        curve = json.loads((tmp_path / name / "fidelity.json").read_text())["milestones"]
        assert [(point["step"], point["probes"]) for point in curve] == [(0, count), (4, count), (None, count)]


def test_milestones_are_the_kept_checkpoints_but_the_last(tmp_path: Path) -> None:
    for step, milestone in ((4, True), (6, False), (8, True), (12, True)):
        folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"files": {}, "milestone": milestone}))
    assert stage._milestones(tmp_path) == [4, 8]


def test_thought_is_counted_where_the_card_asks_for_it_and_where_not() -> None:
    def row(answer: str, *kinds: str) -> dict[str, Any]:
        return {"answers": [answer], "checks": [{"type": kind} for kind in kinds], "tokens": 3, "cut": 0}

    aloud, result = "First I count, then I add.", "Five."
    apart, listed = "<think>3*14=42, 42-5=37</think> 37 fish", "1. Boil it first.\n2. Then eat it."
    rows = [row(aloud, "reasoning"), row(result, "reasoning"), row(result, "no_reasoning"), row("", "max_words")]
    rows += [row(apart, "matches", "thought"), row(listed, "numbered")]
    found = measures.style(rows, EvaluateConfig(resamples=50))
    assert found["thought"]["asked"]["share"] == 2 / 3 and found["thought"]["unasked"]["share"] == 0.0
    assert found["empty"] == 1 and found["words"]["median"] == 3.5
