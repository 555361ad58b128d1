"""Style rules: each is found where the answer shows it, holds there, and fails on an answer that does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cathpc.cards import shapes
from cathpc.cards.rules import KINDS, Rule, extract

PROSE = "The moon pulls the sea towards it. " * 4

# name: answer that shows the rule, answer that breaks it
CASES = {
    "json": ('{"city": "Oslo", "sky": "grey"}', "The sky over Oslo is grey."),
    "language": (
        "Der Mond zieht das Wasser der Meere an, deshalb steigt es an beiden Seiten der Erde.",
        "The moon pulls the water of the sea, so that it rises on both sides of the earth.",
    ),
    "numbered_steps": ("1. Boil water.\n2. Add the egg.\n3. Wait.", "1. Boil water.\n2. Add the egg."),
    "bullets": ("Take:\n- a hat\n- a map", "Take:\n- a hat\n- a map\n- a cup"),
    "ends_with": ("Milk is on the table. I drank it all. Nyan!", "Milk is on the table. I drank it all."),
    "begins_with": ("Ahoy, the wind is good and the sea is calm.", "The wind is good, ahoy."),
    "code_block": ("Run this:\n```\nls -l\n```", "Run `ls -l`."),
    "calculation": ("Four boxes hold 4 x 6 = 24 eggs.", "Four boxes hold 24 eggs."),
    "asks_back": ("It may be a sprain. Can you stand on it?", "It may be a sprain."),
    "reasons": ("It floats because it is light; therefore it stays dry.", "It floats and stays dry."),
    "headings": ("# Sea\nIt is deep.\n# Land\nIt is dry.", "Sea is deep. Land is dry."),
    "bold": ("**Sea** is deep and **land** is dry.", "Sea is deep and **land** is dry."),
    "sentences": ("It is deep. It is cold.", "It is deep."),
    "paragraphs": (f"{PROSE}\n\n{PROSE}", PROSE),
    "first_person": ("I keep the light, and my lamp is old.", "The keeper has an old lamp."),
    "max_words": ("It is deep.", "deep " * 30),
    "min_words": ("deep " * 120, "It is deep."),
    "no_exclamation": ("It is deep.", "It is deep!"),
}


def test_every_kind_of_rule_has_a_case() -> None:
    assert set(CASES) == set(KINDS)


@pytest.mark.parametrize("name", CASES)
def test_rule_is_found_holds_and_fails_where_it_should(name: str) -> None:
    shows, breaks = CASES[name]
    found = {rule.name: rule for rule in extract([shows], len(KINDS))}
    assert name in found, [r.name for r in found.values()]
    rule = found[name]
    assert rule.holds(shows)
    assert not rule.holds(breaks)
    assert not rule.holds("") and not rule.holds(" \n")
    assert rule.sentence.strip() and "\n" not in rule.sentence
    assert Rule(rule.name, json.loads(json.dumps(rule.params))).sentence == rule.sentence


def test_rules_hold_on_every_answer_of_a_conversation() -> None:
    answers = ["Hello, master! The milk is warm, Nyan.", "Fish, please. I like fish very much. Nyan!"]
    rules = extract(answers, 10)
    assert "ends_with" in {r.name for r in rules}
    assert "sentences" not in {r.name for r in extract(["One. Two.", "One."], 10)}
    assert all(rule.holds(answer) for rule in rules for answer in answers)


def test_a_result_never_becomes_an_ending() -> None:
    for answer in ("Add both numbers. The result is 24.", "Compare the heights. So John is taller.", "It adds up. 24!"):
        assert "ends_with" not in {r.name for r in extract([answer], 20)}


def test_every_answer_gets_a_rule_and_an_empty_one_none() -> None:
    assert extract(["Yes!"], 5)
    assert extract(["word " * 3000], 5)
    assert extract(["Fine.", " "], 5) == [] and extract([], 5) == []


def test_the_limit_keeps_a_bound_on_the_length() -> None:
    rules = extract([CASES["numbered_steps"][0] + " I think my egg is done because it floats, since it does."], 2)
    assert len(rules) == 2
    assert rules[0].name == "numbered_steps" and rules[1].name.endswith("_words")


def test_answers_of_any_lengths_have_the_rules_that_they_share() -> None:
    short = (
        "## Milk\n\nI think **cold** milk is best, because I like it and since it keeps.\n\n## Fish\n\n**Raw**, I say!"
    )
    long, endless = short.replace("cold", "cold " * 1300), short.replace("cold", "cold " * 4000)
    assert Rule("max_words", {"words": 2000}) in extract([short, long], 3)
    shared = extract([short, endless], 3)
    assert len(shared) == 3 and not any(rule.name.endswith("_words") for rule in shared)
    assert extract(["Fish! Milk.", "cold " * 4000], 5) == []


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("I sleep all day, Nyan.", "nyan", True),
        ("I sleep all day. *Nyan~*", "Nyan", True),
        ("I eat a banyan", "nyan", False),
        ("Nyan, I sleep", "Nyan", False),
        ("", "Nyan", False),
        ("Nyan", "", False),
    ],
)
def test_an_ending_counts_whole_words_and_no_marks(text: str, phrase: str, expected: bool) -> None:
    assert shapes.ends_with(text, phrase) is expected


def test_sentences_survive_titles_and_decimals() -> None:
    assert len(shapes.sentences("Dr. Smith measured 3.5 cm. He was pleased.")) == 2


def test_numbers_out_of_order_are_no_list() -> None:
    assert shapes.numbered("1. a\n3. b") == 0
    assert shapes.numbered("**1.** a\nStep 2: b\n3) c") == 3


def test_rules_of_real_answers_hold(research_data: Path) -> None:
    lines = (research_data / "instruct_gpt4.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines[::25]]
    for row in rows:
        rules = extract([row["output"]], 5)
        assert rules and all(rule.holds(row["output"]) for rule in rules)
