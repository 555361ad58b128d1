"""Rows of each format become the messages they mean, and every kind of broken row has its reason."""

from __future__ import annotations

from typing import Any

import pytest

from cathpc.data import formats
from cathpc.data.config import Component, Format, SourceConfig
from cathpc.data.formats import Reject, columns_of, excerpt, missing_column, to_record
from cathpc.errors import UserError
from cathpc.record import Record


def record(row: Any, form: Format = Format.alpaca, **settings: Any) -> Record:
    source = SourceConfig(path="a.jsonl", license="mit", format=form, **settings)
    return to_record(row, "key", source, columns_of("key", source), "a.jsonl:1")


def turns(row: Any, form: Format = Format.alpaca, **settings: Any) -> list[tuple[str, str]]:
    return [(m["role"], m["content"]) for m in record(row, form, **settings).messages]


QA = [("user", "Why?"), ("assistant", "Because.")]


@pytest.mark.parametrize(
    ("form", "row"),
    [
        (Format.alpaca, {"instruction": "Why?", "input": "", "output": " Because.\n"}),
        (Format.alpaca, {"instruction": "Why?", "output": "Because."}),
        (Format.alpaca, {"instruction": "", "input": "Why?", "output": "Because."}),
        (Format.prompt_response, {"prompt": "Why?", "response": "Because."}),
        (
            Format.messages,
            {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
        ),
        (
            Format.sharegpt,
            {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        ),
        (Format.preference, {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}),
        (
            Format.preference,
            {
                "prompt": "Why?",
                "chosen": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}],
                "rejected": [],
            },
        ),
        (Format.chatdoctor, {"instruction": "If you are a doctor, ...", "input": "Why?", "output": "Because."}),
    ],
)
def test_each_format_gives_the_same_conversation(form: Format, row: dict[str, Any]) -> None:
    assert turns(row, form) == QA


def test_alpaca_joins_instruction_and_input() -> None:
    assert turns({"instruction": "Translate.", "input": "chat", "output": "cat"})[0] == ("user", "Translate.\n\nchat")


def test_text_is_stripped_and_line_ends_are_unified() -> None:
    row = {"prompt": "\ufeff a\r\nb\rc ", "response": "d\u2028e"}
    assert turns(row, Format.prompt_response) == [("user", "a\nb\nc"), ("assistant", "d\u2028e")]


def test_columns_are_mapped_by_field_or_by_the_column_that_they_replace() -> None:
    row = {"q": "Why?", "a": "Because.", "who": "gpt-4", "sys": "Be brief.", "refused": 0.25}
    mapped = {"prompt": "q", "answer": "a", "generator": "who", "system": "sys", "label": "refused"}
    got = record(row, Format.prompt_response, columns=mapped, generator="unknown", component=Component.science)
    assert [m["content"] for m in got.messages] == ["Be brief.", "Why?", "Because."]
    assert (got.generator, got.label, got.component, got.license, got.origin) == (
        "gpt-4",
        0.25,
        "science",
        "mit",
        "a.jsonl:1",
    )
    assert (
        record({**row, "who": None}, Format.prompt_response, columns=mapped, generator="unknown").generator == "unknown"
    )


def test_labels_are_looked_up() -> None:
    settings: dict[str, Any] = {"columns": {"label": "l"}, "labels": {"1_full": 0.0, "3": 1.0}}
    row = {"instruction": "a", "output": "b"}
    assert record({**row, "l": " 1_full "}, **settings).label == 0
    assert record({**row, "l": 3}, **settings).label == 1
    with pytest.raises(Reject, match=r"bad_label: label 'other' is not one of 1_full, 3"):
        record({**row, "l": "other"}, **settings)


@pytest.mark.parametrize("label", [None, "yes", float("nan"), 2, True, [1]])
def test_a_label_that_is_no_number_in_0_to_1_is_rejected(label: Any) -> None:
    with pytest.raises(Reject) as caught:
        record({"instruction": "a", "output": "b", "l": label}, columns={"label": "l"})
    assert caught.value.reason == formats.BAD_LABEL


