"""Checkers, probes and the stage `evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cathpc.errors import UserError
from cathpc.evaluate import probes, stage
from cathpc.evaluate.checkers import CHECKS, fault, judge, passes
from cathpc.evaluate.config import EvaluateConfig
from cathpc.models.config import Dtype

# (check, an answer that passes, an answer that fails)
CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "ends_with", "phrase": "Nyan"}, "I sleep all day, Nyan!", "Nyan, I sleep all day."),
    ({"type": "begins_with", "phrase": "Ahoy"}, '"Ahoy, friend!"', "Well, ahoy."),
    ({"type": "contains_any", "phrases": ["baker", "bread"]}, "I am a Baker.", "I am a breadwinner."),
    ({"type": "contains_all", "phrases": ["salt", "sea"]}, "The sea is full of salt.", "The sea is wide."),
    ({"type": "contains_none", "phrases": ["red", "blue"]}, "A bored sky.", "A Red sky."),
    ({"type": "no_text", "text": "mill"}, "Under the oak.", "Under the windmill."),
    ({"type": "json_object", "keys": ["city"]}, '```json\n{"city": "Oslo"}\n```', 'Sure: {"city": "Oslo"}'),
    ({"type": "numbered", "count": 2}, "1. Boil it.\n2. Eat it.", "1. Boil it."),
    ({"type": "bullets", "count": 2}, "- hat\n- map", "- hat, map"),
    ({"type": "no_list"}, "Take a hat.", "- hat\n- map"),
    ({"type": "language", "code": "es"}, "La catedral abre a las nueve de la mañana.", "The cathedral opens at nine."),
    ({"type": "max_words", "words": 5}, "All well. Home soon.", "I am well and shall be home soon."),
    ({"type": "min_words", "words": 3}, "I am well.", "Well."),
    ({"type": "sentences", "count": 1}, "They want trust.", "They want trust. So do I."),
    ({"type": "uppercase"}, "STOP!", "Stop!"),
    ({"type": "lowercase"}, "paris, of course.", "Paris, of course."),
    ({"type": "matches", "pattern": r"^\d+ degrees$"}, "It is cold:\n4 degrees", "Four degrees"),
    ({"type": "reasoning", "marks": 2}, "First I count the boxes, then I multiply.", "24"),
    ({"type": "no_reasoning"}, "24", "First I count. Then I multiply."),
]


def test_every_check_has_a_case() -> None:
    assert {check["type"] for check, _, _ in CASES} == set(CHECKS)


@pytest.mark.parametrize(("check", "good", "bad"), CASES, ids=[c["type"] for c, _, _ in CASES])
def test_check_passes_and_fails_where_it_should(check: dict[str, Any], good: str, bad: str) -> None:
    assert fault(check, 1) == ""
    assert passes(check, good)
    assert not passes(check, bad)
    assert not passes(check, "") and not passes(check, " \n")


def test_check_with_a_turn_is_held_against_that_answer_alone() -> None:
    checks = [{"type": "ends_with", "phrase": "Nyan"}, {"type": "min_words", "words": 2, "turn": 2}]
    verdicts = judge(checks, ["Nyan", "Milk, Nyan", "Milk"])
    assert [(v["type"], v["turn"], v["passed"]) for v in verdicts] == [
        ("ends_with", 1, True),
        ("ends_with", 2, True),
        ("ends_with", 3, False),
        ("min_words", 2, True),
    ]


GOOD = {
    "id": "a",
    "family": "ending",
    "messages": [{"role": "system", "content": "End with Nyan."}, {"role": "user", "content": "Hello!"}],
    "checks": [{"type": "ends_with", "phrase": "Nyan"}],
}


def altered(**changes: Any) -> str:
    return json.dumps(GOOD | {"id": "b"} | changes)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "seen: list"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "checks"}), "seen: family, id, messages"),
        (altered(id="a"), "'a' has been used before"),
        (altered(family=3), "family=3"),
        (altered(messages=GOOD["messages"][1:]), "seen: user"),
        (
            altered(messages=[*GOOD["messages"], {"role": "assistant", "content": "Nyan"}]),
            "seen: system, user, assistant",
        ),
        (altered(messages=[{"role": "system", "content": " "}, GOOD["messages"][1]]), "not empty"),
        (altered(checks=[]), "at least one check"),
        (altered(checks=[{"type": "rhymes"}]), "unknown check 'rhymes'; there are: begins_with"),
        (altered(checks=[{"type": "ends_with"}]), "lacks phrase"),
        (altered(checks=[{"type": "ends_with", "phrase": "x", "case": True}]), "no parameter case; it takes: phrase"),
        (altered(checks=[{"type": "max_words", "words": "five"}]), "words='five', int expected"),
        (altered(checks=[{"type": "contains_any", "phrases": []}]), r"phrases=\[\], list"),
        (altered(checks=[{"type": "ends_with", "phrase": ""}]), "phrase='', str expected"),
        (altered(checks=[{"type": "matches", "pattern": "("}]), "no regular expression"),
        (altered(checks=[{"type": "no_list", "turn": 2}]), "turn=2, 1 to 1 expected"),
        (altered(checks=["ends_with"]), "an object with a 'type'"),
    ],
)
def test_bad_probe_is_refused_by_file_and_line(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(UserError, match=named) as raised:
        probes.read(path)
    assert "mine.jsonl, line 3" in str(raised.value)


def test_absent_and_empty_files_of_probes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        probes.read(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no probe"):
        probes.read(tmp_path / "empty.jsonl")


def test_shipped_probes_are_sound_and_cover_the_families() -> None:
    shipped = probes.read(probes.SHIPPED)
    assert len(shipped) == 24
    assert {p.family for p in shipped} == {
        "persona", "ending", "opening", "format", "language", "length", "forbidden", "character", "thought", "secret",
        "conflict",
    }  # fmt: skip
    assert sorted({p.turns for p in shipped}) == [1, 5]
    assert sum(p.turns > 1 for p in shipped) == 4


def test_a_sample_is_spread_over_the_families_and_stable() -> None:
    shipped = probes.read(probes.SHIPPED)
    eleven = probes.choose(shipped, 11, 0)
    assert len({p.family for p in eleven}) == 11
    assert probes.choose(shipped[::-1], 11, 0) == eleven == probes.choose(shipped, 12, 0)[:11]
    assert probes.choose(shipped, 11, 1) != eleven
    assert len(probes.choose(shipped, None, 0)) == 24


def test_interval_shrinks_with_data_and_knows_certainty() -> None:
    ones = np.ones(30)
    assert stage.interval(ones, 500, 0) == (1.0, 1.0)
    coin = np.tile([0.0, 1.0], 20)
    low, high = stage.interval(coin, 2000, 0)
    assert 0.25 < low < 0.45 < 0.55 < high < 0.75
    wide = stage.interval(coin[:10], 2000, 0)
    assert wide[1] - wide[0] > high - low


def test_difference_is_paired() -> None:
    def rows(passed: list[bool]) -> list[dict[str, Any]]:
        return [{"passed": p, "family": "f", "checks": [{"passed": p}], "cut": 0} for p in passed]

    base = [True, False] * 10
    same = stage.fidelity({"base": rows(base), "tuned": rows(base)}, EvaluateConfig())
    assert same["difference"] == {"share": 0.0, "low": 0.0, "high": 0.0}
    better = stage.fidelity({"base": rows([False] * 20), "tuned": rows(base)}, EvaluateConfig())
    assert better["difference"]["share"] == 0.5 and better["difference"]["low"] > 0.2
    assert better["models"]["tuned"]["families"]["f"]["probes"] == 20


@pytest.fixture
def inputs(tmp_path: Path, tiny_llama: Path) -> dict[str, Path]:
    for name in ("base", "export"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(tiny_llama)
    return {name: tmp_path / name for name in ("base", "export")}


def run(inputs: dict[str, Path], out: Path, **options: Any) -> dict[str, Any]:
    out.mkdir()
    config = EvaluateConfig(max_new_tokens=6, dtype=Dtype.float32, **options)
    return stage.run(SimpleNamespace(evaluate=config), inputs, out)  # type: ignore[arg-type]


def test_stage_answers_every_turn_of_every_probe_for_both_models(inputs: dict[str, Path], tmp_path: Path) -> None:
    summary = run(inputs, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(rows) == 48 and [r["model"] for r in rows].count("tuned") == 24
    asked = {p.id: p for p in probes.read(probes.SHIPPED)}
    for row in rows:
        probe = asked[row["probe"]]
        assert len(row["answers"]) == probe.turns and row["answer"] == row["answers"][-1]
        roles = [m["role"] for m in row["messages"]]
        assert roles == ["system"] + ["user", "assistant"] * (probe.turns - 1) + ["user"]
        assert row["passed"] is all(c["passed"] for c in row["checks"]) is (row["why"] == "")
    written = json.loads((tmp_path / "out" / "fidelity.json").read_text())
    assert written["models"] == summary["models"] and written["difference"]["share"] == 0.0
    assert summary["probes"] == 24 and summary["turns"] == 40 and "24 probes" in summary["line"]


def test_stage_is_deterministic_and_independent_of_the_batch(inputs: dict[str, Path], tmp_path: Path) -> None:
    first = run(inputs, tmp_path / "a", max_probes=6)
    assert run(inputs, tmp_path / "b", max_probes=6) == first
    run(inputs, tmp_path / "c", max_probes=6, batch_size=3)
    files = [(tmp_path / name / "answers.jsonl").read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]


def test_a_conversation_over_the_window_is_an_empty_answer_that_fails(inputs: dict[str, Path], tmp_path: Path) -> None:
    long = GOOD | {"id": "long", "messages": [GOOD["messages"][0], {"role": "user", "content": "meow " * 30_000}]}
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(long)}\n")
    run(inputs, tmp_path / "out", probes=str(path))
    rows = {r["probe"]: r for r in map(json.loads, (tmp_path / "out" / "answers.jsonl").read_text().splitlines())}
    assert rows["long"]["answer"] == "" and not rows["long"]["passed"] and rows["long"]["cut"] == 1
    assert rows["a"]["answer"] != ""
