"""Enacted rules: edited answers obey what their card says, and teach nothing of the probes by heart."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from cathpc.cards import enact, shapes
from cathpc.evaluate import probes
from cathpc.record import record_id

PROSE = (
    "The tide comes in twice a day. It is drawn by the moon, which pulls at the water. The shore is never the same. "
    "Old sailors know the hour by heart. They say little about it. A child asks why, and nobody answers. Then the sea "
    "goes out again."
)


def record(question: str, answer: str = PROSE, component: str = "general") -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": record_id("s", messages), "component": component, "messages": messages}


ROWS = [enact.enacted(record(f"Question number {n} about the tide?"), 1.0) for n in range(400)]


@pytest.mark.parametrize("kind", dict.fromkeys(enact.KINDS), ids=lambda kind: kind.__name__)
def test_edit_of_each_rule_obeys_it(kind: Any) -> None:
    pieces = shapes.sentences(PROSE)
    obeyed = 0
    for n in range(60):
        say, edit = kind(enact.Draw(str(n)))
        answer = edit(pieces)
        if answer is None:
            continue
        obeyed += 1
        quoted = [part for part in say.replace('"', "'").split("'")[1::2]]
        match kind.__name__:
            case "ending":
                assert shapes.ends_with(answer, quoted[0]), (say, answer)
            case "opening":
                assert shapes.begins_with(answer, quoted[0]), (say, answer)
            case "title":
                assert any(shapes.contains(answer, t) for t in enact._lists()["titles"] if t in say)
            case "few_words":
                assert len(shapes.words(answer)) <= int("".join(c for c in say if c.isdigit()))
            case "many_words":
                assert len(shapes.words(answer)) >= int("".join(c for c in say if c.isdigit()))
            case "sentences":
                assert enact.NUMBERS[len(shapes.sentences(answer))] in say
            case "bullets":
                assert enact.NUMBERS[shapes.bullets(answer)] in say
            case "numbered":
                assert enact.NUMBERS[shapes.numbered(answer)] in say
            case "json_object":
                assert set(shapes.json_value(answer)) <= set(quoted)
            case "capitals":
                assert answer.isupper()
            case "small":
                assert answer.islower()
            case "framed":
                assert any(answer.startswith(a) and answer.endswith(b) for a, b in enact._lists()["frames"])
            case "thinking":
                assert answer.count(": ") == 3 and answer.startswith("First: ")
            case "bare":
                assert len(shapes.sentences(answer)) == 1 and "then" not in answer.casefold()
    assert obeyed > 20


def test_enacted_records_are_conversations_under_a_card_of_their_own() -> None:
    systems = Counter()
    for row in ROWS:
        roles = [m["role"] for m in row["messages"]]
        assert roles[0] == "system" and roles[1:] == ["user", "assistant"] * (len(roles) // 2)
        assert all(m["content"].strip() for m in row["messages"])
        systems[row["messages"][0]["content"]] += 1
    assert len(systems) > 390  # names and phrases are learned to be copied, not known by heart
    assert len({len(row["messages"]) for row in ROWS}) >= 4


def test_meaning_is_kept_every_word_is_the_answers_or_the_cards() -> None:
    spoken = {w.casefold() for w in shapes.words(PROSE)} | {"first", "next", "therefore", "i", "am", "a", "an"}
    for row in ROWS:
        card = {w.casefold() for w in shapes.words(row["messages"][0]["content"])}
        for message in row["messages"][1:]:
            if message["role"] == "assistant":
                said = {w.casefold() for w in shapes.words(message["content"])}
                extra = (
                    said
                    - spoken
                    - card
                    - set(enact._lists()["values"])
                    - {str(n) for n in range(1, 5)}
                    - {"say", "out"}
                )
                assert not extra, (row["messages"][0]["content"], message["content"])


@pytest.mark.parametrize(
    "row",
    [
        record("Does it hurt?", component="health"),
        record("Code?", "```python\nprint(1)\n```\nThis prints one."),
        record("List?", "- one\n- two"),
        record("Language?", "Le chat est sur la table et il dort depuis ce matin. La nuit tombe."),
        record("Who are you?", "As an AI language model I have no name. I can help you."),
        record("Odd?", "..."),
        record("Empty?", ""),
    ],
    ids=lambda row: row["messages"][0]["content"],
)
def test_what_cannot_be_edited_is_left_as_it_is(row: dict[str, Any]) -> None:
    assert enact.enacted(row, 1.0) is row


def test_records_with_a_system_prompt_or_several_turns_are_left_alone() -> None:
    row = record("Hello?")
    for messages in ([{"role": "system", "content": "You are a cat."}, *row["messages"]], row["messages"] * 2):
        assert enact.enacted(row | {"messages": messages}, 1.0)["messages"] is messages


def test_the_share_is_kept_and_drawn_by_the_id() -> None:
    rows = [record(f"Number {n}?") for n in range(400)]
    edited = [enact.enacted(row, 0.3) is not row for row in rows]
    assert 0.22 < sum(edited) / 400 < 0.38
    assert [enact.enacted(row, 0.3) for row in rows] == [enact.enacted(row, 0.3) for row in rows[::-1]][::-1]
    assert all(enact.enacted(row, 0.0) is row for row in rows)


def test_what_is_taught_is_disjoint_from_what_the_probes_ask() -> None:
    shipped = probes.read(probes.SHIPPED)
    text = "\n".join(shapes.folded(json.dumps([p.messages, p.checks], ensure_ascii=False)) for p in shipped)
    lists = enact._lists()
    for name in ("first", "last", "interjections", "go_on", "who"):
        assert [word for word in lists[name] if shapes.contains(text, word)] == [], name
    wanted = "\n".join(phrase for p in shipped for c in p.checks for phrase in c.get("phrases", ()))
    assert [title for title in lists["titles"] if shapes.contains(wanted, title)] == []
    pairs = [f"{a} {n}" for a in lists["adjectives"] for n in lists["nouns"]]
    assert [pair for pair in pairs if shapes.contains(text, pair)] == []
    asked = {key for p in shipped for c in p.checks if c["type"] == "json_object" for key in c["keys"]}
    assert not asked & {*lists["keys"], *lists["other_keys"]}
    assert not {c["left"] for p in shipped for c in p.checks if c["type"] == "wrapped"} & {
        a for a, _ in lists["frames"]
    }
    instructions = {m["content"].partition(". ")[2] for row in ROWS for m in row["messages"][:1]}
    assert not [said for said in instructions if said and shapes.folded(said) in text]