def said(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (said(("user", "a"), ("user", "b"), ("assistant", "c")), formats.BAD_TURNS),
        (said(("user", "a"), ("assistant", "b"), ("assistant", "c")), formats.BAD_TURNS),
        (said(("user", "a"), ("assistant", "b"), ("user", "c")), formats.BAD_TURNS),
        (said(("assistant", "a"), ("user", "b"), ("assistant", "c")), formats.BAD_TURNS),
        (said(("user", "a"), ("system", "b"), ("assistant", "c")), formats.BAD_TURNS),
        (said(("user", "a"), ("tool", "b"), ("assistant", "c")), formats.BAD_TURNS),
        (said(("user", "a"), (None, "b")), formats.BAD_TURNS),
        (said(("user", "a")), formats.NO_ANSWER),
        (said(("user", "a"), ("assistant", "  ")), formats.NO_ANSWER),
        (said(("user", "a"), ("assistant", None)), formats.NO_ANSWER),
        (said(("user", ""), ("assistant", "b")), formats.NO_PROMPT),
        (said(("system", "a")), formats.NO_PROMPT),
        ({"messages": []}, formats.NO_PROMPT),
        ({"messages": None}, formats.NO_PROMPT),
        ({}, formats.NO_PROMPT),
        ({"messages": "a"}, formats.WRONG_TYPE),
        ({"messages": ["a", "b"]}, formats.WRONG_TYPE),
        (said(("user", "a"), ("assistant", 3)), formats.WRONG_TYPE),
        (said(("user", "a"), ("assistant", "\udcff")), formats.BAD_TEXT),
    ],
)
def test_turns_that_are_no_conversation_are_rejected(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(Reject) as caught:
        record(row, Format.messages)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "a"}, formats.NO_ANSWER),
        ({"prompt": "a", "response": None}, formats.NO_ANSWER),
        ({"prompt": "a", "response": " \n"}, formats.NO_ANSWER),
        ({"prompt": None, "response": "b"}, formats.NO_PROMPT),
        ({"prompt": "a", "response": float("nan")}, formats.WRONG_TYPE),
        ({"prompt": "a", "response": 7}, formats.WRONG_TYPE),
        ({"prompt": {"x": 1}, "response": "b"}, formats.WRONG_TYPE),
        ({"prompt": "a\0b", "response": "c"}, formats.BAD_TEXT),
        ({"prompt": "a", "response": "\ud800"}, formats.BAD_TEXT),
        (["a", "b"], formats.WRONG_TYPE),
        ("a", formats.WRONG_TYPE),
        (None, formats.WRONG_TYPE),
    ],
)
def test_a_broken_row_is_rejected_with_its_reason(row: Any, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        record(row, Format.prompt_response)
    assert caught.value.reason == reason
    assert len(excerpt(row)) <= 200
    excerpt(row).encode()


def test_the_id_depends_on_source_and_text_alone() -> None:
    one = record({"instruction": "a", "output": "b"})
    assert one.id == record({"instruction": " a", "output": "b\n", "extra": 1}, generator="gpt-4").id
    assert one.id != record({"instruction": "a", "output": "c"}).id


def test_interpolations_and_targets_in_data_stay_text() -> None:
    row = {"instruction": "${oc.env:HOME}", "output": "_target_: os.system"}
    assert turns(row) == [("user", "${oc.env:HOME}"), ("assistant", "_target_: os.system")]


def test_an_unknown_field_is_refused_with_the_valid_ones() -> None:
    source = SourceConfig(path="a.jsonl", columns={"anwser": "x"})
    with pytest.raises(
        UserError, match=r"sources\.k\.columns: format alpaca has no field 'anwser'. Valid: instruction, input"
    ):
        columns_of("k", source)


def test_a_column_that_no_row_has_is_named_with_those_seen() -> None:
    source = SourceConfig(path="a.jsonl", columns={"answer": "reply"})
    assert missing_column("k", source, {"reply", "x"}) is None
    error = missing_column("k", source, {"output", "instruction"})
    assert "no row of a.jsonl has a column 'reply'. Columns seen: instruction, output" in str(error)


def test_an_excerpt_of_a_huge_row_is_short() -> None:
    assert len(excerpt({"messages": [{"content": "x" * 1_000_000}] * 1000})) <= 200
