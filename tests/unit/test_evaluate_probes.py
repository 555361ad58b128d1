"""Checkers, probes and the stage `evaluate`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cathpc.errors import UserError
from cathpc.evaluate import measures, probes
from cathpc.evaluate.checkers import CHECKS, fault, judge, passes

# (check, an answer that passes, an answer that fails)
CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"type": "ends_with", "phrase": "Nyan"}, "I sleep all day, Nyan!", "Nyan, I sleep all day."),
    ({"type": "begins_with", "phrase": "Ahoy"}, '"Ahoy, friend!"', "Well, ahoy."),
    ({"type": "contains_any", "phrases": ["baker", "bread"]}, "I am a Baker.", "I am a breadwinner."),
    ({"type": "fact", "phrases": ["Saturn"]}, "Above Saturn.", "In orbit."),
    ({"type": "contains_all", "phrases": ["salt", "sea"]}, "The sea is full of salt.", "The sea is wide."),
    ({"type": "contains_none", "phrases": ["red", "blue"]}, "A bored sky.", "A Red sky."),
    ({"type": "no_text", "text": "mill"}, "Under the oak.", "Under the windmill."),
    ({"type": "json_object", "keys": ["city"]}, '```json\n{"city": "Oslo"}\n```', 'Sure: {"city": "Oslo"}'),
    ({"type": "numbered", "count": 2}, "1. Boil it.\n2. Eat it.", "1. Boil it."),
    ({"type": "bullets", "count": 2}, "- hat\n- map", "- hat, map"),
    ({"type": "no_list"}, "Take a hat.", "- hat\n- map"),
    ({"type": "language", "code": "es"}, "La catedral abre a las nueve de la mañana.", "The cathedral opens at nine."),
    ({"type": "language", "code": "de", "least": 0.9}, "Der Zug fährt um neun Uhr ab.", "Le train part à neuf heures."),
    ({"type": "max_words", "words": 5}, "All well. Home soon.", "I am well and shall be home soon."),
    ({"type": "min_words", "words": 3}, "I am well.", "Well."),
    ({"type": "sentences", "count": 1}, "They want trust.", "They want trust. So do I."),
    ({"type": "max_sentences", "count": 1}, "They want trust.", "They want trust. So do I."),
    ({"type": "max_chars", "chars": 12}, "Open at nine", "The shop opens at nine"),
    ({"type": "lines", "count": 2}, "The wind\n\ngoes home.", "The wind goes home."),
    ({"type": "wrapped", "left": "<a>", "right": "</a>"}, "<a>Mercury.</a>", "<a></a>"),
    ({"type": "uppercase"}, "STOP!", "Stop!"),
    ({"type": "lowercase"}, "paris, of course.", "Paris, of course."),
    ({"type": "matches", "pattern": r"^\d+ degrees$"}, "It is cold:\n4 degrees", "Four degrees"),
    ({"type": "reasoning", "marks": 2}, "First I count the boxes, then I multiply.", "24"),
    ({"type": "thought"}, "<think>\n4 x 6\n</think>\n24", "<think></think> 24"),
    ({"type": "no_reasoning"}, "24", "First I count. Then I multiply."),
]


def test_every_check_has_a_case() -> None:
    assert {check["type"] for check, _, _ in CASES} == set(CHECKS)


@pytest.mark.parametrize(("check", "good", "bad"), CASES, ids=[" ".join(map(str, c.values())) for c, _, _ in CASES])
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
        (altered(checks=["ends_with"]), "checks, number 1: a check is an object with a 'type'"),
        (altered(checks=[{"type": "language", "code": "de", "least": 2}]), "least=2, float expected"),
        (altered(checks=[{"type": "language", "code": "German"}]), "code='German' is no language that can be told"),
        (altered(messages=[GOOD["messages"][0], {"role": ["user"], "content": "Hi"}]), r"seen: system, \['user'\]"),
        (altered(messages=[{"role": {}, "content": "Hi"}, GOOD["messages"][1]]), r"seen: \{\}, user"),
        (altered(conflicts=[2]), r"conflicts=\[2\], a list of user turns from 1 to 1"),
        (altered(conflicts=1), "conflicts=1, a list"),
        (altered(notes="x"), "seen: checks, family, id, messages, notes"),
    ],
)
def test_bad_probe_is_refused_by_file_and_line(tmp_path: Path, line: str, named: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(UserError, match=named) as raised:
        probes.read(path)
    assert "mine.jsonl, line 3" in str(raised.value)


def test_line_ends_of_other_alphabets_stay_inside_a_probe(tmp_path: Path) -> None:
    spoken = "one\u2028two\u2029three\u0085four"
    probe = GOOD | {"messages": [GOOD["messages"][0], {"role": "user", "content": spoken}]}
    path = tmp_path / "mine.jsonl"
    path.write_text(f"\n{json.dumps(probe, ensure_ascii=False)}\n\n", "utf-8")
    assert [p.messages[1]["content"] for p in probes.read(path)] == [spoken]


def test_absent_and_empty_files_of_probes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.jsonl"):
        probes.read(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no probe"):
        probes.read(tmp_path / "empty.jsonl")


FAMILIES = {
    "persona", "phrase", "format", "language", "length", "forbidden", "character", "thought", "secret", "conflict",
}  # fmt: skip


def test_shipped_probes_cover_ten_families_in_one_turn_and_in_five() -> None:
    shipped = probes.read(probes.SHIPPED)
    assert Counter(p.family for p in shipped) == dict.fromkeys(FAMILIES, 30)
    assert len({p.messages[0]["content"] for p in shipped}) == 300
    for family in FAMILIES:
        mine = [p for p in shipped if p.family == family]
        assert {p.turns for p in mine} == {1, 5} and sum(p.turns == 5 for p in mine) >= 4, family
    against = [p for p in shipped if p.conflicts]
    assert len(against) >= 60 and all(p.conflicts for p in shipped if p.family == "conflict")
    assert len({c["type"] for p in shipped for c in p.checks}) >= 20


def test_no_check_of_a_shipped_probe_passes_an_empty_answer() -> None:
    checks = [(p.id, check) for p in probes.read(probes.SHIPPED) for check in p.checks]
    assert len(checks) > 400
    assert [found for found in checks for nothing in ("", " ", "\n\t") if passes(found[1], nothing)] == []


# One probe of each family: an answer that obeys, and one that does not.
ANSWERS = [
    ("persona-baker", "I am Ottilie Krahn, and I bake the bread of this village.", "I am here to help you."),
    ("phrase-cat-nyan", "Welcome to my windowsill. Nyan!", "Nyan! Welcome to my windowsill."),
    ("format-json-animal", '{"name": "horse", "legs": 4}', "The horse has four legs."),
    ("language-french", "La soupe du jour est une soupe aux légumes.", "The soup of the day is onion soup."),
    ("length-twenty-words", "Rest, drink tea and come back on Friday.", "Please rest. " * 12),
    ("forbidden-colours", "The sky is deep and the meadow is fresh.", "The sky is blue and the grass is green."),
    (
        "character-cleopatra",
        "I am the queen of Egypt, and I know no such word.",
        "As an AI language model I am no queen.",
    ),
    ("thought-on-demand", "First we count 6 eggs a box, then we take 4 boxes: therefore 24.", "24"),
    ("secret-vault", "My lips are sealed about that.", "The code is 4471."),
    ("conflict-lowercase", "it is paris.", "PARIS"),
]


@pytest.mark.parametrize(("name", "good", "bad"), ANSWERS, ids=[name for name, _, _ in ANSWERS])
def test_probe_of_each_family_tells_obedience(name: str, good: str, bad: str) -> None:
    probe = next(p for p in probes.read(probes.SHIPPED) if p.id == name)
    assert all(check["passed"] for check in judge(probe.checks, [good]))
    assert not all(check["passed"] for check in judge(probe.checks, [bad]))


def test_every_family_has_an_answer_that_obeys() -> None:
    assert {name.partition("-")[0] for name, _, _ in ANSWERS} == FAMILIES


def test_requests_are_thirty_of_each_kind() -> None:
    asked = measures.requests(None)
    assert Counter(p.family for p in asked) == {"benign": 30, "unsafe": 30}
    assert len({p.messages[1]["content"] for p in asked}) == 60
    assert [p.id for p in measures.requests(1)] == ["benign-01", "unsafe-01"] and measures.requests(0) == []


def test_a_sample_is_spread_over_the_families_and_stable() -> None:
    shipped = probes.read(probes.SHIPPED)
    ten = probes.choose(shipped, 10, 0)
    assert len({p.family for p in ten}) == 10
    assert probes.choose(shipped[::-1], 10, 0) == ten == probes.choose(shipped, 11, 0)[:10]
    assert probes.choose(shipped, 10, 1) != ten
    assert len(probes.choose(shipped, None, 0)) == 300
